"""What every store does with values, directly and through a PrefixStore."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import DistError, DistStoreError

from .conftest import QUICK

ALL_BYTES = bytes(range(256)) * 3
SOON = timedelta(milliseconds=200)
LIMIT = 20.0


@pytest.mark.parametrize("value", ["text", "", "é", b"\x00\xff", b"", bytearray(b"x"), ALL_BYTES])
def test_a_value_comes_back_as_bytes(store, value):
    store.set("key", value)
    assert store.get("key") == (value.encode() if isinstance(value, str) else bytes(value))


@pytest.mark.parametrize("key", ["", "a b\n", "é", "x" * 5000, "{other}", "a:b"])
def test_any_text_is_a_key(store, key):
    store.set(key, "value")
    assert store.get(key) == b"value"
    assert store.check([key])


def test_the_last_value_that_was_set_is_there(store):
    store.set("key", "one")
    store.set("key", "two")
    assert store.get("key") == b"two"


def test_other_stores_on_the_same_data_see_it(open_store):
    open_store().set("key", "value")
    assert open_store().get("key") == b"value"


@pytest.mark.parametrize("value", [3, None, 1.5, memoryview(b"x"), "\ud800"])
def test_what_is_neither_text_nor_bytes_is_a_type_error(store, value):
    with pytest.raises(TypeError):
        store.set("key", value)
    with pytest.raises(TypeError):
        store.set(value, "x")
    assert not store.check(["key"])


def test_add_counts_from_nothing_and_in_both_directions(store):
    assert store.add("n", 5) == 5
    assert store.add("n", -7) == -2
    assert store.get("n") == b"-2"
    assert store.add("zero", 0) == 0
    assert store.check(["zero"])
    assert store.add("n", True) == -1


def test_add_counts_on_from_a_number_that_was_set(store):
    store.set("n", "41")
    assert store.add("n", 1) == 42


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("digits", range(13, 17))
def test_add_is_exact_where_a_number_gets_one_more_digit(store, digits, sign):
    most = sign * (10**digits - 1)
    assert store.add("k", most) == most
    assert [store.add("k", sign) for _ in range(2)] == [most + sign, most + 2 * sign]
    assert store.get("k") == str(most + 2 * sign).encode()


def test_add_is_exact_to_64_bits(store):
    assert store.add("n", 2**63 - 2) == 2**63 - 2
    assert store.add("n", 1) == 2**63 - 1
    assert store.add("m", -(2**63) + 1) == -(2**63) + 1
    assert store.add("m", 10) == -(2**63) + 11
    assert store.add("k", 2**53) == 2**53
    assert store.add("k", 1) == 2**53 + 1


@pytest.mark.parametrize("amount", [1.5, "1", None, 2**63, -(2**63) - 1])
def test_adding_what_is_no_number_of_64_bits_is_a_type_error(store, amount):
    with pytest.raises(TypeError):
        store.add("n", amount)


@pytest.mark.parametrize("value", ["abc", ""])
def test_adding_to_what_is_no_number_is_an_error(open_store, value):
    open_store().set("n", value)
    with pytest.raises(DistError):
        open_store().add("n", 1)
    assert open_store().get("n") == value.encode()


def test_compare_set_creates_where_nothing_was_expected(store):
    assert store.compare_set("key", "", "one") == b"one"
    assert store.get("key") == b"one"


def test_compare_set_on_a_missing_key_answers_the_expectation_and_creates_nothing(store):
    assert store.compare_set("key", "other", "one") == b"other"
    assert not store.check(["key"])


def test_compare_set_changes_what_was_expected_and_nothing_else(store):
    store.set("key", "one")
    assert store.compare_set("key", "other", "two") == b"one"
    assert store.compare_set("key", "", "two") == b"one"
    assert store.compare_set("key", "one", b"\x00\xff") == b"\x00\xff"
    assert store.compare_set("key", b"\x00\xff", "") == b""
    assert store.compare_set("key", "", "three") == b"three"
    assert store.get("key") == b"three"


def test_compare_set_can_create_an_empty_value(store):
    assert store.compare_set("key", "", "") == b""
    assert store.check(["key"])


def test_of_many_that_compare_and_set_one_wins(open_store):
    stores = [open_store() for _ in range(8)]
    answers: list[bytes] = []

    def compete(number: int) -> None:
        answers.append(stores[number].compare_set("key", "", str(number)))

    threads = [threading.Thread(target=compete, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert answers == [stores[0].get("key")] * 8


def test_append_lengthens_and_creates(store):
    store.append("key", "one")
    store.append("key", b"\xff")
    store.append("key", "")
    assert store.get("key") == b"one\xff"
    store.append("empty", "")
    assert store.check(["empty"])


def test_many_values_are_set_and_read_at_once_in_order(store):
    store.multi_set(["a", "b"], ["one", b"\xff"])
    assert store.multi_get(["b", "a", "b"]) == [b"\xff", b"one", b"\xff"]
    store.multi_set([], [])
    assert store.multi_get([]) == []


def test_as_many_keys_as_values_are_needed(store):
    with pytest.raises(DistStoreError, match="multiSet keys and values vectors must be of same"):
        store.multi_set(["a", "b"], ["one"])


def test_ten_thousand_values_are_read_at_once(store):
    keys = [f"key/{number}" for number in range(10_000)]
    store.multi_set(keys, [str(number) for number in range(10_000)])
    assert store.multi_get(keys) == [str(number).encode() for number in range(10_000)]


def test_a_large_value_comes_back(store):
    value = ALL_BYTES * 10_000
    store.set("key", value)
    assert store.get("key") == value


def test_large_values_and_small_ones_are_set_together(store):
    values = [b"small", ALL_BYTES * 100, b"", ALL_BYTES * 200, b"last"]
    keys = [str(number) for number in range(len(values))]
    store.multi_set(keys, values)
    assert store.multi_get(keys) == values


def test_check_says_whether_all_keys_are_there(store):
    store.set("a", "")
    assert store.check([])
    assert store.check(["a"])
    assert store.check(("a", "a"))
    assert not store.check(["a", "b"])
    assert not store.check(["b"])


def test_a_store_has_the_extended_operations(store):
    assert store.has_extended_api()


def test_a_clone_is_another_store_on_the_same_data(open_store):
    store = open_store(7.0)
    store.set("key", "value")
    clone = store.clone()
    assert clone is not store
    assert clone.get("key") == b"value"
    assert clone.timeout == timedelta(seconds=7)
    clone.set_timeout(timedelta(seconds=1))
    assert store.timeout == timedelta(seconds=7)
    del store
    clone.set("other", "x")
    assert open_store().get("other") == b"x"


def test_the_timeout_is_what_was_set(store):
    store.set_timeout(timedelta(milliseconds=1500))
    assert store.timeout == timedelta(milliseconds=1500)


def test_a_deleted_key_is_gone(whole):
    whole.set("key", "value")
    assert whole.delete_key("key") is True
    assert whole.delete_key("key") is False
    assert not whole.check(["key"])


def test_keys_are_counted_and_listed(whole):
    assert whole.num_keys() == 0
    assert whole.list_keys() == []
    for key in ("a", "b", "a", "é"):
        whole.set(key, "x")
    whole.add("n", 1)
    whole.queue_push("queue", "x")
    assert whole.num_keys() == 4
    assert sorted(key.removeprefix("prefix/") for key in whole.list_keys()) == ["a", "b", "n", "é"]


def test_a_missing_key_is_waited_for_until_the_timeout(open_store):
    store = open_store(0.2)
    start = time.monotonic()
    with pytest.raises(DistStoreError, match=r"^wait timeout after 200ms, keys: /(prefix/)?key$"):
        store.get("key")
    assert 0.15 < time.monotonic() - start < 5


def test_the_timeout_of_a_wait_goes_before_the_stores(store):
    store.set("there", "x")
    with pytest.raises(
        DistStoreError,
        match=r"^wait timeout after 200ms, keys: /(prefix/)?a, /(prefix/)?there, /(prefix/)?b$",
    ):
        store.wait(["a", "there", "b"], SOON)


def test_a_missing_key_among_many_is_waited_for(open_store):
    store = open_store(0.2)
    store.set("a", "x")
    with pytest.raises(DistStoreError, match=r"keys: /(prefix/)?a, /(prefix/)?b$"):
        store.multi_get(["a", "b"])


def test_what_is_there_is_not_waited_for(store):
    store.set("a", "")
    store.wait(["a", "a"], SOON)
    store.wait(["a"])
    store.wait([], SOON)
    store.wait([])


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.set("key", "1"),
        lambda store: store.add("key", 1),
        lambda store: store.compare_set("key", "", "1"),
        lambda store: store.append("key", "1"),
        lambda store: store.multi_set(["other", "key"], ["2", "1"]),
    ],
    ids=["set", "add", "compare_set", "append", "multi_set"],
)
def test_every_way_of_writing_a_key_wakes_who_waits_for_it(open_store, write):
    waiters = [open_store() for _ in range(3)]
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(waiters[0].get("key"))),
        threading.Thread(target=lambda: found.append(waiters[1].multi_get(["key"]))),
        threading.Thread(target=lambda: found.append(waiters[2].wait(["key"]))),
    ]
    writer = open_store()
    start = time.monotonic()
    for thread in threads:
        thread.start()
    write(writer)
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(map(str, found)) == sorted(map(str, [b"1", [b"1"], None]))
    assert time.monotonic() - start < QUICK


def test_keys_that_come_one_by_one_in_any_order_are_all_waited_for(open_store):
    keys = [f"key/{number}" for number in range(50)]
    waiter, writer = open_store(), open_store()
    found: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: found.append(waiter.multi_get(keys)))
    thread.start()
    for key in reversed(keys[::2]):
        writer.set(key, key)
    for key in keys[1::2]:
        writer.set(key, key)
    thread.join(LIMIT)
    assert found == [[key.encode() for key in keys]]


@pytest.mark.parametrize("keys", ["ab", 3, [3], None])
def test_keys_that_are_no_sequence_of_texts_are_a_type_error(store, keys):
    for operation in (store.check, store.wait, store.multi_get):
        with pytest.raises(TypeError):
            operation(keys)
