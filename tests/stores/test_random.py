"""Random sequences of operations answer alike on all kinds of stores, and on HashStore."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed import DistStoreError, HashStore, QueueEmptyError

from .conftest import KINDS

KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.one_of(st.sampled_from([b"", b"0", b"7", b"x"]), st.binary(max_size=4))
MANY = st.lists(st.tuples(KEYS, VALUES), max_size=4)

OPERATIONS = st.one_of(
    st.tuples(st.just("set"), KEYS, VALUES),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("add"), KEYS.map(lambda key: f"n{key}"), st.integers(-(2**40), 2**40)),
    st.tuples(st.just("get"), KEYS.map(lambda key: f"n{key}")),
    st.tuples(st.just("compare_set"), KEYS, VALUES, VALUES),
    st.tuples(st.just("append"), KEYS, VALUES),
    st.tuples(st.just("delete_key"), KEYS),
    st.tuples(st.just("check"), st.lists(KEYS, max_size=3)),
    st.tuples(st.just("num_keys")),
    st.tuples(st.just("list_keys")),
    st.tuples(st.just("multi_get"), st.lists(KEYS, max_size=3)),
    MANY.map(lambda pairs: ("multi_set", [key for key, _ in pairs], [v for _, v in pairs])),
    st.tuples(st.just("queue_push"), KEYS, VALUES),
    st.tuples(st.just("queue_pop"), KEYS, st.just(False)),
    st.tuples(st.just("queue_len"), KEYS),
)


def answer(store, operation, *arguments) -> object:
    """Carry it out; what would wait is not asked for."""
    names = arguments[0] if operation == "multi_get" else arguments[:1]
    if operation in ("get", "multi_get"):
        # On a HashStore one who reads a key that has only a queue waits.
        listed = store.list_keys()
        if not all(name in listed for name in names):
            return "missing"
    try:
        found = getattr(store, operation)(*arguments)
    except QueueEmptyError:
        return "empty"
    except DistStoreError as exc:
        return str(exc)
    return sorted(found) if operation == "list_keys" else found


@pytest.mark.parametrize("other", ["hash", "tcp"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tcp"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=st.lists(OPERATIONS, max_size=30))
def test_any_sequence_of_operations_answers_alike(request, kind, open_tcp, other, operations):
    store = request.getfixturevalue(f"open_{kind}")(2.0)
    model = HashStore() if other == "hash" else open_tcp(2.0)
    model.set_timeout(timedelta(seconds=2))
    try:
        for operation in operations:
            assert answer(store, *operation) == answer(model, *operation), operation
    finally:
        for each in (store, model):
            for key in each.list_keys():
                each.delete_key(key)
            for key in ("a", "b", "c"):
                while each.queue_len(key):
                    each.queue_pop(key)
