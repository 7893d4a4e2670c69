"""What an EtcdStore does beyond what stores have in common: pushes, lost answers, leases, forks."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, QueueEmptyError

from rdzv_etcd import seam
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import Get, prefix_end
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.store import EtcdStore

from ..etcd.servers import compact, lasting

LIMIT = 30.0
SOON = timedelta(seconds=1)
OTHERS = "others"


class Watched(EtcdClient):
    """A client that counts what it is asked, and loses answers when it is told to.

    ``faults`` holds what happens to the next transactions that may write: None for nothing, or
    what is called with the transaction, before the client says that there was no answer.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: list[str] = []
        self.askers: Counter[int | None] = Counter()
        self.watches: list[tuple[bytes, bytes]] = []
        self.starts: list[int] = []
        self.opened = threading.Condition()
        self.faults: list[Callable[[Callable[[], seam.Txn]], None] | None] = []

    def range(self, get):
        self.asked.append("range")
        return super().range(get)

    def txn(self, compare, success, failure=()):
        self.asked.append("txn")
        self.askers[threading.get_ident()] += 1
        if any(not isinstance(op, Get) for op in success) and self.faults:
            fault = self.faults.pop(0)
            if fault is not None:
                fault(lambda: super(Watched, self).txn(compare, success, failure))
                raise seam.UnavailableError("lost")
        return super().txn(compare, success, failure)

    def lease_keepalive(self, lease):
        self.asked.append("keepalive")
        return super().lease_keepalive(lease)

    def lease_grant(self, ttl, lease=0):
        self.asked.append("grant")
        return super().lease_grant(ttl, lease)

    def watch(self, key, end=b"", start_revision=0):
        watch = super().watch(key, end, start_revision)
        with self.opened:
            self.asked.append("watch")
            self.watches.append((key, end))
            self.starts.append(start_revision)
            self.opened.notify_all()
        return watch

    def wait_for_watches(self, count: int) -> None:
        with self.opened:
            assert self.opened.wait_for(lambda: len(self.watches) >= count, LIMIT)


@pytest.fixture
def watched(etcd_server):
    with contextlib.closing(Watched(etcd_server.endpoint)) as client:
        yield client


@pytest.fixture
def prefix(open_etcd) -> str:
    return str(open_etcd()._prefix)


@pytest.fixture
def store(watched, prefix):
    """A store that has written, so that nothing is new to it."""
    store = EtcdStore(watched, prefix, timedelta(seconds=LIMIT))
    store.set("first", "")
    store.delete_key("first")
    watched.asked.clear()
    return store


@pytest.fixture
def other(open_etcd):
    return open_etcd()


@pytest.fixture
def own():
    """A server that a test may kill, stop or fill."""
    with EtcdServer(binary=lasting(), durable=False) as server:
        yield server


def opened(server: EtcdServer, **options: Any) -> Watched:
    return Watched(server.endpoint, **options)


def in_thread(function) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(function())
        except Exception as exc:  # noqa: BLE001 - the test looks at it.
            answers.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


# What it costs.


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("set", ("key", "1")),
        ("add", ("n", 1)),
        ("append", ("text", "1")),
        ("compare_set", ("new", "", "1")),
        ("delete_key", ("key",)),
        ("multi_set", (["a", "b"], ["1", "2"])),
        ("queue_push", ("queue", "1")),
        ("num_keys", ()),
        ("list_keys", ()),
        ("queue_len", ("queue",)),
        ("check", (["key", "text"],)),
    ],
)
def test_an_operation_is_one_request_where_nobody_else_has_changed_the_key(
    watched, store, operation, arguments
):
    for _ in range(1 if operation == "compare_set" else 3):
        getattr(store, operation)(*arguments)
    assert len(watched.asked) == (1 if operation == "compare_set" else 3)


def test_what_others_have_changed_is_a_second_request(watched, store, other):
    store.add("n", 1)
    assert other.add("n", 1) == 2
    watched.asked.clear()
    assert store.add("n", 1) == 3
    assert watched.asked == ["txn", "txn"]


def test_items_that_one_store_takes_are_one_request_each(watched, store, other):
    for number in range(4):
        other.queue_push("queue", str(number))
    assert [store.queue_pop("queue") for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    assert watched.asked == ["txn"] * 5


def test_threads_do_not_spoil_each_others_attempts(watched, store):
    threads = [in_thread(lambda: store.clone().add("n", 1)) for _ in range(16)]
    for thread, _ in threads:
        thread.join(LIMIT)
    assert sorted(answers[0] for _, answers in threads) == list(range(1, 17))
    assert watched.asked == ["txn"] * 16


def test_the_first_write_of_a_run_makes_the_lease_and_the_others_use_it(watched, prefix):
    stores = [EtcdStore(watched, prefix, ttl=ttl) for ttl in (100, 101)]
    stores[0].set("key", "1")
    assert watched.asked == ["range", "txn", "grant", "txn"]
    watched.asked.clear()
    stores[1].set("key", "1")
    assert watched.asked == ["range", "txn"]


@pytest.mark.parametrize("dense", [True, False])
def test_many_keys_are_read_as_a_range_where_little_else_is_in_it(watched, store, other, dense):
    keys = [f"key/{number:04}" for number in range(1500)]
    other.multi_set(keys[:-1], keys[:-1])
    if not dense:
        other.multi_set([f"{key}-" for key in keys], keys)
    other.queue_push(keys[-1], "item")
    wanted = [*keys[::-1], keys[7]]
    assert store.multi_get(wanted) == [b"", *(key.encode() for key in wanted[1:])]
    assert watched.asked == (["range"] * 3 if dense else ["range"] + ["txn"] * 12)


def test_those_that_are_missing_among_many_are_waited_for(watched, store, other):
    keys = [f"key/{number}" for number in range(600)]
    other.multi_set(keys[10:], keys[10:])
    thread, answers = in_thread(lambda: store.multi_get(keys))
    watched.wait_for_watches(1)
    other.multi_set(keys[:10], keys[:10])
    thread.join(LIMIT)
    assert answers == [[key.encode() for key in keys]]


# Waiting.


def test_one_who_waits_asks_nothing_until_it_is_woken(watched, store, other):
    thread, answers = in_thread(lambda: store.get("key"))
    watched.wait_for_watches(1)
    other.set("another", "1")
    other.set("key2", "1")
    other.set("key", "1")
    thread.join(LIMIT)
    assert answers == [b"1"]
    assert watched.asked == ["range", "watch"]
    # etcd tells a watch that begins behind its last write nothing for up to 100 ms.
    assert watched.starts == [0]


def test_one_who_waits_in_vain_asks_nothing_either(watched, store):
    with pytest.raises(DistStoreError, match="^wait timeout after 1000ms, keys: /a, /b$"):
        store.wait(["a", "b"], SOON)
    assert watched.asked == ["txn", "watch"]


def test_what_is_written_between_the_look_and_the_watch_wakes(watched, store, other, monkeypatch):
    watch = watched.watch

    def late(*arguments):
        other.set(next(keys), "1")
        return watch(*arguments)

    keys = iter(["key", "other"])
    monkeypatch.setattr(watched, "watch", late)
    store.wait(["key"])
    assert store.get("other") == b"1"
    assert next(keys, None) is None


def got_when_set(watched, store, other, value="1") -> list[Any]:
    """What a get of a key answers that is set once there is a watch."""
    thread, answers = in_thread(lambda: store.get("key"))
    watched.wait_for_watches(1)
    other.set("key", value)
    thread.join(LIMIT)
    return answers


def test_a_wait_goes_on_through_an_outage_in_which_it_begins(watched, store, other, monkeypatch):
    watch, failures = watched.watch, iter(range(3))

    def failing(*arguments):
        if next(failures, None) is not None:
            raise seam.UnavailableError("no member")
        return watch(*arguments)

    monkeypatch.setattr(watched, "watch", failing)
    assert got_when_set(watched, store, other) == [b"1"]


def test_a_wait_in_which_no_watch_can_begin_ends_at_its_time(watched, store, monkeypatch):
    def failing(*arguments):
        raise seam.UnavailableError("no member")

    monkeypatch.setattr(watched, "watch", failing)
    with pytest.raises(DistStoreError, match="^wait timeout after 1000ms"):
        store.wait(["key"], SOON)


def test_what_a_member_that_is_behind_tells_is_old(watched, store, other, monkeypatch):
    watch = watched.watch
    before = other._link.range(seam.Get(b"key"), LIMIT).revision
    other.set("key", "old")
    other.delete_key("key")
    monkeypatch.setattr(watched, "watch", lambda key, end: watch(key, end, before + 1))
    assert not store.check(["key"])
    assert got_when_set(watched, store, other, "new") == [b"new"]


def test_keys_that_come_in_order_are_watched_one_after_another(watched, store, other):
    keys = [str(number) for number in range(6)]
    thread, answers = in_thread(lambda: store.multi_get(keys))
    for number, key in enumerate(keys):
        watched.wait_for_watches(number + 1)
        other.set(key, key)
    thread.join(LIMIT)
    assert answers == [[key.encode() for key in keys]]
    assert watched.asked == ["txn"] + ["watch", "txn"] * 6


def test_one_who_waits_hears_only_of_its_key(watched, store):
    with pytest.raises(DistStoreError):
        store.wait(["key"], SOON)
    ((key, end),) = watched.watches
    for name in ("keys", "ke", "", "key\0", "key\0\0", "key\0\1", "key\1"):
        assert not key <= store._keys.value(name.encode()) < end


def test_one_that_waits_does_not_hold_up_others_on_the_same_store(store):
    thread, answers = in_thread(lambda: store.queue_pop("queue"))
    workers = [in_thread(lambda: [store.add("n", 1) for _ in range(50)]) for _ in range(8)]
    for worker, _ in workers:
        worker.join(LIMIT)
    assert store.get("n") == b"400"
    seen = sorted(number for _, found in workers for number in found[0])
    assert seen == list(range(1, 401))
    store.queue_push("queue", "x")
    thread.join(LIMIT)
    assert answers == [b"x"]


def test_a_wait_of_no_time_looks_once_and_a_negative_one_is_an_error(store):
    store.set("there", "")
    store.wait(["there"], timedelta(0))
    with pytest.raises(DistStoreError, match="wait timeout after 0ms, keys: /key"):
        store.wait(["key"], timedelta(0))
    with pytest.raises(ValueError, match="-1"):
        store.wait(["key"], timedelta(seconds=-1))
    with pytest.raises(TypeError):
        store.wait(["key"], 1)


def test_history_that_was_compacted_is_read_afresh(etcd_server, watched, store, other, monkeypatch):
    watch = watched.watch

    def late(*arguments):
        other.set("key", "1")
        other.set("other", "1")
        compact(etcd_server, watched.range(Get(b"x")).revision)
        return watch(*arguments)

    monkeypatch.setattr(watched, "watch", late)
    assert store.get("key") == b"1"


# What is in etcd.


def test_names_with_any_bytes_are_kept_apart(store):
    names = ["", "\0", "\0\0", "a", "a\0", "a\0\0", "a\0\0f", "a\0\xff", "a\1", "v/", "a/b"]
    for name in names:
        store.set(name, name)
        store.queue_push(name, name + "1")
        store.queue_push(name, name + "2")
    assert sorted(store.list_keys()) == sorted(names)
    assert store.num_keys() == len(names)
    for name in names:
        assert store.get(name) == name.encode()
        assert store.delete_key(name)
        assert store.get(name) == b""
        assert [store.queue_pop(name) for _ in range(2)] == [
            f"{name}1".encode(),
            f"{name}2".encode(),
        ]
    assert store.num_keys() == 0


def test_every_key_begins_with_the_prefix_and_has_the_lease(watched, store, prefix):
    store.add("n", 1)
    store.set("a", "1")
    store.append("b", "1")
    store.compare_set("c", "", "1")
    store.multi_set(["d"], ["1"])
    for queue in ("p", "q"):
        store.queue_push(queue, "1")
    store.queue_pop("p")
    store.delete_key("d")
    watched.faults = [lambda call: None]
    store.set("e", "1")
    base = f"{prefix}/".encode()
    found = watched.range(Get(base, prefix_end(base)))
    assert len(found.kvs) > 8
    assert {kv.lease for kv in found.kvs} == {store._link.lease}
    revision = store._link._revision
    assert not [kv for kv in watched.range(Get(b"\0", b"\0")).kvs if kv.mod_revision > revision]


def test_data_whose_lease_has_gone_is_made_anew(watched, store):
    for write in (
        lambda: store.set("a", "1"),
        lambda: store.add("n", 1),
        lambda: store.queue_push("q", "1"),
        lambda: store.multi_set(["a"], ["1"]),
    ):
        write()
        watched.lease_revoke(store._link.lease)
        assert store.num_keys() == 0
        assert not store.check(["q"])
    assert store.add("n", 1) == 1


def test_using_a_store_extends_the_life_of_its_data_now_and_then(watched, store):
    store.set("a", "1")
    assert "keepalive" not in watched.asked
    store._link._touch_at = 0.0
    store.get("a")
    store.get("a")
    assert watched.asked.count("keepalive") == 1
    assert store._link._touch_at > time.monotonic() + 10


def test_waiting_extends_the_life_of_the_data(own):
    with contextlib.closing(opened(own)) as client:
        store = EtcdStore(client, "x", timedelta(seconds=LIMIT), ttl=2)
        store.set("a", "1")
        thread, answers = in_thread(lambda: store.get("key"))
        deadline = time.monotonic() + LIMIT
        while client.asked.count("keepalive") < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        store.set("key", "1")
        thread.join(LIMIT)
        assert answers == [b"1"]


def test_data_that_nobody_uses_is_gone(own):
    with contextlib.closing(opened(own)) as client:
        store = EtcdStore(client, "x", timedelta(seconds=LIMIT), ttl=1)
        store.set("a", "1")
        deadline = time.monotonic() + LIMIT
        while client.range(Get(b"\0", b"\0")).kvs:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_stores_of_other_prefixes_are_other_stores(etcd_client, prefix):
    one, another = EtcdStore(etcd_client, prefix), EtcdStore(etcd_client, f"{prefix}0")
    one.set("key", "1")
    assert another.num_keys() == 0
    assert EtcdStore(etcd_client, f"{prefix}/").get("key") == b"1"


def test_what_is_no_client_no_prefix_and_no_time_are_errors(etcd_client):
    with pytest.raises(TypeError, match="EtcdClient"):
        EtcdStore(object(), "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefix"):
        EtcdStore(etcd_client, "")
    with pytest.raises(ValueError, match="above zero"):
        EtcdStore(etcd_client, "x", ttl=0)
    with pytest.raises(ValueError, match="below zero"):
        EtcdStore(etcd_client, "x", retry_timeout=timedelta(-1))


def test_the_timeout_is_torchs_where_none_is_given(etcd_client, prefix):
    assert EtcdStore(etcd_client, prefix).timeout == timedelta(minutes=5)
    assert prefix in repr(EtcdStore(etcd_client, prefix))


# Errors.


@pytest.mark.parametrize("size", [1_600_000, 3_000_000])
def test_a_value_that_is_too_large_is_a_clear_error_and_changes_nothing(own, size):
    with contextlib.closing(opened(own)) as client:
        store = EtcdStore(client, "x", timedelta(seconds=LIMIT))
        store.set("key", "1")
        for write in (
            lambda: store.set("key", bytes(size)),
            lambda: store.append("key", bytes(size)),
            lambda: store.compare_set("key", "1", bytes(size)),
            lambda: store.queue_push("key", bytes(size)),
            lambda: store.multi_set(["a", "key"], ["1", bytes(size)]),
        ):
            with pytest.raises(DistStoreError, match=rf"'key' writes {size}.*--max-request-bytes"):
                write()
        assert store.get("key") == b"1"
        values = [bytes([number]) * 1_000_000 for number in range(4)]
        store.multi_set(list("abcd"), values)
        assert store.multi_get(list("abcd")) == values


@pytest.mark.parametrize("value", ["abc", "", " 1", "007", "1.5", "-0", "9" * 19, "9" * 20])
def test_adding_to_what_is_no_number_is_a_store_error_and_changes_nothing(store, value):
    store.set("n", value)
    with pytest.raises(DistStoreError, match="'n' is not an integer of 64 bits"):
        store.add("n", 1)
    assert store.get("n") == value.encode()


def test_adding_beyond_64_bits_is_a_store_error(store, other):
    store.add("n", 2**63 - 1)
    with pytest.raises(DistStoreError, match="overflow"):
        store.add("n", 1)
    assert store.get("n") == str(2**63 - 1).encode()
    other.set("n", "5")  # What the store remembers is not what counts.
    assert store.add("n", 1) == 6


def test_a_server_that_is_not_there_is_a_network_error_without_the_password():
    with EtcdServer(durable=False) as server:
        client = opened(server, username="eve", password="hush-hush", timeout=0.5)
        store = EtcdStore(client, "x", SOON, retry_timeout=timedelta(seconds=1))
        store.set("key", "1")
    operations: list[Callable[[], object]] = [
        lambda: store.set("key", "1"),
        lambda: store.get("key"),
        lambda: store.wait(["key", "other"]),
        lambda: store.add("n", 1),
    ]
    for operation in operations:
        with pytest.raises(DistNetworkError, match=f"localhost:{server.port}") as caught:
            operation()
        assert isinstance(caught.value.__cause__, seam.UnavailableError)
        assert "hush-hush" not in "".join(traceback.format_exception(caught.value))
    assert "hush-hush" not in repr(store)


def test_a_client_that_was_closed_is_said_at_once(etcd_server, prefix):
    client = opened(etcd_server)
    store = EtcdStore(client, prefix)
    store.set("key", "1")
    client.close()
    with pytest.raises(DistNetworkError, match="was closed"):
        store.get("key")


def test_a_server_that_ends_ends_a_wait_with_a_network_error(own):
    with contextlib.closing(opened(own, timeout=2)) as client:
        store = EtcdStore(client, "x", timedelta(seconds=LIMIT), retry_timeout=timedelta(seconds=2))
        thread, answers = in_thread(lambda: store.get("key"))
        client.wait_for_watches(1)
        own.kill()
        thread.join(LIMIT)
        assert [type(answer) for answer in answers] == [DistNetworkError]
        assert "This was so for" in str(answers[0])


def test_a_database_that_is_full_is_a_store_error():
    with EtcdServer(durable=False, settings={"quota-backend-bytes": 1 << 20}) as server:
        store = EtcdStore(server.get_client(), "x")
        store.set("key", "1")
        with pytest.raises(DistStoreError, match="space"):
            store.multi_set(list("abcdefgh"), [bytes(1 << 20)] * 8)
        assert store.get("key") == b"1"


# Changes whose answer is lost.


def happened(call: Callable[[], seam.Txn]) -> None:
    call()


def not_sent(call: Callable[[], seam.Txn]) -> None:
    pass


CHANGES: Any = [
    ("set", ("key", "1"), None, b"1"),
    ("add", ("n", 5), 12, b"12"),
    ("append", ("text", "cd"), None, b"abcd"),
    ("compare_set", ("text", "ab", "x"), b"x", b"x"),
    ("compare_set", ("new", "", "x"), b"x", b"x"),
    ("delete_key", ("text",), True, None),
    ("queue_push", ("queue", "three"), None, [b"one", b"two", b"three"]),
    ("queue_push", ("empty", "one"), None, [b"one"]),
    ("queue_pop", ("queue",), b"one", [b"two"]),
    ("queue_pop", ("single",), b"one", []),
    ("multi_set", (["n", "text"], ["1", "2"]), None, b"1"),
]


def prepare(store) -> None:
    store.append("text", "ab")
    store.add("n", 7)
    store.queue_push("queue", "one")
    store.queue_push("queue", "two")
    store.queue_push("single", "one")


def expect(store, operation, arguments, value) -> None:
    name = arguments[0] if isinstance(arguments[0], str) else arguments[0][0]
    if operation.startswith("queue"):
        assert store.queue_len(name) == len(value)
        assert [store.queue_pop(name) for _ in value] == value
        with pytest.raises(QueueEmptyError):
            store.queue_pop(name, False)
    elif value is None:
        assert not store.check([name])
    else:
        assert store.get(name) == value


@pytest.mark.parametrize("fault", [happened, not_sent])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("operation", "arguments", "answer", "value"), CHANGES)
def test_what_is_sent_again_takes_effect_once(
    watched, store, operation, arguments, answer, value, fault, times
):
    prepare(store)
    before = sorted(store.list_keys())
    # Of each pair the second is the fence's.
    watched.faults = [fault, None] * times
    assert getattr(store, operation)(*arguments) == answer
    assert before == [n for n in sorted(store.list_keys()) if n in before] or value is None
    assert store.num_keys() == len(store.list_keys())
    expect(store, operation, arguments, value)


@pytest.mark.parametrize(("operation", "arguments", "answer", "value"), CHANGES)
def test_what_comes_late_changes_nothing(
    watched, store, other, operation, arguments, answer, value
):
    prepare(store)
    late: list[Callable[[], seam.Txn]] = []
    watched.faults = [late.append]
    assert getattr(store, operation)(*arguments) == answer
    # After that others undo it: now the late one would find what it wants to find.
    undo = {"set": "0", "add": "7", "append": "ab", "delete_key": "ab"}
    name = arguments[0] if isinstance(arguments[0], str) else arguments[0][0]
    if operation in undo:
        other.set(name, undo[operation])
        value = undo[operation].encode()
    assert not late[0]().succeeded
    expect(store, operation, arguments, value)


@pytest.mark.parametrize("fault", [happened, not_sent])
@pytest.mark.parametrize(
    ("operation", "arguments", "interfere", "answer", "then"),
    [
        # One that had taken effect before somebody changed it, and one that does so after that.
        ("add", ("n", 5), lambda s: s.append("n", "0"), (12, 75), (b"120", b"75")),
        ("add", ("n", 5), lambda s: s.delete_key("n"), (12, 5), (None, b"5")),
        ("set", ("n", "x"), lambda s: s.set("n", "y"), (None, None), (b"y", b"x")),
        ("set", ("n", "x"), lambda s: s.delete_key("n"), (None, None), (None, b"x")),
        ("append", ("text", "c"), lambda s: s.append("text", "d"), (None,) * 2, (b"abcd", b"abdc")),
        ("compare_set", ("text", "ab", "x"), lambda s: s.set("text", "y"), (b"x", b"y"), b"y"),
        ("delete_key", ("text",), lambda s: s.set("text", "y"), (True, True), (b"y", None)),
        ("delete_key", ("text",), lambda s: s.delete_key("text"), (True, False), None),
    ],
)
def test_what_others_did_meanwhile_is_told_apart(
    watched, store, other, operation, arguments, interfere, answer, then, fault
):
    prepare(store)

    def and_others(call: Callable[[], seam.Txn]) -> None:
        fault(call)
        interfere(other)

    watched.faults = [and_others]
    which = 0 if fault is happened else 1
    assert getattr(store, operation)(*arguments) == answer[which]
    left = then[which] if isinstance(then, tuple) else then
    expect(store, operation, arguments, left)


@pytest.mark.parametrize("fault", [happened, not_sent])
def test_an_item_whose_taking_was_lost_goes_to_one(watched, store, other, fault):
    for number in range(3):
        store.queue_push("queue", str(number))
    others: list[bytes] = []

    def and_others(call: Callable[[], seam.Txn]) -> None:
        fault(call)
        others.append(other.queue_pop("queue"))

    watched.faults = [and_others]
    mine = store.queue_pop("queue")
    rest = store.queue_pop("queue")
    assert sorted([mine, rest, *others]) == [b"0", b"1", b"2"]
    assert mine == (b"0" if fault is happened else b"1")


def test_a_change_that_cannot_be_found_out_about_says_so(etcd_server, watched, store, other):
    store.add("n", 1)

    def and_compacted(call: Callable[[], seam.Txn]) -> None:
        call()
        other.set("n", "50")
        other.set("n", "60")
        compact(etcd_server, other._link._revision)

    watched.faults = [and_compacted]
    with pytest.raises(DistNetworkError, match="Whether add of key 'n' took effect is unknown"):
        store.add("n", 1)
    assert store.get("n") == b"60"


# Servers that go and come.


def test_a_server_that_was_killed_and_restarted_is_used_on(own):
    with contextlib.closing(opened(own)) as client:
        store = EtcdStore(client, "x", timedelta(seconds=LIMIT))
        store.set("key", "1")
        store.add("n", 5)
        waits = [
            in_thread(lambda: store.get("later")),
            in_thread(lambda: store.queue_pop("queue")),
        ]
        client.wait_for_watches(2)
        own.kill()
        during = in_thread(lambda: store.add("n", 1))
        own.restart()
        during[0].join(LIMIT)
        assert during[1] == [6]
        store.set("later", "x")
        store.queue_push("queue", "y")
        for thread, _ in waits:
            thread.join(LIMIT)
        assert [answers for _, answers in waits] == [[b"x"], [b"y"]]


def test_a_paused_server_has_nothing_applied_twice(own):
    with contextlib.closing(opened(own, timeout=0.3)) as client:
        store = EtcdStore(client, "x", timedelta(seconds=LIMIT))
        store.add("n", 1)
        store.queue_push("queue", "one")
        own.pause()
        threads = [
            in_thread(lambda: store.add("n", 1)),
            in_thread(lambda: store.queue_pop("queue")),
            in_thread(lambda: store.append("text", "x")),
        ]
        # Each has been without an answer once at least, and asks again.
        deadline = time.monotonic() + LIMIT
        while not all(client.askers[thread.ident] > 1 for thread, _ in threads):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        own.resume()
        for thread, _ in threads:
            thread.join(LIMIT)
        assert [answers for _, answers in threads] == [[2], [b"one"], [None]]
        assert store.multi_get(["n", "text"]) == [b"2", b"x"]
        assert store.queue_len("queue") == 0


def test_threads_go_on_through_kills_and_pauses_and_nothing_is_lost_or_doubled(own):
    rounds, count = 30, 4
    numbers: list[int] = []
    taken: list[bytes] = []
    errors: list[BaseException] = []
    progress = threading.Condition()

    def work(store, worker: int) -> None:
        try:
            for number in range(rounds):
                found = store.add("n", 1)
                store.append("text", "x")
                store.queue_push("queue", f"{worker}/{number}")
                item = store.queue_pop("queue")
                with progress:
                    numbers.append(found)
                    taken.append(item)
                    progress.notify_all()
        except Exception as exc:  # noqa: BLE001 - the test looks at it.
            with progress:
                errors.append(exc)
                progress.notify_all()

    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(contextlib.closing(EtcdClient(own.endpoint, timeout=0.5)))
            for _ in range(count)
        ]
        stores = [EtcdStore(client, "x", timedelta(seconds=LIMIT)) for client in clients]
        threads = [threading.Thread(target=work, args=pair[::-1]) for pair in enumerate(stores)]
        for thread in threads:
            thread.start()
        for trouble in range(1, 9):
            with progress:
                while not errors and len(numbers) < trouble * 10:
                    assert progress.wait(LIMIT)
            if trouble % 2:
                own.kill()
                own.restart()
            else:
                own.pause()
                time.sleep(0.6)  # Longer than a client waits for its answer.
                own.resume()
        for thread in threads:
            thread.join(2 * LIMIT)
        assert not errors
        assert sorted(numbers) == list(range(1, rounds * count + 1))
        assert stores[0].get("text") == b"x" * rounds * count
        assert sorted(taken) == sorted(
            f"{worker}/{number}".encode() for worker in range(count) for number in range(rounds)
        )


# Processes.


def test_a_forked_child_goes_on_with_the_store(store):
    store.set("key", "1")
    store.add("n", 1)
    thread, answers = in_thread(lambda: store.get("from child"))
    store._client.wait_for_watches(1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert store.get("key") == b"1"
            assert store.add("n", 1) == 2
            store.set("from child", "x")
            store.wait(["from parent"])
            code = 0
        finally:
            os._exit(code)
    thread.join(LIMIT)
    assert answers == [b"x"]
    assert store.add("n", 1) == 3
    store.set("from parent", "x")
    assert os.waitpid(child, 0)[1] == 0
    assert store.add("n", 1) == 4


def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have(watched, store):
    forked, go_on = threading.Event(), threading.Event()

    def hold(call: Callable[[], seam.Txn]) -> None:
        forked.set()
        go_on.wait(LIMIT)
        call()

    watched.faults = [hold]
    thread, answers = in_thread(lambda: store.add("n", 1))
    assert forked.wait(LIMIT)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert store.add("n", 1) == 1
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    thread.join(LIMIT)
    assert answers == [2]


@pytest.mark.parametrize("way", ["direct", "prefixed"])
def test_a_gloo_group_of_two_processes_forms_on_it(own, way):
    worker = Path(__file__).with_name("gloo_worker.py")
    processes = [
        subprocess.Popen([sys.executable, worker, str(rank), "2", str(own.port), way, "etcd"])
        for rank in range(2)
    ]
    try:
        assert [process.wait(90) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait(LIMIT)


# Through a PrefixStore.


def test_torch_does_not_forward_every_operation_to_a_python_store(store):
    prefixed: Any = PrefixStore("prefix", store)
    for operation in (lambda: prefixed.delete_key("a"), prefixed.num_keys):
        with pytest.raises(RuntimeError, match="pure virtual function"):
            operation()
    for other in (
        prefixed.list_keys,
        lambda: prefixed.queue_push("q", "x"),
        lambda: prefixed.queue_pop("q", False),
        lambda: prefixed.queue_len("q"),
    ):
        with pytest.raises(NotImplementedError):
            other()


def test_a_store_lives_on_under_a_prefix_although_nobody_else_holds_it(open_etcd):
    # torch's stubs do not have clone.
    prefixed: Any = PrefixStore("prefix", open_etcd())
    clone = prefixed.clone()
    gc.collect()
    prefixed.set("key", "1")
    assert clone.get("key") == b"1"


def test_the_timeout_set_through_a_prefix_is_the_stores(store):
    PrefixStore("prefix", store).set_timeout(timedelta(seconds=3))
    assert store.timeout == timedelta(seconds=3)


def test_a_closed_store_is_freed(open_etcd):
    store = open_etcd()
    store.set("key", "1")
    store.close()
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
