"""What the tests of all local servers share: programs, processes that end, certificates."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trustme

LIMIT = 30.0
"""Seconds until a wait gives up: far beyond what anything takes."""

REQUIRE = "RDZV_TEST_REQUIRE_SERVERS"
"""The environment variable that makes a missing program a failure; CI sets it."""


def missing(what: str, how: str) -> NoReturn:
    """Skip the test, or fail where programs are required."""
    message = f"This needs {what}, which this machine does not have: {how}."
    if os.environ.get(REQUIRE, "0") not in ("", "0"):
        pytest.fail(message)
    pytest.skip(message)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------- a process that has a server


PARENT = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    {make}
    # A job in the background of a shell ignores it, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The thread that starts it ends at once.
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    {then}
    print(server.port, server.pid, server.data_dir, flush=True)
    sys.stdin.read()
    """
)


def parent(make: str, then: str = "") -> Any:
    """Run a process with a server; it writes the port, the server's pid and its folder.

    It ends when its input does.

    Args:
        make: Lines that make ``server``.
        then: Lines for after the start.
    """
    return subprocess.Popen(
        [sys.executable, "-c", PARENT.format(make=make, then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# ---------------------------------------------------------------- TLS


@dataclass
class Certificates:
    """Files of an authority, and of whom it vouches for."""

    folder: Path
    authority: trustme.CA

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        """With a server of this machine's, a client, and an authority that nobody is to trust."""
        made = cls(folder, trustme.CA())
        made.authority.cert_pem.write_to_path(made.path("ca.pem"))
        trustme.CA().cert_pem.write_to_path(made.path("wrong-ca.pem"))
        made.issue("server", "127.0.0.1", "localhost")
        made.issue("client", "client.example")
        return made

    def issue(self, name: str, *hosts: str) -> str:
        issued = self.authority.issue_cert(*hosts)
        issued.private_key_pem.write_to_path(self.folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(self.folder / f"{name}.pem")
        return self.path(f"{name}.pem")

    def path(self, name: str) -> str:
        return str(self.folder / name)
