"""Examinations for tests: in this process, and as the command in a namespace of the network."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from rdzv.diagnosis import Finding
from rdzv.doctor import Examination, examine

from ..local_servers import LIMIT

SECRET = "s3cr3t-w0rd"


@dataclass
class Found:
    """What an examination has found."""

    findings: list[Finding] = field(default_factory=list)

    def __getitem__(self, id_: str) -> Finding:
        """The only finding of that id."""
        (finding,) = [each for each in self.findings if each.id == id_]
        return finding

    def __contains__(self, id_: str) -> bool:
        return any(each.id == id_ for each in self.findings)

    @property
    def errors(self) -> list[str]:
        return [each.id for each in self.findings if each.level == "error"]

    @property
    def text(self) -> str:
        return "\n".join(f"{each.seen} {each.remedy}" for each in self.findings)


def examined(backend: str, endpoint: str, settings: dict[str, Any] | None = None, **more) -> Found:
    """Examine from this process; nothing that is found may hold the secret."""
    what = Examination(backend, endpoint, settings or {}, **{"limit": 5.0, "tries": 3, **more})
    found = Found([checked.finding for checked in examine(what)])
    assert SECRET not in found.text
    return found


def works(found: Found) -> bool:
    """Whether all operations were done and nothing of them is left, however long they took."""
    assert not found.errors, found.text
    assert "latency.measured" in found or "latency.slow" in found
    return all(each in found for each in ("operation.push", "operation.works", "scratch.removed"))


# ---------------------------------------------------------------- two machines


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=LIMIT, capture_output=True)


@dataclass
class Machine:
    """A namespace with one interface."""

    name: str
    address: str

    def drops(self, port: int) -> None:
        """Have a firewall drop what comes in for a port, as a routing rule."""
        _ip("-n", self.name, "rule", "add", "pref", "100", "lookup", "local")
        _ip("-n", self.name, "rule", "del", "pref", "0")
        _ip("-n", self.name, "rule", "add", "pref", "50", "iif", "eth0", "ipproto", "tcp",
            "dport", str(port), "blackhole")  # fmt: skip

    def doctor(self, *arguments: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "rdzv.cli", "doctor"]
        return subprocess.Popen(
            [*command, "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def told(process: subprocess.Popen[str]) -> tuple[int, Found]:
    """The exit code of a doctor, and what it has found."""
    out, err = process.communicate(timeout=2 * LIMIT)
    assert out, err
    found = [
        Finding(each["id"], each["level"], each["seen"], each["remedy"])
        for each in json.loads(out)["findings"]
    ]
    return process.returncode, Found(found)


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines on one network, with nobody else on it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("This makes namespaces of the network: it needs root, and iproute2.")
    machines = [Machine(f"rdzv-{os.getpid()}-{n}", f"10.77.0.{n}") for n in (1, 2)]
    with contextlib.ExitStack() as ending:
        for machine in machines:
            _ip("netns", "add", machine.name)
            ending.callback(_ip, "netns", "del", machine.name)
        one, two = (machine.name for machine in machines)
        _ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0",
            "netns", two)  # fmt: skip
        for machine in machines:
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
        yield machines[0], machines[1]
