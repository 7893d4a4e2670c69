"""What the client makes of servers that die, freeze, are cut off or lose what they knew."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rdzv.testing.proxy import Proxy
from rdzv_etcd import seam
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import Compare, Get, Put, UnavailableError
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.testing import EtcdCluster

from . import servers
from .clients import CLIENTS, ends_with, eventually, make, numbers, reader_of, seen, values
from .servers import commit, program

SLACK = 5.0
"""Seconds that a busy machine may add to what is limited."""


@pytest.fixture
def key() -> bytes:
    return uuid.uuid4().hex.encode()


@pytest.fixture(params=CLIENTS)
def kind(request) -> str:
    return str(request.param)


@pytest.fixture
def server(binary) -> Iterator[EtcdServer]:
    with EtcdServer(binary=binary, durable=False) as server:
        yield server


@contextlib.contextmanager
def opened(client: EtcdClient) -> Iterator[EtcdClient]:
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SLACK


# ---------------------------------------------------------------- one server


def test_nothing_is_lost_while_the_server_is_killed_and_restarted(kind, server, key):
    with opened(make(kind, server.endpoint)) as client:
        watch = client.watch(key)
        client.put(key, b"0")
        assert values(watch, 1) == [b"0"]
        commit(server)
        server.kill()
        server.restart()
        # Another one is quicker than the watch may be.
        with opened(EtcdClient(server.endpoint)) as other:
            other.put(key, b"1")
            other.put(key, b"2")
        client.put(key, b"3")
        assert values(watch, 3) == [b"1", b"2", b"3"]


def test_calls_wait_for_a_server_that_is_restarted(kind, server, key):
    with opened(make(kind, server.endpoint, timeout=30)) as client:
        client.put(key, b"a")
        commit(server)
        server.kill()
        thread = threading.Thread(target=server.restart)
        thread.start()
        # Nothing was sent, or it only reads.
        assert client.range(Get(key)).kvs[0].value == b"a"
        assert client.put(key, b"b")
        thread.join()


def test_a_server_that_is_gone_is_an_error_within_the_timeout(kind, server, key):
    with opened(make(kind, server.endpoint, timeout=1)) as client:
        client.put(key, b"a")
        watch = client.watch(key)
        commit(server)
        server.kill()
        for call in (
            lambda: client.range(Get(key)),
            lambda: client.put(key, b"b"),
            lambda: client.lease_grant(5),
            lambda: client.txn([], [Get(key)]),
            client.status,
        ):
            with within(1), pytest.raises(UnavailableError, match=server.endpoint):
                call()
        with pytest.raises(UnavailableError) as caught:
            client.put(key, b"b")
        # By now it is known that nobody is there.
        assert not caught.value.sent
        with pytest.raises(UnavailableError, match=server.endpoint):
            watch.next(30)
        server.restart()
        eventually(lambda: client.put(key, b"c"), unknown=(UnavailableError,))
        assert values(watch, 1) == [b"c"]


@pytest.mark.parametrize("write", ["put", "txn", "delete"])
def test_a_write_without_an_answer_is_not_repeated(kind, server, key, write):
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        opened(make(kind, f"127.0.0.1:{proxy.port}")) as client,
        opened(EtcdClient(server.endpoint)) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        client.put(key, b"")
        revision = other.range(Get(key)).revision
        # What passes is held up for so long that the answer is still under way.
        proxy.delay(2)
        writes = {
            "put": lambda: client.put(key, b"a"),
            "txn": lambda: client.txn([], [Put(key, b"a")]),
            "delete": lambda: client.delete(key),
        }
        writing = pool.submit(writes[write])
        eventually(lambda: other.range(Get(key)).revision > revision)
        proxy.reset()
        proxy.delay(0)
        with pytest.raises(UnavailableError, match=client.where) as caught:
            writing.result(60)
        assert caught.value.sent
        # The client still works, and has written no more than once.
        assert client.range(Get(key)).revision == revision + 1


def test_a_frozen_server_keeps_nobody_beyond_the_timeout(kind, server, key):
    with opened(make(kind, server.endpoint, timeout=1)) as client:
        client.put(key, b"a")
        watch = client.watch(key)
        server.pause()
        with within(1), pytest.raises(seam.TimeoutError, match=server.endpoint) as caught:
            client.put(key, b"b")
        assert caught.value.sent
        with within(1), pytest.raises(UnavailableError, match=server.endpoint):
            client.range(Get(key))
        with within(1), pytest.raises(UnavailableError):
            client.txn([Compare(key, "create", 0)], [Put(key, b"c")])
        server.resume()

        def put() -> int:
            return client.put(key, b"d")

        eventually(put)
        # The ones that were given up may have been executed all the same.
        found = seen(watch, ends_with(b"d"))
        assert [event.kv.value for event in found if event][-1] == b"d"


def test_an_idle_watch_notices_that_the_server_is_frozen(server, key):
    with opened(EtcdClient(server.endpoint, timeout=1)) as client:
        watch = client.watch(key)
        assert watch.next(0) == []
        server.pause()
        with pytest.raises(UnavailableError, match=server.endpoint):
            watch.next(60)
        server.resume()
        with opened(EtcdClient(server.endpoint)) as other:
            other.put(key, b"a")
        assert values(watch, 1) == [b"a"]


def test_what_is_compacted_while_the_connection_is_down_is_said(kind, server, key):
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        opened(make(kind, f"127.0.0.1:{proxy.port}")) as client,
        opened(EtcdClient(server.endpoint)) as other,
    ):
        watch = client.watch(key)
        client.put(key, b"0")
        assert values(watch, 1) == [b"0"]
        proxy.cut()
        for number in numbers(5):
            last = other.put(key, number)
        servers.compact(server, last)
        proxy.mend()
        found = seen(watch, lambda found: len(found) >= 2)
        assert [event and event.kv.value for event in found] == [None, b"4"]
        other.put(key, b"5")
        assert values(watch, 1) == [b"5"]


def test_a_watch_survives_many_breaks(kind, server, key):
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        opened(make(kind, f"127.0.0.1:{proxy.port}")) as client,
        opened(EtcdClient(server.endpoint)) as other,
    ):
        watch = client.watch(key)
        for number in range(10):
            other.put(key, b"%d" % number)
            if number % 2:
                proxy.reset()
            assert values(watch, 1) == [b"%d" % number]


def test_an_old_break_does_not_count_towards_a_new_one(server, key):
    # A watch without events, whose first break is longer ago than the timeout.
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        opened(EtcdClient(f"127.0.0.1:{proxy.port}", timeout=1)) as client,
    ):
        watch = client.watch(key)
        proxy.stop()
        with pytest.raises(UnavailableError):
            watch.next(60)
        proxy.start()
        reader = reader_of(watch)
        eventually(lambda: reader._broken_at is None)
        assert watch.next(0) == []


# ---------------------------------------------------------------- several endpoints


@pytest.fixture
def hole() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def nobody() -> Iterator[str]:
    """An endpoint that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_the_second_endpoint_stands_in_for_the_first(server, hole, nobody, key):
    for first in (hole, nobody):
        with opened(EtcdClient([first, server.endpoint], connect_timeout=0.5)) as client:
            client.put(key, b"a")
            assert client._connection is not None
            assert client._connection.endpoint == server.endpoint


def test_a_first_endpoint_does_not_use_up_the_time_of_the_others(server, hole, key):
    endpoints = [hole, hole, server.endpoint]
    with opened(EtcdClient(endpoints, timeout=6, connect_timeout=6)) as client:
        client.put(key, b"a")


def test_endpoints_that_are_all_dead_are_an_error_within_the_timeout(hole, nobody, key):
    with opened(EtcdClient([hole, nobody, hole], timeout=1)) as client:
        for _ in range(3):
            with within(1), pytest.raises(UnavailableError) as caught:
                client.put(key, b"a")
            assert not caught.value.sent
            assert hole in str(caught.value)
            assert nobody in str(caught.value)


def test_many_threads_wait_no_longer_than_one(hole, key):
    with opened(EtcdClient([hole, hole], timeout=1)) as client:
        errors = []

        def call() -> None:
            try:
                client.put(key, b"a")
            except UnavailableError as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(32)]
        with within(1):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(errors) == 32


def test_closing_does_not_wait_for_a_connection_that_is_being_made(hole, key):
    client = EtcdClient(hole, timeout=60, connect_timeout=60)
    errors = []

    def call() -> None:
        try:
            client.put(key, b"a")
        except UnavailableError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: client._candidate is not None)
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])


def test_a_name_that_is_not_known_is_said(key):
    with (
        opened(EtcdClient("no-such-host.invalid:2379", timeout=1)) as client,
        pytest.raises(UnavailableError, match="no-such-host.invalid"),
    ):
        client.put(key, b"a")


def test_an_address_of_version_6_is_understood(binary, key):
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        except OSError:
            pytest.skip("This machine has no IPv6.")
        server = stack.enter_context(EtcdServer(binary=binary, durable=False))
        proxy = stack.enter_context(Proxy("127.0.0.1", server.port, listen="::1"))
        client = stack.enter_context(opened(EtcdClient(f"[::1]:{proxy.port}")))
        client.put(key, b"a")
        assert client.where == f"[::1]:{proxy.port}"


# ---------------------------------------------------------------- a cluster


@pytest.fixture(scope="module", params=servers.KINDS)
def cluster(request) -> Iterator[EtcdCluster]:
    with EtcdCluster(3, binary=program(request.param)) as cluster:
        yield cluster


@pytest.fixture
def whole(cluster) -> Iterator[EtcdCluster]:
    """All members run, before and after."""
    yield cluster
    for member in cluster.members:
        if member.paused:
            member.resume()
    dead = [number for number, member in enumerate(cluster.members) if not member.pid]
    if dead:
        cluster.restart(*dead)
    cluster.leader()


def connected_to(cluster: EtcdCluster, number: int, **options) -> EtcdClient:
    """A client that asks that member first."""
    endpoints = cluster.endpoints[number:] + cluster.endpoints[:number]
    client = EtcdClient(endpoints, **options)
    client.status()
    connection = client._connection
    assert connection is not None
    assert connection.endpoint == cluster.endpoints[number]
    return client


def follower(cluster: EtcdCluster) -> int:
    return (cluster.leader() + 1) % 3


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("how", ["kill", "pause"])
def test_another_member_stands_in_for_one_that_fails(whole, key, role, how):
    number = whole.leader() if role == "leader" else follower(whole)
    with opened(connected_to(whole, number, timeout=20)) as client:
        watch = client.watch(key)
        client.put(key, b"before")
        assert values(watch, 1) == [b"before"]
        commit(whole.members[number])
        getattr(whole, how)(number)
        # What reads succeeds. A write may have to find out first, for a member may answer
        # once more before it is held up.
        assert client.range(Get(key)).kvs[0].value == b"before"
        eventually(lambda: client.put(key, b"after"))
        # Put twice, perhaps, where the first answer was lost.
        assert set(values(watch, 1)) == {b"after"}


def test_the_leader_of_a_connected_member_fails(whole, key):
    leader = whole.leader()
    with opened(connected_to(whole, follower(whole), timeout=20)) as client:
        watch = client.watch(key)
        client.put(key, b"before")
        commit(whole.members[leader])
        whole.kill(leader)
        eventually(lambda: client.put(key, b"after"))
        found = seen(watch, ends_with(b"after"))
        assert found[0] is not None
        assert found[0].kv.value == b"before"


def test_an_idle_watch_leaves_a_frozen_member(whole, key):
    number = follower(whole)
    with (
        opened(connected_to(whole, number, timeout=20)) as client,
        opened(connected_to(whole, (number + 1) % 3)) as other,
    ):
        watch = client.watch(key)
        other.put(key, b"before")
        assert values(watch, 1) == [b"before"]
        whole.pause(number)
        other.put(key, b"after")
        assert values(watch, 1) == [b"after"]


def test_without_a_majority_nothing_goes_and_with_it_all_goes_on(whole, key):
    with opened(connected_to(whole, 0, timeout=2)) as client:
        watch = client.watch(key)
        client.put(key, b"before")
        for number in (1, 2):
            commit(whole.members[number])
        whole.kill(1)
        whole.kill(2)
        with within(2), pytest.raises(UnavailableError):
            client.put(key, b"lost?")
        # Once the member itself knows that it has no leader, it says so.
        eventually(lambda: "no leader" in said(client, key))
        with within(2), pytest.raises(UnavailableError) as caught:
            client.put(key, b"lost")
        assert not caught.value.sent
        whole.restart(1, 2)
        eventually(lambda: client.put(key, b"after"))
        found = seen(watch, ends_with(b"after"))
        assert b"lost" not in [event.kv.value for event in found if event]


def said(client: EtcdClient, key: bytes) -> str:
    try:
        client.range(Get(key))
    except UnavailableError as error:
        return str(error)
    return ""
