"""EtcdServer and EtcdCluster: ready when started, gone with their data when their process ends."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import ssl
import subprocess
from http.client import HTTPConnection
from pathlib import Path

import pytest

import rdzv_etcd
from rdzv.testing import local_server
from rdzv_etcd.server import BINARY_VARIABLE, EtcdServer
from rdzv_etcd.testing import EtcdCluster

from ..local_servers import LIMIT, Certificates, LocalServerCases, eventually, exists, parent
from .servers import commit, debian, distro, get, put

# A server's first election lasts a second otherwise.
QUICK: dict[str, str | int | bool] = {"election-timeout": 100, "heartbeat-interval": 10}

SERVING = "serving client traffic"


class EtcdCases(LocalServerCases):
    program: str

    def source(self):
        make = f"EtcdServer(binary={self.program!r}, settings={QUICK})"
        return f"from rdzv_etcd.server import EtcdServer; server = {make}"

    def make(self, port=0, **options):
        return EtcdServer(port=port, **{"binary": self.program, "settings": QUICK, **options})


class TestDebiansEtcd(EtcdCases):
    @pytest.fixture(autouse=True)
    def _program(self):
        self.program = debian()


class TestEtcdOfEtcdDistro(EtcdCases):
    @pytest.fixture(autouse=True)
    def _program(self):
        self.program = distro()


# ---------------------------------------------------------------- as torch documents it


def test_it_is_used_as_torch_documents_it(binary, monkeypatch):
    monkeypatch.setenv(BINARY_VARIABLE, binary)
    server = EtcdServer()
    server.start()
    try:
        assert server.get_host() == "localhost"
        assert server.get_port() > 0
        assert server.get_endpoint() == f"localhost:{server.get_port()}"
        with contextlib.closing(server.get_client()) as client:
            client.put(b"key", b"1")
        assert get(server, "key") == "1"
    finally:
        server.stop()


@pytest.mark.parametrize("number", [None, subprocess.DEVNULL, subprocess.PIPE])
def test_its_log_is_kept_wherever_its_errors_go(binary, number):
    server = EtcdServer(binary=binary, settings=QUICK)
    server.start(timeout=LIMIT, num_retries=1, stderr=number)
    eventually(lambda: SERVING in server.log)
    server.stop()


def test_its_log_is_copied_to_a_file(binary, tmp_path):
    path = tmp_path / "copy"
    with path.open("w") as copy:
        server = EtcdServer(binary=binary, settings=QUICK)
        server.start(stderr=copy)
        eventually(lambda: SERVING in server.log)
        server.restart()
        eventually(lambda: SERVING in server.log)
        server.stop()
        with pytest.raises(RuntimeError):
            EtcdServer(binary=binary, settings={"no-such-option": 1}).start(stderr=copy)
    assert path.read_text().count(SERVING) == 2
    assert "no-such-option" in path.read_text()


# ---------------------------------------------------------------- its data


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("how", ["restart", "kill"])
def test_it_has_its_data_after_a_restart(binary, durable, how):
    with EtcdServer(binary=binary, durable=durable, settings=QUICK) as server:
        put(server, "key", "1")
        commit(server)  # A restart kills it, too.
        if how == "kill":
            server.kill()
        server.restart()
        assert get(server, "key") == "1"


def test_a_folder_of_the_callers_keeps_the_data(binary, tmp_path):
    for expected in (None, "1"):
        with EtcdServer(tmp_path / "data", binary=binary, settings=QUICK) as server:
            assert get(server, "key") == expected
            put(server, "key", "1")
            commit(server)


def test_one_that_was_stopped_begins_empty(binary):
    server = EtcdServer(binary=binary, settings=QUICK)
    for _ in range(2):
        with server:
            assert get(server, "key") is None
            put(server, "key", "1")


# ---------------------------------------------------------------- its options


def test_settings_are_stronger_than_what_is_set_otherwise(binary):
    settings = {**QUICK, "name": "mine", "log-level": "error", "pre-vote": True}
    with EtcdServer(binary=binary, settings=settings) as server:
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes().decode().split("\0")
        assert "--pre-vote=true" in command
        assert "--name=mine" in command
        assert '"info"' not in server.log


def test_it_speaks_the_older_api_where_it_is_asked_to(binary):
    for enabled in (False, True):
        with EtcdServer(binary=binary, enable_v2=enabled, settings=QUICK) as server:
            connection = HTTPConnection(server.host, server.port, timeout=LIMIT)
            connection.request("GET", "/v2/keys/")
            answer = connection.getresponse()
            assert (answer.status == 200) == enabled
            connection.close()


def test_a_start_that_fails_says_what_the_server_said(binary):
    server = EtcdServer(binary=binary, settings={"no-such-option": 1})
    with pytest.raises(RuntimeError, match="no-such-option"):
        server.start()
    with pytest.raises(RuntimeError):
        _ = server.data_dir


def test_it_is_told_nothing_by_the_environment(binary, monkeypatch):
    monkeypatch.setenv("ETCD_NAME", "other")
    monkeypatch.setenv("ETCD_INITIAL_CLUSTER_STATE", "existing")
    monkeypatch.setenv("ETCD_CONFIG_FILE", "/no-such-file")
    with EtcdServer(binary=binary, settings=QUICK) as server:
        put(server, "key", "1")


def test_the_program_is_looked_for_in_the_environment_then_in_packages_then_on_the_path(
    monkeypatch, tmp_path
):
    monkeypatch.setenv(BINARY_VARIABLE, "/bin/true")
    assert EtcdServer(binary="/mine").binary == "/mine"
    assert EtcdServer().binary == "/bin/true"
    monkeypatch.delenv(BINARY_VARIABLE)
    assert EtcdServer().binary == distro()
    monkeypatch.setattr(rdzv_etcd.__spec__, "submodule_search_locations", [str(tmp_path)])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "etcd").touch(mode=0o755)
    assert EtcdServer().binary == str(tmp_path / "bin" / "etcd")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no etcd .*rdzv-etcd\[server\].*apt"):
        EtcdServer().start()
    (tmp_path / "etcd").touch(mode=0o755)
    assert EtcdServer().binary == str(tmp_path / "etcd")


# ---------------------------------------------------------------- TLS


def server_files(certificates: Certificates) -> dict[str, str]:
    return {
        "cert-file": certificates.path("server.pem"),
        "key-file": certificates.path("server.key"),
    }


def test_it_speaks_tls_alone(binary, certificates):
    files = {
        "cert-file": certificates.path("server.pem"),
        "key-file": certificates.path("server.key"),
    }
    with EtcdServer(binary=binary, tls=files, settings=QUICK) as server:
        context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
        put(server, "key", "1", tls=context)
        with pytest.raises((OSError, AssertionError)):
            put(server, "key", "2")
        with contextlib.closing(server.get_client()) as client:
            client.put(b"key", b"3")
        assert get(server, "key", tls=context) == "3"


def test_it_asks_clients_for_a_certificate_where_it_has_their_authority(binary, certificates):
    files = {**server_files(certificates), "trusted-ca-file": certificates.path("ca.pem")}
    with EtcdServer(binary=binary, tls=files, settings=QUICK) as server:
        context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            put(server, "key", "1", tls=context)
        context.load_cert_chain(certificates.path("client.pem"), certificates.path("client.key"))
        put(server, "key", "2", tls=context)
        with contextlib.closing(server.get_client()) as client:
            client.put(b"key", b"3")
        assert get(server, "key", tls=context) == "3"


# ---------------------------------------------------------------- clusters


@pytest.fixture
def cluster(binary):
    with EtcdCluster(3, binary=binary) as made:
        yield made


def test_a_cluster_answers_at_each_member_once_it_is_started(cluster):
    assert len(cluster.members) == len(set(cluster.endpoints)) == 3
    assert cluster.leader() in range(3)
    put(cluster.members[0], "key", "1")
    assert [get(member, "key") for member in cluster.members] == ["1"] * 3
    pids = [member.pid for member in cluster.members]
    with pytest.raises(RuntimeError, match=cluster.endpoints[2]):
        cluster.start()
    cluster.stop()
    assert cluster.members == []
    assert not any(exists(pid) for pid in pids)
    cluster.stop()


def test_a_cluster_has_another_leader_when_one_was_killed_and_takes_that_back(cluster):
    put(cluster.members[0], "key", "1")
    former = cluster.leader()
    commit(cluster.members[former])
    cluster.kill(former)
    leader = cluster.leader()
    assert leader != former
    put(cluster.members[leader], "key", "2")
    cluster.restart(former)
    assert get(cluster.members[former], "key") == "2"
    assert cluster.leader() == leader


def test_a_cluster_has_another_leader_when_one_is_paused_and_again_one_alone_later(cluster):
    former = cluster.leader()
    cluster.pause(former)
    leader = cluster.leader()
    assert leader != former
    put(cluster.members[leader], "key", "1")
    cluster.resume(former)
    # Before that a read of the former fails, as etcd says: "leader changed".
    assert cluster.leader() == leader
    assert get(cluster.members[former], "key") == "1"


def test_a_cluster_without_a_majority_has_no_leader_and_comes_back_with_its_data(cluster):
    put(cluster.members[0], "key", "1")
    for member in cluster.members:
        commit(member)
    for number in (0, 1, 2):
        cluster.kill(number)
    with pytest.raises(TimeoutError, match="0 members that run"):
        cluster.leader(0.1)
    cluster.members[0]._timeout = 0.5
    with pytest.raises(TimeoutError, match="not ready"):
        cluster.restart(0)
    cluster.members[0]._timeout = LIMIT
    cluster.restart(0, 2)
    assert cluster.leader() in (0, 2)
    assert get(cluster.members[0], "key") == "1"
    cluster.restart(1)
    assert get(cluster.members[1], "key") == "1"


def test_a_cluster_speaks_tls(binary, certificates):
    files = {**server_files(certificates), "trusted-ca-file": certificates.path("ca.pem")}
    with (
        EtcdCluster(3, binary=binary, tls=files) as cluster,
        contextlib.closing(cluster.members[cluster.leader()].get_client()) as client,
    ):
        client.put(b"key", b"1")


def test_a_cluster_of_one_is_one(binary):
    with EtcdCluster(1, binary=binary, settings=QUICK) as cluster:
        assert cluster.leader() == 0


def test_a_cluster_whose_ports_are_taken_chooses_others(binary, monkeypatch):
    free = local_server.free_ports
    with EtcdCluster(1, binary=binary, settings=QUICK) as other:
        taken = int(peer_port(other))
        times = iter([[taken], [taken]])
        monkeypatch.setattr("rdzv_etcd.testing.free_ports", lambda n: next(times, None) or free(n))
        with EtcdCluster(1, binary=binary, settings=QUICK) as cluster:
            assert int(peer_port(cluster)) != taken


def peer_port(cluster: EtcdCluster) -> str:
    command = Path(f"/proc/{cluster.members[0].pid}/cmdline").read_bytes().decode()
    return command.split("--listen-peer-urls=http://127.0.0.1:")[1].split("\0")[0]


def test_a_cluster_that_does_not_start_says_why_and_leaves_nothing(binary):
    cluster = EtcdCluster(3, binary=binary, settings={"no-such-option": 1})
    with pytest.raises(RuntimeError, match="no-such-option"):
        cluster.start()
    assert cluster.members == []


def test_a_cluster_ends_with_its_process(binary):
    make = f"""
from rdzv_etcd.testing import EtcdCluster
cluster = server = EtcdCluster(3, binary={binary!r})
"""
    then = """
pids = [member.pid for member in cluster.members]
folders = [str(member.data_dir) for member in cluster.members]
print(*pids, *folders, flush=True)
server = cluster.members[0]
"""
    with parent(make, then) as process:
        found = process.stdout.readline().split()
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(LIMIT)
    assert len(found) == 6
    eventually(lambda: not any(exists(int(pid)) for pid in found[:3]))
    eventually(lambda: not any(Path(folder).exists() for folder in found[3:]))
