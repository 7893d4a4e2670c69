"""The seam's contract: the same cases on every client, against every etcd."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import (
    Compare,
    Delete,
    Deleted,
    EtcdError,
    Event,
    Get,
    KeyValue,
    LeaseGoneError,
    NoSpaceError,
    Put,
    PutDone,
    Range,
    TooLargeError,
    prefix_end,
)
from rdzv_etcd.server import EtcdServer

from . import servers
from .clients import CLIENTS, eventually, make, numbers, seen, threads, values
from .servers import KINDS, program


@pytest.fixture(scope="module", params=KINDS)
def server(request) -> Iterator[EtcdServer]:
    with EtcdServer(binary=program(request.param), durable=False) as server:
        yield server


@pytest.fixture(params=CLIENTS)
def kind(request) -> str:
    return str(request.param)


@pytest.fixture
def client(kind, server) -> Iterator[EtcdClient]:
    client = make(kind, server.endpoint)
    yield client
    client.close()


@pytest.fixture
def key() -> bytes:
    """A key that no other test uses, and the beginning of more."""
    return uuid.uuid4().hex.encode()


# ---------------------------------------------------------------- keys


def test_a_key_that_is_not_there_is_an_empty_range_at_a_revision(client, key):
    found = client.range(Get(key))
    assert found == Range(found.revision, (), 0, False)
    assert found.revision > 0


def test_what_is_put_is_found_with_its_revisions(client, key):
    first = client.put(key, b"a")
    assert client.range(Get(key)).kvs == (KeyValue(key, b"a", first, first, 1, 0),)
    second = client.put(key, b"b")
    assert second == first + 1
    found = client.range(Get(key))
    assert found.revision == second
    assert found.kvs == (KeyValue(key, b"b", first, second, 2, 0),)


@pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), b"x" * 1_000_000])
def test_a_value_is_any_bytes(client, key, value):
    client.put(key, value)
    assert client.range(Get(key)).kvs[0].value == value


def test_a_range_ends_before_its_end(client, key):
    for letter in (b"a", b"b", b"c"):
        client.put(key + letter, letter)
    found = client.range(Get(key + b"a", key + b"c"))
    assert [kv.value for kv in found.kvs] == [b"a", b"b"]
    assert (found.count, found.more) == (2, False)


def test_a_prefix_has_an_end(client, key):
    for tail in (b"", b"a", b"\xff", b"\xff\xff"):
        client.put(key + tail, b"")
    client.put(prefix_end(key), b"")
    assert client.range(Get(key, prefix_end(key))).count == 4
    assert client.range(Get(key + b"\xff", prefix_end(key + b"\xff"))).count == 2
    assert prefix_end(b"a\xff") == b"b"
    assert prefix_end(b"\xff") == prefix_end(b"") == b"\0"
    assert client.range(Get(b"\0", prefix_end(b""))).count >= 5


def test_a_limit_leaves_the_rest_and_counts_it(client, key):
    for number in numbers(5):
        client.put(key + number, number)
    found = client.range(Get(key, prefix_end(key), limit=2))
    assert [kv.value for kv in found.kvs] == [b"0", b"1"]
    assert (found.count, found.more) == (5, True)


def test_only_the_keys_or_only_how_many(client, key):
    for number in numbers(3):
        client.put(key + number, number)
    found = client.range(Get(key, prefix_end(key), keys_only=True))
    assert [(kv.key, kv.value) for kv in found.kvs] == [(key + n, b"") for n in numbers(3)]
    assert all(kv.create_revision for kv in found.kvs)
    found = client.range(Get(key, prefix_end(key), count_only=True))
    assert (found.kvs, found.count) == ((), 3)


def test_keys_are_ordered_by_creation_and_those_after_one(client, key):
    revisions = {letter: client.put(key + letter, letter) for letter in (b"c", b"a", b"b")}
    client.put(key + b"c", b"again")
    found = client.range(Get(key, prefix_end(key), by_creation=True))
    assert [kv.key[-1:] for kv in found.kvs] == [b"c", b"a", b"b"]
    found = client.range(Get(key, prefix_end(key), by_creation=True, created_after=revisions[b"c"]))
    assert [kv.key[-1:] for kv in found.kvs] == [b"a", b"b"]
    found = client.range(Get(key, prefix_end(key), limit=1, created_after=revisions[b"c"]))
    assert [kv.key[-1:] for kv in found.kvs] == [b"a"]


def test_what_is_deleted_is_counted(client, key):
    for number in numbers(3):
        client.put(key + number, number)
    assert client.delete(key + b"0") == 1
    assert client.delete(key + b"0") == 0
    assert client.delete(key, prefix_end(key)) == 2
    assert client.range(Get(key, prefix_end(key))).count == 0


# ---------------------------------------------------------------- transactions


def holds(client: EtcdClient, *compare: Compare) -> bool:
    return client.txn(compare, []).succeeded


def test_a_key_that_is_not_there_has_revision_and_version_0_and_no_value(client, key):
    for what in ("create", "mod", "version"):
        assert holds(client, Compare(key, what, 0))
        assert not holds(client, Compare(key, what, 0, ">"))
    assert not holds(client, Compare(key, "value", b"a"))


def test_conditions_compare_what_they_say(client, key):
    lease = client.lease_grant(60).id
    created = client.put(key, b"m", lease)
    modified = client.put(key, b"m", lease)
    is_equal = {"create": created, "mod": modified, "version": 2, "lease": lease}
    for what, number in is_equal.items():
        assert holds(client, Compare(key, what, number))
        assert not holds(client, Compare(key, what, number + 1))
        assert holds(client, Compare(key, what, number + 1, "!="))
        assert holds(client, Compare(key, what, number - 1, ">"))
        assert not holds(client, Compare(key, what, number, ">"))
        assert holds(client, Compare(key, what, number + 1, "<"))
    assert holds(client, Compare(key, "value", b"m"))
    assert holds(client, Compare(key, "value", b"z", "<"))
    assert holds(client, Compare(key, "value", b"a", ">"))
    assert not holds(client, Compare(key, "value", b""))
    assert holds(client, Compare(key, "create", 0, "!="), Compare(key, "value", b"a", "!="))
    assert not holds(client, Compare(key, "create", 0, "!="), Compare(key, "value", b"a"))
    client.lease_revoke(lease)


def test_a_transaction_does_one_branch_at_one_revision(client, key):
    condition = [Compare(key, "create", 0)]
    success = [Put(key, b"a"), Put(key + b"1", b"b"), Get(key, prefix_end(key))]
    failure = [Delete(key, prefix_end(key)), Get(key)]
    first = client.txn(condition, success, failure)
    assert first.succeeded
    kvs = (
        KeyValue(key, b"a", first.revision, first.revision, 1),
        KeyValue(key + b"1", b"b", first.revision, first.revision, 1),
    )
    assert first.results == (PutDone(), PutDone(), Range(first.revision, kvs, 2, False))
    second = client.txn(condition, success, failure)
    assert not second.succeeded
    assert second.revision == first.revision + 1
    assert second.results == (Deleted(2), Range(second.revision, (), 0, False))


def test_a_transaction_that_only_reads_changes_no_revision(client, key):
    revision = client.put(key, b"a")
    found = client.txn([], [Get(key)])
    assert (found.succeeded, found.revision) == (True, revision)
    assert found.results == (Range(revision, (KeyValue(key, b"a", revision, revision, 1),), 1),)


def test_a_transaction_takes_128_operations_and_no_more(client, key):
    puts = [Put(key + b"%d" % number, b"") for number in range(129)]
    assert len(client.txn([], puts[:128]).results) == 128
    with pytest.raises(TooLargeError):
        client.txn([], puts)
    assert client.range(Get(key, prefix_end(key))).count == 128


def test_one_key_is_not_put_twice_in_one_transaction(client, key):
    with pytest.raises(EtcdError, match="duplicate key"):
        client.txn([], [Put(key, b"a"), Put(key, b"b")])
    assert client.range(Get(key)).count == 0


@pytest.mark.parametrize("size", [1_600_000, 4_000_000])
def test_what_is_larger_than_etcd_takes_is_refused_and_named(client, key, size):
    with pytest.raises(TooLargeError, match=client.where):
        client.put(key, b"x" * size)
    assert client.range(Get(key)).count == 0


def test_an_empty_key_is_refused(client):
    with pytest.raises(EtcdError, match="key is not provided"):
        client.put(b"", b"a")


# ---------------------------------------------------------------- leases


def test_a_lease_is_granted_kept_alive_and_revoked_with_its_keys(client, key):
    lease = client.lease_grant(60)
    assert (lease.id > 0, lease.ttl) == (True, 60)
    client.put(key, b"a", lease.id)
    client.txn([], [Put(key + b"1", b"b", lease.id)])
    assert [kv.lease for kv in client.range(Get(key, prefix_end(key))).kvs] == [lease.id] * 2
    assert client.lease_keepalive(lease.id) == 60
    client.lease_revoke(lease.id)
    assert client.range(Get(key, prefix_end(key))).count == 0
    assert client.lease_keepalive(lease.id) == 0
    client.lease_revoke(lease.id)


def test_a_lease_may_have_a_number_of_ones_own(client):
    number = uuid.uuid4().int >> 66
    assert client.lease_grant(60, number).id == number
    # The one that there is stays as it is.
    assert (client.lease_grant(100, number).id, client.lease_grant(100, number).ttl) == (number, 60)
    client.lease_revoke(number)
    assert client.lease_grant(100, number).ttl == 100
    client.lease_revoke(number)


def test_a_lease_that_is_too_short_lives_longer(client):
    lease = client.lease_grant(1)
    assert lease.ttl >= 1
    client.lease_revoke(lease.id)


def test_a_lease_that_is_not_kept_alive_ends_with_its_keys(client, key):
    lease = client.lease_grant(1)
    client.put(key, b"a", lease.id)
    with_watch = client.watch(key)
    (event,) = seen(with_watch, len)
    assert event is not None
    assert event.deleted
    assert client.lease_keepalive(lease.id) == 0
    assert client.range(Get(key)).count == 0


def test_nothing_is_put_with_a_lease_that_is_gone(client, key):
    lease = client.lease_grant(60).id
    client.lease_revoke(lease)
    with pytest.raises(LeaseGoneError):
        client.put(key, b"a", lease)
    with pytest.raises(LeaseGoneError):
        client.txn([], [Put(key + b"1", b"b"), Put(key, b"a", lease)])
    assert client.range(Get(key, prefix_end(key))).count == 0


def test_putting_without_a_lease_takes_the_key_from_it(client, key):
    lease = client.lease_grant(60).id
    client.put(key, b"a", lease)
    client.put(key, b"b")
    client.lease_revoke(lease)
    assert client.range(Get(key)).kvs[0].value == b"b"


# ---------------------------------------------------------------- watches


def test_a_watch_sees_what_happens_after_it_began_in_order(client, key):
    client.put(key, b"before")
    watch = client.watch(key, prefix_end(key))
    for number in numbers(100):
        client.put(key + number, number)
    assert values(watch, 100) == numbers(100)
    watch.close()


def test_a_watch_of_one_key_sees_no_other(client, key):
    watch = client.watch(key)
    client.put(key + b"1", b"another")
    revision = client.put(key, b"a")
    assert seen(watch, len) == [Event(KeyValue(key, b"a", revision, revision, 1))]
    client.delete(key)
    assert seen(watch, len) == [Event(KeyValue(key, b"", 0, revision + 1), True)]


def test_a_watch_begins_at_a_revision(client, key):
    revisions = [client.put(key, number) for number in numbers(3)]
    watch = client.watch(key, start_revision=revisions[1])
    assert values(watch, 2) == [b"1", b"2"]
    later = client.watch(key, start_revision=revisions[2] + 2)
    client.put(key, b"not yet")
    client.put(key, b"now")
    assert values(later, 1) == [b"now"]


def test_a_watch_says_from_where_on_it_tells(client, key):
    revision = client.put(key, b"a")
    assert client.watch(key).since == revision + 1
    assert client.watch(key, start_revision=revision).since == revision


def test_the_events_of_a_transaction_come_together(client, key):
    watch = client.watch(key, prefix_end(key))
    client.txn([], [Put(key + number, number) for number in numbers(10)])
    found: list[Event] | None = []
    while not found:
        found = watch.next(10)
    assert [event.kv.value for event in found] == numbers(10)
    assert len({event.kv.mod_revision for event in found}) == 1


def test_a_watch_waits_no_longer_than_it_is_told_to(client, key):
    watch = client.watch(key)
    began = time.monotonic()
    assert watch.next(0.05) == []
    assert time.monotonic() - began >= 0.05
    assert watch.next(0) == []


def test_a_watch_takes_large_events_and_many(client, key):
    first = client.put(key, b"")
    for number in range(20):
        client.put(key, bytes([number]) * 1_000_000)
    watch = client.watch(key, start_revision=first + 1)
    assert [value[:1] for value in values(watch, 20)] == [bytes([n]) for n in range(20)]
    # More revisions than etcd sends at once.
    first = client.put(key, b"")
    for start in range(0, 2500, 100):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: client.put(key, b"%d" % n), range(start, start + 100)))
    found = seen(client.watch(key, start_revision=first + 1), lambda found: len(found) >= 2500)
    revisions = [event.kv.mod_revision for event in found if event]
    assert revisions == list(range(first + 1, first + 2501))


def test_a_watch_is_closed_by_another_thread_while_it_waits(client, key):
    before = threads()
    watch = client.watch(key)
    (its,) = threads() - before
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch.next, 60)
        eventually(waiting.running)
        watch.close()
        with pytest.raises(EtcdError, match="closed"):
            waiting.result(30)
    with pytest.raises(EtcdError, match="closed"):
        watch.next(60)
    watch.close()
    its.join(30)
    assert not its.is_alive()


def test_closing_a_watch_leaves_the_connection_to_the_others(kind, client, key):
    other = client.watch(key)
    client.watch(key).close()
    connection = client._connection
    assert connection is not None
    for _ in range(10):
        watch = client.watch(key)
        with ThreadPoolExecutor(4) as pool:
            puts = [pool.submit(client.put, key, b"a") for _ in range(20)]
            watch.close()
            for put in puts:
                put.result(30)
    assert client._connection is connection
    assert len(values(other, 200)) == 200


def test_a_watch_is_told_of_a_compaction_and_goes_on(client, server, key):
    first = client.put(key, b"0")
    for number in numbers(5):
        last = client.put(key, number)
    servers.compact(server, last)
    watch = client.watch(key, start_revision=first)
    found = seen(watch, lambda found: len(found) >= 2)
    assert [event and event.kv.value for event in found] == [None, b"4"]
    client.put(key, b"later")
    assert values(watch, 1) == [b"later"]


def test_a_watch_that_is_up_to_date_survives_a_compaction(client, server, key):
    watch = client.watch(key)
    servers.compact(server, client.put(key, b"a"))
    client.put(key, b"b")
    assert values(watch, 2) == [b"a", b"b"]


def test_a_watch_that_nobody_has_any_more_ends(client, key):
    before = threads()
    watch = client.watch(key)
    (its,) = threads() - before
    del watch
    its.join(30)
    assert not its.is_alive()


# ---------------------------------------------------------------- a client


def test_sixteen_threads_share_a_client(client, key):
    watch = client.watch(key, prefix_end(key))

    def count(number: int) -> None:
        for _ in range(20):
            while True:
                found = client.range(Get(key)).kvs
                old = int(found[0].value) if found else 0
                condition = Compare(key, "mod", found[0].mod_revision if found else 0)
                if client.txn([condition], [Put(key, b"%d" % (old + 1))]).succeeded:
                    break

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(count, range(16)))
    assert client.range(Get(key)).kvs[0].value == b"320"
    assert values(watch, 320) == [b"%d" % number for number in range(1, 321)]


def test_a_client_that_is_closed_says_so_and_ends_its_watches(client, key):
    watch = client.watch(key)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch.next, 60)
        client.close()
        client.close()
        with pytest.raises(EtcdError, match="closed"):
            waiting.result(30)
    with pytest.raises(EtcdError, match="closed"):
        client.range(Get(key))
    with pytest.raises(EtcdError, match="closed"):
        client.watch(key, start_revision=1)


def test_a_client_is_closed_while_others_use_it(kind, server, key):
    client = make(kind, server.endpoint)
    begun = threading.Barrier(9)

    def work() -> None:
        client.put(key, b"")
        begun.wait(30)
        while True:
            client.put(key, b"")

    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(work) for _ in range(8)]
        begun.wait(30)
        client.close()
        for each in working:
            with pytest.raises(EtcdError):
                each.result(30)


def test_a_client_tells_who_is_there(client, server):
    status = client.status()
    assert status.version.startswith("3.")
    assert status.leader
    assert server.endpoint in client.where


def test_an_error_says_where(client, key):
    with pytest.raises(EtcdError, match=client.where):
        client.put(key, b"a", 12345)


def test_a_full_database_is_an_error_that_says_what_to_do(kind, binary, key):
    settings = {"quota-backend-bytes": 1 << 20}
    with EtcdServer(binary=binary, durable=False, settings=settings) as server:
        client = make(kind, server.endpoint)

        def fill() -> None:
            # etcd knows how large it is only when it has written what it holds, now and then.
            for _ in range(5000):
                client.put(key, b"x" * 100_000)

        with pytest.raises(NoSpaceError, match="alarm disarm"):
            fill()
        with pytest.raises(NoSpaceError):
            client.txn([], [Put(key, b"a")])
        with pytest.raises(NoSpaceError):
            client.lease_grant(60)
        # Reading needs no room, nor does deleting.
        assert client.range(Get(key)).count == 1
        assert client.delete(key) == 1
        client.close()
