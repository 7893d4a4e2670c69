"""Jobs under real torchrun on etcd: what a cluster survives, TLS, the legacy handler, the log."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from rdzv import RendezvousParameters
from rdzv_etcd.backend import create_backend
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.store import EtcdStore
from rdzv_etcd.testing import EtcdCluster

from ..etcd.servers import lasting
from ..local_servers import Certificates
from .agents import Job
from .outages import beats_again, goes_on, undisturbed
from .served import SECRET, ServedByEtcd, guard, renewals

README = Path(__file__).parents[2] / "plugins" / "etcd" / "README.md"
TORCHS = re.compile(r"[IW]\d{4} ")
"""What a line of torch's that is no error begins with."""

MakeJob = Callable[..., Job]


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with EtcdServer(durable=False) as server:
        yield server


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(3, binary=lasting()) as cluster:
        yield cluster


@pytest.fixture
def make(make_job: MakeJob) -> MakeJob:
    """Make jobs with etcd's quick settings, and others that are given."""

    def make(**how: object) -> Job:
        conf = {**ServedByEtcd.quick, **how.pop("conf", {})}  # type: ignore[dict-item]
        return make_job(**{"backend": ServedByEtcd.backend, "nnodes": "2:3", "conf": conf, **how})

    return make


def at(cluster: EtcdCluster, first: int) -> str:
    """An endpoint of all members, that of one before the others: that one is talked to."""
    endpoints = cluster.endpoints
    return ",".join([*endpoints[first:], *endpoints[:first]])


def asked(cluster: EtcdCluster) -> int:
    """How many leases were renewed, as far as members that answer know."""
    return sum(renewals(member) for member in cluster.members if member.pid and not member.paused)


# ---------------------------------------------------------------- what a cluster survives


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "another"])
def test_no_worker_notices_that_etcds_leader_dies(
    make: MakeJob, cluster: EtcdCluster, connected: bool
) -> None:
    leader = cluster.leader()
    job = make(endpoint=at(cluster, leader if connected else (leader + 1) % 3))
    job.start("a", "b")
    first = job.formed("a", "b")
    cluster.kill(leader)
    cluster.leader()
    beats_again(job, lambda: asked(cluster))
    assert undisturbed(job, first)
    # Whoever comes asks the dead one first, if it stands there.
    job.start("c")
    second = job.formed("a", "b", "c")
    assert set(second.restarts.values()) == {0}, job.report()
    job.finish("a", "b", "c")
    assert job.rounds() == 2


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_no_worker_notices_that_the_member_that_its_agent_talks_to_is_frozen(
    make: MakeJob, cluster: EtcdCluster, leads: bool
) -> None:
    number = cluster.leader()
    if not leads:
        number = (number + 1) % 3
    # Another member has to be asked before a lease of this time ends, and it may take long.
    conf = {"keep_alive_max_attempt": 20, "read_timeout": 2}
    job = make(endpoint=at(cluster, number), conf=conf)
    job.start("a")
    job.start("b", options=(f"--rdzv-endpoint={at(cluster, (number + 1) % 3)}",))
    first = job.formed("a", "b")
    cluster.pause(number)
    cluster.leader()
    beats_again(job, lambda: asked(cluster))
    assert undisturbed(job, first)
    job.start("c")
    second = job.formed("a", "b", "c")
    cluster.resume(number)
    assert set(second.restarts.values()) == {0}, job.report()
    job.finish("a", "b", "c")
    assert job.rounds() == 2


def test_no_worker_notices_that_the_majority_is_away_for_ten_seconds(
    make: MakeJob, cluster: EtcdCluster
) -> None:
    job = make(endpoint=at(cluster, cluster.leader()))
    job.start("a", "b")
    first = job.formed("a", "b")
    leader = cluster.leader()
    gone = [leader, (leader + 1) % 3]
    for number in gone:
        cluster.kill(number)
    goes_on(job, first)
    cluster.restart(*gone)
    beats_again(job, lambda: asked(cluster))
    assert undisturbed(job, first)
    job.start("c")
    job.formed("a", "b", "c")
    job.agents["a"].kill()
    last = job.formed("b", "c")
    assert set(last.restarts.values()) == {0}, job.report()
    job.until(
        lambda: [event["round"] for event in job.events("rdzv Completed", "b")] == [1, 2, 3],
        "the rounds' numbers",
    )
    job.finish("b", "c")


# ---------------------------------------------------------------- TLS and users


def test_a_user_of_a_cluster_with_certificates_may_do_what_a_job_needs(
    make: MakeJob, tmp_path: Path
) -> None:
    # What the README permits is what the user is given here.
    assert "--prefix=true readwrite /rdzv/" in README.read_text()
    certificates = Certificates.make(tmp_path)
    ours, key = certificates.path("client.pem"), certificates.path("client.key")
    authority = certificates.path("ca.pem")
    tls: dict[str, str | bool] = {
        "cert-file": certificates.path("server.pem"),
        "key-file": certificates.path("server.key"),
        "trusted-ca-file": authority,
        "client-cert-auth": True,
    }
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(ours, key)
    password = tmp_path / "password"
    password.write_text(SECRET)
    conf = {"ca_cert": authority, "ssl_cert": ours, "ssl_cert_key": key}
    conf |= {"username": ServedByEtcd.user, "password_file": str(password)}
    with EtcdCluster(3, binary=lasting(), tls=tls) as cluster:
        guard(cluster.members[0], tls=context)
        leader = cluster.leader()
        job = make(endpoint=at(cluster, leader), conf=conf)
        job.start("a", "b")
        job.formed("a", "b")
        # Whoever goes on with another member has to log in there.
        cluster.kill(leader)
        job.start("c")
        job.formed("a", "b", "c")
        job.agents["a"].kill()
        job.formed("b", "c")
        job.finish("b", "c")
        [stranger] = job.start("stranger", prefix="/others")
        assert stranger.wait() != 0
        assert "permission denied" in stranger.log
        assert "a role that may read and write the keys below the prefix" in stranger.log
    assert not any(SECRET in agent.log for agent in job.agents.values())


# ---------------------------------------------------------------- names, legacy, log


def test_torchs_name_of_the_newer_backend_has_a_prefix_too(
    make: MakeJob, server: EtcdServer
) -> None:
    job = make(backend="rdzv-etcd-v2", endpoint=server.endpoint, nnodes="1")
    job.start("a")
    job.formed("a")
    job.finish("a")


def test_a_job_of_the_legacy_handlers_re_forms_without_a_killed_node(
    make_job: MakeJob, server: EtcdServer
) -> None:
    job = make_job(
        backend="etcd-legacy",
        endpoint=server.endpoint,
        nnodes="2:3",
        conf={"timeout": 60, "last_call_timeout": 1},
        options=("--max-restarts=1",),
    )
    job.start("a", "b", "c")
    first = job.formed("a", "b", "c")
    job.agents["b"].kill()
    second = job.formed("a", "c")
    assert not second.pids & first.pids
    job.start("d")
    third = job.formed("a", "c", "d")
    assert set(third.restarts.values()) == {0}, job.report()
    job.finish("a", "c", "d")
    for agent in job.agents.values():
        assert agent.log.count("use the backend 'etcd' instead") == 1, agent.log


def test_an_agent_prints_nothing_but_torchs_lines_and_what_rdzv_has_to_say(
    make: MakeJob, server: EtcdServer
) -> None:
    job = make(endpoint=server.endpoint, env={"LOGLEVEL": "INFO"})
    job.start("a", "b", "c")
    job.formed("a", "b", "c")
    job.agents["b"].kill()
    job.formed("a", "c")
    job.start("d")
    job.formed("a", "c", "d")
    job.finish("a", "c", "d")
    said = []
    for name in ("a", "c", "d"):
        lines = job.agents[name].log.splitlines()
        assert any("Rendezvous complete" in line for line in lines)
        said += [line for line in lines if not TORCHS.match(line)]
    # One of them leads the run, and says it.
    [lost] = said
    assert re.fullmatch(r"Node \S+ was lost: silent for \S+ s\.", lost)


# ---------------------------------------------------------------- outages


def test_the_store_asks_again_no_longer_than_the_engine_does(server: EtcdServer) -> None:
    for patience, longest in ((2, 2), (60, 30)):
        params = RendezvousParameters("etcd", server.endpoint, "run", 1, 1, patience=patience)
        _, store = create_backend(params)
        assert isinstance(store, EtcdStore)
        assert store._retry_timeout == timedelta(seconds=longest)
        store.close()
