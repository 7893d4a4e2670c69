"""What every store that has queues does with them."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import DistStoreError, QueueEmptyError

from .conftest import QUICK

LIMIT = 20.0


def test_what_was_pushed_first_comes_first(whole):
    for item in ("one", b"\x00\xff", ""):
        whole.queue_push("queue", item)
    assert whole.queue_len("queue") == 3
    assert [whole.queue_pop("queue") for _ in range(3)] == [b"one", b"\x00\xff", b""]
    assert whole.queue_len("queue") == 0
    whole.queue_push("queue", "again")
    assert whole.queue_pop("queue", False) == b"again"


def test_an_empty_queue_has_nothing_to_pop(whole):
    assert whole.queue_len("queue") == 0
    with pytest.raises(QueueEmptyError, match="^queue is empty$"):
        whole.queue_pop("queue", block=False)


def test_one_who_pops_waits_until_the_timeout(open_whole):
    start = time.monotonic()
    with pytest.raises(DistStoreError, match=r"^wait timeout after 200ms, keys: /(prefix/)?queue$"):
        open_whole(0.2).queue_pop("queue")
    assert 0.15 < time.monotonic() - start < 5


def test_a_queue_with_something_in_it_counts_as_there_and_reads_as_empty(whole):
    whole.queue_push("queue", "x")
    assert whole.check(["queue"])
    whole.wait(["queue"])
    assert whole.get("queue") == b""
    assert whole.multi_get(["queue"]) == [b""]
    assert whole.delete_key("queue") is False
    assert whole.queue_pop("queue") == b"x"
    assert not whole.check(["queue"])


def test_a_queue_and_a_value_of_one_name_are_two_things(whole):
    whole.queue_push("both", "item")
    whole.set("both", "value")
    assert whole.get("both") == b"value"
    assert whole.delete_key("both") is True
    assert whole.queue_pop("both") == b"item"


def test_queues_whose_names_look_alike_are_kept_apart(whole):
    for name in ("1:a", "a", ":a", "11:a"):
        whole.queue_push(name, name)
        whole.queue_push(name, name + "2")
    for name in ("1:a", "a", ":a", "11:a"):
        assert [whole.queue_pop(name), whole.queue_pop(name)] == [
            name.encode(),
            f"{name}2".encode(),
        ]


def test_each_item_goes_to_one_of_those_who_wait(open_whole):
    items = [str(number).encode() for number in range(40)]
    found: list[bytes] = []

    def take(store) -> None:
        found.extend(store.queue_pop("queue") for _ in range(10))

    threads = [threading.Thread(target=take, args=(open_whole(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    writer = open_whole()
    for item in items:
        writer.queue_push("queue", item)
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(found) == sorted(items)


def test_a_push_wakes_who_waits_for_the_key(open_whole):
    waiter, writer = open_whole(), open_whole()
    thread = threading.Thread(target=lambda: waiter.wait(["queue"]))
    start = time.monotonic()
    thread.start()
    writer.queue_push("queue", "x")
    thread.join(LIMIT)
    assert time.monotonic() - start < QUICK
