"""Stores of every kind, real ones and backends in memory, and the runs and commands on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch.distributed import TCPStore
from typer.testing import CliRunner, Result

from rdzv import operating, plugins
from rdzv.cli.app import app
from rdzv.testing import memory
from rdzv_etcd.server import EtcdServer
from rdzv_redis import RedisServer

from ..groups import Group

QUICK = {"keep_alive_interval": 0.4, "keep_alive_max_attempt": 5, "last_call_timeout": 0.3}


@dataclass
class Site:
    """A store, and how it is reached."""

    backend: str
    endpoint: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Beside those of all."""
    store: Any = None
    """A client of the TCPStore."""
    groups: list[Group] = field(default_factory=list)

    def run(self) -> Run:
        settings = {**QUICK, **self.settings}

        class Here(Group):
            backend = self.backend
            usual = settings

        group = Here(self.endpoint)
        if self.backend == "memory":
            del group.settings["read_timeout"]
        self.groups.append(group)
        return Run(self, group)


@dataclass
class Run:
    """A run in a store, its nodes, and the commands on it."""

    site: Site
    group: Group

    @property
    def name(self) -> str:
        return self.group.run_id

    def access(self) -> operating.Access:
        return operating.connect(self.site.backend, self.site.endpoint, self.name)

    def command(self, *words: str, code: int = 0) -> Result:
        name, *options = words
        where = ["--backend", self.site.backend, "--endpoint", self.site.endpoint]
        done = CliRunner().invoke(app, [name, self.name, *where, *options], env={"COLUMNS": "80"})
        assert done.exit_code == code, done.output
        return done

    def status(self, *options: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("status", "--json", *options).stdout)
        return found


def roles(found: dict[str, Any]) -> list[tuple[str, int | None]]:
    return [(node["role"], node["rank"]) for node in found["nodes"]]


@contextmanager
def hosted_store() -> Iterator[TCPStore]:
    """A client of a TCPStore that a process of its own hosts."""
    program = (
        "import sys; from torch.distributed import TCPStore\n"
        "store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True)\nsys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Site]]:
    """Start the server of a kind, once."""
    with ExitStack() as stack:
        known: dict[str, Site] = {}

        def serve(kind: str) -> Site:
            if kind == "tcp":
                store = stack.enter_context(hosted_store())
                return Site("c10d", f"127.0.0.1:{store.port}", {"is_host": False}, store)
            server = RedisServer() if kind == "redis" else EtcdServer(durable=False)
            server.start()
            stack.callback(server.stop)
            return Site(kind, server.endpoint)

        def get(kind: str) -> Site:
            if kind not in known:
                known[kind] = serve(kind)
            return known[kind]

        yield get


IN_MEMORY = {
    "get and set": memory.MemoryBackend,
    "get, set and watch": memory.WatchingMemoryBackend,
    "sessions": memory.RosterMemoryBackend,
}


@pytest.fixture
def make(servers: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Run]]:
    """Make runs in stores of a kind; their nodes have left after the test."""
    used: list[Site] = []

    def make(kind: str) -> Run:
        if kind in IN_MEMORY:
            spec = memory.spec(memory.MemoryServer(), IN_MEMORY[kind])
            monkeypatch.setitem(plugins._loaded, "memory", spec)
            site = Site("memory", "")
        else:
            site = servers(kind)
        used.append(site)
        return site.run()

    yield make
    for site in used:
        for group in site.groups:
            group.shutdown()
        site.groups.clear()


@pytest.fixture(params=["tcp", "redis", "etcd", *IN_MEMORY])
def run(request: pytest.FixtureRequest, make: Callable[[str], Run]) -> Run:
    """A run in a store of each kind."""
    return make(request.param)


@pytest.fixture
def tcp(make: Callable[[str], Run]) -> Run:
    """A run in a TCPStore."""
    return make("tcp")
