"""What nodes come to when members die, stand still, lose their quorum, their data or their room."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from rdzv import RendezvousHandler
from rdzv.errors import RendezvousConnectionError, RendezvousStateError
from rdzv_etcd import seam
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import Get
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.testing import EtcdCluster

from ..faults.conftest import Cluster, Nursery
from ..local_servers import LIMIT
from .groups import (
    Group,
    assert_one_group,
    eventually,
    joining,
    places,
    refuses,
    settled,
    waiting,
)
from .servers import KINDS, ask, commit, compact, lasting, program

BROKE = "The connection to the store broke"


@pytest.fixture
def group() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(endpoint: str, **settings: Any) -> Group:
        made.append(Group(endpoint, **settings))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()


@pytest.fixture(autouse=True)
def nobody_is_lost(caplog) -> Iterator[None]:
    """No test here ends a node; so whoever is taken for dead was taken for it wrongly."""
    caplog.set_level(logging.WARNING)
    yield
    lost = [r.getMessage() for r in caplog.get_records("call") if "was lost" in r.getMessage()]
    assert not lost


# ---------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(3, binary=lasting()) as cluster:
        yield cluster


@pytest.fixture
def cluster(one_cluster) -> Iterator[EtcdCluster]:
    """The one cluster of this module; each test finds all of its members up."""
    yield one_cluster
    for number, member in enumerate(one_cluster.members):
        if member.paused:
            one_cluster.resume(number)
    dead = [number for number, member in enumerate(one_cluster.members) if not member.pid]
    one_cluster.restart(*dead)
    one_cluster.leader()
    for member in one_cluster.members:
        eventually(member.is_ready)


@pytest.fixture
def client(cluster) -> Iterator[EtcdClient]:
    client = EtcdClient(cluster.endpoints, timeout=LIMIT, connect_timeout=2)
    yield client
    client.close()


def chosen(cluster: EtcdCluster, role: str) -> tuple[str, int]:
    """The endpoint for nodes, who talk to the first member in it, and whom trouble comes to."""
    leader = cluster.leader()
    others = [number for number in range(3) if number != leader]
    order = [leader, *others] if role == "their member, which leads" else [*others, leader]
    victim = leader if "lead" in role else others[0]
    return ",".join(cluster.members[number].endpoint for number in order), victim


@pytest.fixture(params=["their member", "the leader", "their member, which leads"])
def role(request) -> str:
    return str(request.param)


@pytest.fixture(params=["killed", "paused"])
def trouble(request, cluster) -> Callable[[int], None]:
    actions: dict[str, Callable[[int], None]] = {"killed": cluster.kill, "paused": cluster.pause}
    return actions[str(request.param)]


def test_a_healthy_round_outlives_a_member(cluster, client, group, role, trouble):
    endpoint, victim = chosen(cluster, role)
    run = group(endpoint)
    handlers = run.formed(3, 3, 4)
    trouble(victim)
    run.wait_for_beats(client)
    assert waiting(handlers) == [0, 0, 0]
    first = joining(handlers[0])
    eventually(lambda: all(waiting(handlers[1:])), "the others are not told")
    assert assert_one_group(places(first + joining(*handlers[1:])), 3) == 2


def test_a_round_that_is_forming_outlives_a_member(cluster, client, group, role, trouble):
    endpoint, victim = chosen(cluster, role)
    run = group(endpoint)
    handlers = run.add(3, 3, 3)
    futures = joining(*handlers[:2])
    run.wait_for(client, 2)
    trouble(victim)
    settled(handlers, futures + joining(handlers[2]))


@pytest.mark.parametrize("action", ["killed", "paused"])
def test_a_member_that_goes_as_the_last_node_comes_leaves_one_group(cluster, group, action):
    endpoint, victim = chosen(cluster, "their member, which leads")
    run = group(endpoint)
    handlers = run.add(4, 2, 4)
    act = {"killed": cluster.kill, "paused": cluster.pause}[action]
    thread = threading.Thread(target=act, args=(victim,))
    futures = joining(*handlers[:3])
    thread.start()
    futures += joining(handlers[3])
    thread.join(LIMIT)
    settled(handlers, futures)


def test_a_leader_that_wakes_changes_nothing(cluster, client, group):
    endpoint, victim = chosen(cluster, "their member, which leads")
    # Leases that outlive the pause: these versions of etcd may revoke others that have ended for
    # the former leader alone (etcd's issue 15247; the README says so).
    run = group(endpoint, keep_alive_max_attempt=30)
    handlers = run.formed(3, 3, 3)
    cluster.pause(victim)
    # Another one leads, and nodes have gone on with it.
    assert assert_one_group(places(joining(*handlers)), 3) == 2
    cluster.resume(victim)
    cluster.leader()
    run.wait_for_beats(client)
    assert waiting(handlers) == [0, 0, 0]
    assert assert_one_group(places(joining(*handlers)), 3) == 3


def broken(caplog, count: int) -> bool:
    """Whether so many threads of nodes have noticed that etcd is away."""
    return sum(BROKE in record.getMessage() for record in caplog.records) >= count


@pytest.mark.parametrize("action", ["killed", "paused"])
def test_a_lost_quorum_is_noticed_by_no_healthy_node(cluster, client, group, caplog, action):
    run = group(",".join(cluster.endpoints))
    handlers = run.formed(3, 2, 4)
    for number in (0, 1):
        {"killed": cluster.kill, "paused": cluster.pause}[action](number)
    eventually(lambda: broken(caplog, 3), "nobody has noticed")
    assert waiting(handlers) == [0, 0, 0]
    if action == "killed":
        cluster.restart(0, 1)
    else:
        for number in (0, 1):
            cluster.resume(number)
    run.wait_for_beats(client)
    assert waiting(handlers) == [0, 0, 0]
    assert assert_one_group(places(joining(*handlers)), 3) == 2


def test_a_round_completes_once_the_quorum_is_back(cluster, client, group, caplog):
    run = group(",".join(cluster.endpoints))
    handlers = run.add(3, 3, 3)
    futures = joining(*handlers[:2])
    run.wait_for(client, 2)
    for number in (0, 1):
        cluster.kill(number)
    futures += joining(handlers[2])
    eventually(lambda: broken(caplog, 3), "nobody has noticed")
    cluster.restart(0, 1)
    settled(handlers, futures)


# ---------------------------------------------------------------- one server


@pytest.fixture(params=["debian"])
def server(request) -> Iterator[EtcdServer]:
    with EtcdServer(binary=program(request.param), durable=False) as server:
        yield server


both = pytest.mark.parametrize("server", KINDS, indirect=True)
"""Where the servers may differ: in how leases end, what is compacted, what needs room."""


@pytest.fixture
def one(server) -> Iterator[EtcdClient]:
    client = EtcdClient(server.endpoint, timeout=LIMIT)
    yield client
    client.close()


@both
def test_a_compaction_under_a_watch_is_survived_by_nodes_that_wait(server, one, group):
    run = group(server.endpoint)
    handlers = run.add(3, 3, 3)
    futures = joining(*handlers[:2])
    run.wait_for(one, 2)
    for _ in range(10):
        revision = one.put(b"/other", b"")
    compact(server, revision)
    # Watches begin anew where there is nothing any more.
    commit(server)
    server.kill()
    server.restart()
    settled(handlers, futures + joining(handlers[2]))


def test_a_compaction_under_a_watch_is_noticed_by_no_healthy_node(server, one, group):
    run = group(server.endpoint)
    handlers = run.formed(2, 2, 3)
    for _ in range(10):
        revision = one.put(b"/other", b"")
    compact(server, revision)
    server.kill()
    server.restart()
    run.wait_for_beats(one)
    assert waiting(handlers) == [0, 0]
    first = joining(handlers[0])
    eventually(lambda: waiting(handlers[1:]) != [0], "the other is not told")
    assert assert_one_group(places(first + joining(handlers[1])), 2) == 2


@pytest.mark.parametrize("early", [0, 1, 2])
def test_nodes_that_wait_go_on_after_a_restart(server, one, group, early):
    run = group(server.endpoint)
    handlers = run.add(3, 3, 3)
    futures = joining(*handlers[:early])
    run.wait_for(one, early)
    server.kill()
    server.restart()
    settled(handlers, futures + joining(*handlers[early:]))


OUTAGE = 10.0
"""Seconds, more than three times a lease; what is tested is that nodes bear them."""


@contextlib.contextmanager
def paused(server: EtcdServer) -> Iterator[None]:
    server.pause()
    yield
    server.resume()


@contextlib.contextmanager
def killed(server: EtcdServer) -> Iterator[None]:
    commit(server)
    server.kill()
    yield
    server.restart()


@pytest.mark.parametrize(
    ("server", "outage"),
    # As 3.5.1 wakes, a read whose time is over may end it (etcd's issue 14110).
    [("debian", paused), ("distro", killed)],
    indirect=["server"],
)
def test_an_outage_that_ends_all_leases_is_noticed_by_no_healthy_node(server, one, group, outage):
    run = group(server.endpoint)
    handlers = run.formed(3, 2, 4)
    before = run.leases(one)
    noticed: set[int] = set()
    with outage(server):
        over = time.monotonic() + OUTAGE
        while time.monotonic() < over:
            noticed |= set(waiting(handlers))
            time.sleep(0.05)
    run.wait_for_beats(one)
    noticed |= set(waiting(handlers))
    assert noticed == {0}
    assert outage is killed or not before & run.leases(one), "no lease has ended"
    assert assert_one_group(places(joining(*handlers)), 3) == 2


def test_nodes_that_wait_while_all_leases_end_form_a_round_of_all(server, one, group):
    run = group(server.endpoint, last_call_timeout=1.0)
    handlers = run.add(3, 3, 3)
    futures = joining(*handlers[:2])
    run.wait_for(one, 2)
    eventually(lambda: len(run.leases(one)) == 2)
    before = run.leases(one)
    with paused(server):
        time.sleep(OUTAGE / 2)
    eventually(lambda: not before & run.leases(one), "no lease has ended")
    settled(handlers, futures + joining(handlers[2]))


@both
@pytest.mark.parametrize("count", [2, 3])
def test_leases_that_somebody_ended_are_made_anew(server, one, group, count):
    # Long leases: none is older than one when they end, which would be a death.
    run = group(server.endpoint, last_call_timeout=LIMIT, keep_alive_max_attempt=30)
    handlers = run.add(count, 2, 3)
    futures = joining(*handlers)
    eventually(lambda: len(run.leases(one)) == count)
    if count == 3:
        assert_one_group(places(futures), 3)
    before = run.leases(one)
    # All at once, as where etcd was away; one alone would be a death.
    server.pause()
    server.resume()
    for lease in before:
        one.lease_revoke(lease)
    eventually(lambda: len(run.leases(one) - before) >= count)


# ---------------------------------------------------------------- lost data


def lose_data(server: EtcdServer) -> None:
    """Kill it and have it begin with nothing, as nobody should do."""
    server.kill()
    shutil.rmtree(server.data_dir / "etcd")
    server.restart()


def age(client: EtcdClient) -> None:
    """Have its revisions be above those that an empty one comes to in a test."""
    for _ in range(200):
        client.put(b"/other", b"")


def assert_all_refuse(handlers: list[RendezvousHandler]) -> None:
    """All of them are told that the state was lost."""
    for handler in handlers:
        eventually(partial(refuses, handler, RendezvousStateError), "nobody has told the node")


@both
def test_a_server_that_lost_everything_ends_nodes_in_a_round(server, one, group, caplog):
    age(one)
    run = group(server.endpoint)
    handlers = run.formed(3, 2, 4)
    lose_data(server)
    assert_all_refuse(handlers)
    for handler in handlers:
        with pytest.raises(RendezvousStateError, match="Start the job again on all nodes"):
            handler.num_nodes_waiting()
    # Who has learnt of it beats no more, and may be missed by one who has not.
    caplog.clear()


def test_a_server_that_lost_everything_ends_nodes_that_wait(server, one, group):
    run = group(server.endpoint)
    age(one)
    futures = joining(*run.add(2, 3, 3))
    run.wait_for(one, 2)
    lose_data(server)
    for future in futures:
        error = future.exception(LIMIT)
        assert isinstance(error, RendezvousStateError)
        assert "Start the job again on all nodes" in str(error)


def test_a_run_that_begins_again_on_an_empty_server_has_nobody_of_the_old_one(server, one, group):
    age(one)
    run = group(server.endpoint)
    old = run.formed(2, 2, 3)
    lose_data(server)
    new = run.add(2, 2, 3)
    assert assert_one_group(places(joining(*new)), 2) == 1
    assert_all_refuse(old)
    assert waiting(new) == [0, 0]


def test_keys_that_somebody_deleted_end_nodes(server, one, group):
    run = group(server.endpoint)
    handlers = run.formed(2, 2, 3)
    root = run.root("").encode()
    one.delete(root, seam.prefix_end(root))
    assert_all_refuse(handlers)


def test_keys_that_were_restored_from_an_older_copy_end_nodes(group, caplog):
    with EtcdServer(binary=lasting(), durable=False) as server:
        restored(server, group(server.endpoint))
    # They may have missed slots that the copy does not have yet.
    caplog.clear()


def restored(server: EtcdServer, run: Group) -> None:
    handlers = run.formed(2, 2, 3)
    server.kill()
    shutil.copytree(server.data_dir / "etcd", server.data_dir / "copy")
    server.restart()
    assert assert_one_group(places(joining(*handlers)), 2) == 2
    server.kill()
    shutil.rmtree(server.data_dir / "etcd")
    (server.data_dir / "copy").rename(server.data_dir / "etcd")
    server.restart()
    assert_all_refuse(handlers)


# ---------------------------------------------------------------- a full database


QUOTA = 1 << 21


@pytest.fixture(params=KINDS)
def small(request) -> Iterator[EtcdServer]:
    settings = {"quota-backend-bytes": QUOTA}
    with EtcdServer(binary=program(request.param), durable=False, settings=settings) as server:
        yield server


def fill(server: EtcdServer) -> None:
    with contextlib.closing(server.get_client()) as filler:

        def is_full(number: int) -> bool:
            try:
                filler.put(b"/other/%d" % (number % 2), bytes(QUOTA // 20))
            except seam.NoSpaceError:
                return True
            return False

        assert any(map(is_full, range(1000)))


def make_room(server: EtcdServer) -> None:
    """What an administrator does."""
    with contextlib.closing(server.get_client()) as client:
        client.delete(b"/other/", b"/other0")
        compact(server, client.range(Get(b"/other")).revision)
    ask(server, "/v3/maintenance/defragment", {}, timeout=LIMIT)
    raised = ask(server, "/v3/maintenance/alarm", {"action": "GET", "alarm": "NOSPACE"})
    for alarm in raised["alarms"]:
        ask(server, "/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarm})


def test_a_full_database_is_a_clear_error_once_patience_is_over(small, group):
    run = group(small.endpoint, patience=1.0)
    (handler,) = run.add(1, 1, 1)
    fill(small)
    (future,) = joining(handler)
    error = future.exception(LIMIT)
    assert isinstance(error, RendezvousConnectionError)
    assert "alarm disarm" in str(error)
    # It is said once: the rest is where it was met.
    assert str(error).count("etcdctl compact") == 1, error
    make_room(small)


def test_a_full_database_at_the_start_is_a_clear_error(small, group):
    fill(small)
    with pytest.raises(RendezvousConnectionError, match="disarm"):
        group(small.endpoint).add(1, 1, 1)


def test_a_full_database_that_gets_room_within_patience_stops_nobody(small, group, caplog):
    run = group(small.endpoint)
    handlers = run.formed(2, 2, 3)
    fill(small)
    futures = joining(*handlers)
    eventually(lambda: broken(caplog, 2), "no write was refused")
    make_room(small)
    assert settled(handlers, futures) == 2


# ---------------------------------------------------------------- processes that sleep


class Nodes(Cluster):
    """Processes whose run is on etcd."""

    def parameters(self, min_nodes: int = 1, max_nodes: int = 1, **settings: Any) -> dict[str, Any]:
        given = super().parameters(min_nodes, max_nodes, store_type="", **settings)
        del given["store_type"]
        # A lease of three seconds.
        return given | {
            "backend": "etcd",
            "local_addr": "127.0.0.1",
            "keep_alive_interval": 0.3,
            "keep_alive_max_attempt": 10,
        }


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def nodes(nursery, server, tmp_path) -> Iterator[Nodes]:
    nodes = Nodes(nursery, tmp_path)
    nodes.endpoint = server.endpoint
    try:
        yield nodes
    finally:
        nodes.end()
    nodes.check()


def test_a_node_that_slept_longer_than_its_lease_is_fenced_and_joins_again(nodes):
    first, second, third = nodes.live(3, 2, 3)
    third.forget()
    third.pause()
    nodes.settle([first, second], above=1)
    third.wake()
    assert nodes.settle([first, second, third], above=2)


def test_a_leader_that_slept_longer_than_its_lease_is_replaced_and_joins_again(nodes):
    first, second, third = nodes.live(3, 2, 3)
    first.pause()
    nodes.settle([second, third], above=1)
    first.wake()
    assert nodes.settle([first, second, third], above=2)


def test_a_node_that_slept_while_it_waited_joins_with_the_others(nodes):
    first, second = nodes.open(2, 2, 3)
    nodes.enter(first)
    first.pause()
    nodes.enter(second)
    # Until its lease has ended nobody knows; then the run has another leader.
    second.logged("leads the run")
    first.wake()
    nodes.settle([first, second])


def test_nodes_that_all_slept_longer_than_their_leases_evict_nobody(nodes, server, one_lease):
    every = nodes.live(3, 2, 3)
    for node in every:
        node.pause()
    one_lease()
    for node in every:
        node.wake()
    for node in every:
        assert node.ask("waiting", "waiting")["count"] == 0
    one_lease()
    for node in every:
        assert node.ask("waiting", "waiting")["count"] == 0
        assert not node.has_logged("was lost")


@pytest.fixture
def one_lease(server, one) -> Callable[[], None]:
    """Wait until a lease that is made now, of more than the nodes', has ended."""

    def wait() -> None:
        lease = one.lease_grant(4).id
        one.put(b"/other", b"", lease)
        eventually(lambda: not one.range(Get(b"/other")).kvs)

    return wait


def test_a_node_that_is_killed_is_lost_when_its_lease_ends(nodes):
    first, second, third = nodes.live(3, 2, 3)
    third.kill()
    nodes.settle([first, second], above=1)
    assert first.has_logged("was lost") or second.has_logged("was lost")


def test_a_leader_that_is_killed_is_replaced(nodes):
    first, second, third = nodes.live(3, 2, 3)
    first.kill()
    nodes.settle([second, third], above=1)
