"""What real servers do seldom: answers that are lost, members without a leader, busy ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import EtcdError, Get, Put, UnavailableError
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.wire import message

from ..local_servers import LIMIT, eventually
from .clients import values
from .servers import debian
from .wrong_servers import WrongServer, refusing

NO_LEADER = refusing(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
WRITES = {
    "Put": lambda client: client.put(b"key", b"a"),
    "Txn": lambda client: client.txn([], [Put(b"key", b"a")]),
    "DeleteRange": lambda client: client.delete(b"key"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(binary=debian(), durable=False) as server:
        yield server


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out"),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed"),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped"),
        (grpc.StatusCode.UNKNOWN, "context canceled"),
        (grpc.StatusCode.INTERNAL, "stream terminated"),
        (grpc.StatusCode.CANCELLED, "connection is closing"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "context deadline exceeded"),
    ],
)
def test_a_write_that_may_have_been_executed_is_not_repeated(method, code, details):
    with WrongServer({method: refusing(code, details)}).running() as wrong:
        client = EtcdClient(wrong.endpoint, timeout=20)
        with pytest.raises(UnavailableError) as caught:
            WRITES[method](client)
        client.close()
        assert caught.value.sent
        assert wrong.asked.count(method) == 1


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: not capable"),
        (grpc.StatusCode.UNKNOWN, "raft proposal dropped"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    ],
)
def test_a_write_that_was_surely_not_executed_is_repeated(method, code, details):
    answer = refusing(code, details, times=3)
    with WrongServer({method: answer}).running() as wrong:
        client = EtcdClient(wrong.endpoint, timeout=20)
        WRITES[method](client)
        client.close()
        assert wrong.asked.count(method) == 4


def test_a_busy_member_is_not_left():
    busy = refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", times=1)
    with WrongServer({"Put": busy}).running() as wrong:
        client = EtcdClient(wrong.endpoint, timeout=20)
        client.range(Get(b"key"))
        connection = client._connection
        client.put(b"key", b"a")
        assert client._connection is connection
        client.close()


def test_a_member_without_a_leader_is_not_connected_to(server):
    with WrongServer({"Status": NO_LEADER, "Authenticate": NO_LEADER}).running() as wrong:
        client = EtcdClient([wrong.endpoint, server.endpoint])
        client.put(b"key", b"a")
        assert set(wrong.asked) == {"Status"}
        client.close()


def test_a_member_that_loses_its_leader_is_left(server):
    lost = threading.Event()

    def watching(question, context):
        yield message("WatchResponse")(created=True)
        lost.wait(60)
        context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")

    with WrongServer({"Put": NO_LEADER, "Watch": watching}).running() as wrong:
        other = EtcdClient(server.endpoint)
        revision = other.put(b"key", b"0")
        client = EtcdClient([wrong.endpoint, server.endpoint])
        watch = client.watch(b"key", start_revision=revision)
        # Nothing was executed there, so it is repeated; and what was under way there ends too.
        client.put(b"key", b"1")
        lost.set()
        other.put(b"key", b"2")
        assert values(watch, 3) == [b"0", b"1", b"2"]
        assert wrong.asked.count("Put") == 1
        client.close()
        other.close()


@pytest.mark.parametrize("reason", ["etcdserver: no leader", ""])
def test_a_watch_that_its_member_ends_goes_on_at_another(server, reason):
    def watching(question, context):
        if reason:
            yield message("WatchResponse")(created=True, canceled=True, cancel_reason=reason)

    other = EtcdClient(server.endpoint)
    revision = other.put(b"key", b"0")
    with WrongServer({"Watch": watching}).running() as wrong:
        client = EtcdClient([wrong.endpoint, server.endpoint])
        watch = client.watch(b"key", start_revision=revision)
        assert values(watch, 1) == [b"0"]
        client.close()
    other.close()


def test_a_watch_goes_on_after_the_last_event_that_it_has_seen():
    # etcd sends old events in several responses; each has the revision of the whole store.
    begun: list[int] = []

    def watching(question, context):
        begun.append(question.create_request.start_revision)
        yield message("WatchResponse")(created=True)
        response = message("WatchResponse")()
        response.header.revision = 100
        for revision in (begun[-1], begun[-1] + 1):
            response.events.add().kv.mod_revision = revision
        yield response
        context.abort(grpc.StatusCode.UNAVAILABLE, "broken")

    with WrongServer({"Watch": watching}).running() as wrong:
        client = EtcdClient(wrong.endpoint)
        watch = client.watch(b"key", start_revision=5)
        values(watch, 6)
        client.close()
    assert begun[:3] == [5, 7, 9]


def test_a_watch_from_now_on_begins_where_its_member_is_and_goes_on_there():
    begun: list[int] = []

    def watching(question, context):
        begun.append(question.create_request.start_revision)
        response = message("WatchResponse")(created=True)
        response.header.revision = 41
        yield response
        context.abort(grpc.StatusCode.UNAVAILABLE, "broken")

    with WrongServer({"Watch": watching}).running() as wrong:
        client = EtcdClient(wrong.endpoint)
        watch = client.watch(b"key")
        assert watch.since == 42
        eventually(lambda: len(begun) > 2)
        client.close()
    # A revision that is not above all that was written would be told of 100 ms late.
    assert begun[:3] == [0, 42, 42]
    assert "Range" not in wrong.asked


def test_a_member_that_does_not_begin_a_watch_is_left_for_another(server):
    ended = threading.Event()

    def watching(question, context):
        ended.wait(60)
        yield from ()

    with WrongServer({"Watch": watching}).running() as wrong:
        client = EtcdClient([wrong.endpoint, server.endpoint], timeout=LIMIT)
        alone = EtcdClient(wrong.endpoint, timeout=1)
        try:
            with pytest.raises(UnavailableError, match="does not begin a watch"):
                alone.watch(b"key")
            client._timeout = 2.0
            watch = client.watch(b"key")
            client.put(b"key", b"1")
            assert values(watch, 1) == [b"1"]
        finally:
            ended.set()
            client.close()
            alone.close()


def test_only_one_thread_logs_in_when_a_token_is_refused():
    tokens = iter(range(1000))
    valid = ["0"]

    def authenticate(question, context):
        return message("AuthenticateResponse")(token=f"{next(tokens)}")

    def put(question, context):
        if dict(context.invocation_metadata())["token"] not in valid:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")
        return message("PutResponse")()

    with WrongServer({"Authenticate": authenticate, "Put": put}).running() as wrong:
        client = EtcdClient(wrong.endpoint, username="user", password="secret")
        client.put(b"key", b"a")
        valid[:] = ["1"]
        threads = [threading.Thread(target=client.put, args=(b"key", b"a")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong.asked.count("Authenticate") == 2
        client.close()


@pytest.mark.parametrize("how", ["as an error of the call", "as an end of the watch"])
def test_a_watch_whose_token_is_refused_logs_in_again(how):
    tokens = iter(range(1000))

    def authenticate(question, context):
        return message("AuthenticateResponse")(token=f"{next(tokens)}")

    def watching(question, context):
        if dict(context.invocation_metadata())["token"] == "0":
            if how == "as an error of the call":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")
            yield message("WatchResponse")(
                created=True, canceled=True, cancel_reason="etcdserver: permission denied"
            )
            return
        response = message("WatchResponse")(created=True)
        response.events.add().kv.value = b"a"
        yield response
        context.abort(grpc.StatusCode.OUT_OF_RANGE, "the end")

    with WrongServer({"Authenticate": authenticate, "Watch": watching}).running() as wrong:
        client = EtcdClient(wrong.endpoint, username="user", password="secret")
        watch = client.watch(b"key", start_revision=1)
        assert values(watch, 1) == [b"a"]
        with pytest.raises(EtcdError, match="the end"):
            watch.next(60)
        client.close()
