"""What the tests of all local servers share: cases, programs, certificates, processes that end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
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

from rdzv.testing import local_server
from rdzv.testing.local_server import LocalServer

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


def postgres_server(**options: Any) -> Any:
    """A PostgreSQL server of the example plugin's, not started; where there is none, see above."""
    try:
        from rdzv_postgres.server import PostgresServer
    except ImportError as exc:
        missing(
            f"rdzv-postgres ({exc})", 'pip install ./examples/plugins/postgres "psycopg[binary]"'
        )
    server = PostgresServer(**options)
    try:
        _ = server.binary
    except FileNotFoundError:
        missing("a PostgreSQL server", "apt install postgresql")
    return server


def eventually(
    condition: Callable[[], object],
    what: str = "",
    limit: float = LIMIT,
    *,
    unknown: tuple[type[Exception], ...] = (),
) -> None:
    """Wait until the condition holds; where it is ``unknown`` now it is asked again."""
    deadline = time.monotonic() + limit
    while True:
        with contextlib.suppress(*unknown):
            if condition():
                return
        assert time.monotonic() < deadline, what or "It has not come about in time."
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


# ---------------------------------------------------------------- cases for every server


FAILED_RESTART = """
server._binary = "/bin/false"
try:
    server.restart()
except RuntimeError:
    pass
"""


class LocalServerCases:
    """What holds for every local server; a subclass says how one is made."""

    def make(self, port: int = 0, **options: Any) -> LocalServer:
        raise NotImplementedError

    def source(self) -> str:
        """Lines that make ``server`` in another process."""
        raise NotImplementedError

    # It is there from start to stop.

    def test_it_answers_once_it_is_started_and_is_gone_once_it_is_stopped(self):
        server = self.make()
        server.start()
        pid, folder = server.pid, server.data_dir
        assert server.endpoint == f"{server.host}:{server.port}"
        eventually(server.is_ready)
        assert server.log
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < LIMIT
        assert not any(listens(port) for port in server.ports)
        assert not exists(pid)
        assert not folder.exists()
        assert server.pid == 0
        server.stop()

    def test_many_run_beside_each_other(self):
        with self.make() as one, self.make() as other:
            assert not set(one.ports) & set(other.ports)
            assert one.data_dir != other.data_dir
            eventually(one.is_ready)
            eventually(other.is_ready)

    def test_a_stopped_server_can_be_started_again(self):
        server = self.make()
        with pytest.raises(RuntimeError, match="before it is started"):
            _ = server.data_dir
        for _ in range(2):
            with server:
                eventually(server.is_ready)

    def test_a_running_server_is_not_started_twice(self):
        with self.make() as server, pytest.raises(RuntimeError, match=str(server.port)):
            server.start()

    def test_a_restarted_one_has_its_ports_and_its_folder(self):
        with self.make() as server:
            (server.data_dir / "mine").touch()
            before = (server.ports, server.data_dir)
            pid = server.pid
            server.restart()
            assert (server.ports, server.data_dir) == before
            assert (server.data_dir / "mine").exists()
            assert server.pid != pid
            eventually(server.is_ready)

    def test_a_killed_one_can_be_restarted(self):
        with self.make() as server:
            pid = server.pid
            server.kill()
            assert server.pid == 0
            assert not listens(server.port)
            assert server.data_dir.exists()
            server.restart()
            assert server.pid not in (0, pid)
            eventually(server.is_ready)

    def test_one_that_somebody_else_killed_can_be_restarted_and_stopped(self):
        with self.make() as server:
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: not listens(server.port))
            server.restart()
            eventually(server.is_ready)
            os.kill(server.pid, signal.SIGKILL)

    def test_a_paused_one_keeps_its_connections_and_does_not_answer_until_it_is_resumed(self):
        with self.make() as server:
            server.pause()
            assert server.paused
            assert listens(server.port)
            server.resume()
            assert not server.paused
            eventually(server.is_ready)
            server.pause()
            server.restart()
            assert not server.paused
            eventually(server.is_ready)
            # It can be killed and stopped all the same.
            server.pause()
            server.kill()
            assert not listens(server.port)

    def test_a_folder_of_the_callers_stays(self, tmp_path):
        with self.make(data_dir=tmp_path / "data") as server:
            assert server.data_dir == tmp_path / "data"
        assert (tmp_path / "data" / "server.log").exists()

    # Ports.

    def test_a_port_that_is_taken_is_an_error_and_a_lost_race_is_run_again(self, monkeypatch):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(RuntimeError, match="already in use"):
                self.make(port).start()
            free = local_server.free_ports
            count = type(self.make()).port_count
            # Each of its ports once: etcd listens on the last when it has begun its data.
            lost = iter(range(count))

            def choose(*args: int) -> list[int]:
                chosen, number = free(*args), next(lost, count)
                return [*chosen[:number], port, *chosen[number + 1 :]][: len(chosen)]

            monkeypatch.setattr(local_server, "free_ports", choose)
            with self.make(timeout=LIMIT) as server:
                assert port not in server.ports
                eventually(server.is_ready)

    def test_a_restart_waits_until_a_passing_connection_has_left_its_port(self, monkeypatch):
        with self.make() as server:
            server.kill()
            taken = socket.create_server(("127.0.0.1", server.port))
            monkeypatch.setattr(time, "sleep", lambda _: taken.close())
            before = server.ports
            server.restart()
            assert server.ports == before
            eventually(server.is_ready)

    def test_a_restart_that_fails_leaves_the_folder_for_another(self):
        with self.make(timeout=LIMIT) as server:
            (server.data_dir / "mine").touch()
            server.kill()
            with socket.create_server(("127.0.0.1", server.port)):
                server._timeout = 0.3
                with pytest.raises((RuntimeError, TimeoutError)):
                    server.restart()
            assert server.pid == 0
            server._timeout = LIMIT
            server.restart()
            assert (server.data_dir / "mine").exists()
            eventually(server.is_ready)

    # Starts that fail.

    def test_one_that_is_never_ready_is_given_up(self, tmp_path):
        idle = tmp_path / "idle"
        idle.write_text("#!/bin/sh\necho waits\nexec sleep 1000\n")
        idle.chmod(0o755)
        server = self.make(binary=idle, timeout=3.0)
        with pytest.raises(TimeoutError, match="not ready(.|\n)*waits"):
            server.start()
        assert server.pid == 0

    def test_a_program_that_is_not_there_is_an_error(self):
        with pytest.raises(RuntimeError, match="no-such-program"):
            self.make(binary="/no-such-program").start()

    # It ends with its process.

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
    def test_it_ends_with_its_process_however_that_ends(self, how):
        with parent(self.source()) as process:
            port, pid, folder = process.stdout.readline().split()
            assert listens(int(port))
            if how is None:
                process.stdin.close()
            else:
                process.send_signal(how)
            process.wait(LIMIT)
        eventually(lambda: not exists(int(pid)))
        eventually(lambda: not Path(folder).exists())
        assert not listens(int(port))

    @pytest.mark.parametrize(
        ("then", "runs"),
        [("server.kill()", False), (FAILED_RESTART, False), ("server.pause()", True)],
        ids=["killed", "failed", "paused"],
    )
    def test_the_folder_goes_with_the_process_whatever_the_servers_state(self, then, runs):
        with parent(self.source(), then) as process:
            port, pid, folder = process.stdout.readline().split()
            assert (pid != "0") == listens(int(port)) == runs
            assert Path(folder).exists()
            process.kill()
            process.wait(LIMIT)
        eventually(lambda: not Path(folder).exists())
        eventually(lambda: not listens(int(port)))

    def test_a_forked_child_that_lives_on_does_not_keep_it(self):
        then = "child = os.fork()\nif child == 0: server.stop(); time.sleep(1000)\nprint(child)"
        with parent(self.source(), then) as process:
            child = int(process.stdout.readline())
            try:
                port, pid, folder = process.stdout.readline().split()
                # The child has not stopped it.
                assert listens(int(port))
                process.kill()
                process.wait(LIMIT)
                eventually(lambda: not exists(int(pid)))
                eventually(lambda: not Path(folder).exists())
            finally:
                os.kill(child, signal.SIGKILL)

    def test_a_child_that_ends_leaves_the_server_to_its_parent(self):
        with self.make() as server:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                server.pause()
                server.kill()
                server.stop()
                os.write(writing, b"x")
                os._exit(0)
            assert select.select([reading], [], [], LIMIT)[0]
            assert os.waitpid(child, 0)[1] == 0
            os.close(reading)
            os.close(writing)
            eventually(server.is_ready)
