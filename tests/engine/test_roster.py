"""A session over get and set alone: the roster inside the document's state."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv import RendezvousConnectionError, RendezvousStateError
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv.dynamic_rendezvous.roster import DocumentSession

from .memory import Memory, MemoryBackend

LIMIT = 60.0


@pytest.fixture(params=[False, True], ids=["tells who won", "compares bytes"])
def backend(request) -> MemoryBackend:
    return MemoryBackend(Memory(), compares_bytes=request.param)


def session(backend: MemoryBackend) -> DocumentSession:
    return DocumentSession(backend, threading.Lock())


def both(backend: MemoryBackend) -> tuple[DocumentSession, DocumentSession]:
    other = MemoryBackend(backend.memory, compares_bytes=backend.compares_bytes)
    return session(backend), session(other)


def test_a_run_that_nobody_has_created_has_nothing(backend):
    one = session(backend)
    assert one.read(None) is None
    assert one.records(0) == []
    assert one.beats([3]) == {3: 0}
    assert one.fetch("nonce", ["x"]) == [None]
    assert backend.memory.state is None


def test_the_document_is_created_once_and_replaced_by_its_token(backend):
    one, two = both(backend)
    first = one.swap(b"first", None)
    assert first.won
    late = two.swap(b"late", None)
    assert (late.won, late.document, late.token) == (False, b"first", first.token)
    second = two.swap(b"second", late.token)
    assert second.won
    stale = one.swap(b"stale", first.token)
    assert (stale.won, stale.document) == (False, b"second")
    assert one.read(first.token) == (b"second", second.token)


def test_of_two_writers_of_the_same_bytes_only_one_wins(backend):
    one, two = both(backend)
    token = one.swap(b"first", None).token
    assert [s.swap(b"same", token).won for s in (one, two)] == [True, False]


def test_a_token_is_not_valid_again_when_the_same_document_returns(backend):
    one = session(backend)
    old = one.swap(b"a", None).token
    token = one.swap(b"b", old).token
    one.swap(b"a", token)
    assert not one.swap(b"c", old).won


def test_many_writers_at_once_each_take_effect_once(backend):
    count, times = 4, 10
    sessions = [session(MemoryBackend(backend.memory)) for _ in range(count)]
    tickets: list[int] = []

    def write(number: int) -> None:
        for step in range(times):
            tickets.append(sessions[number].enter(f"{number}.{step}".encode()))
            sessions[number].beat(3)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(tickets) == list(range(1, count * times + 1))
    found = [data.decode() for _, data in sessions[0].records(0) if data]
    assert len(set(found)) == count * times
    assert sessions[0].beats([3]) == {3: count * times}


def test_exactly_one_of_many_that_replace_a_document_at_once_is_told_that_it_won(backend):
    shared = backend.memory
    token = session(backend).swap(b"first", None).token
    won: list[bool] = []

    def write(number: int) -> None:
        one = session(MemoryBackend(shared, compares_bytes=backend.compares_bytes))
        won.append(one.swap(b"same", token).won)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(won) == [False] * 5 + [True]


def test_a_wait_ends_when_the_document_changes_but_not_when_the_roster_does(backend):
    one, two = both(backend)
    token = one.swap(b"first", None).token
    ended = threading.Event()

    def wait() -> None:
        two.wait(token, LIMIT)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    one.enter(b"x")
    one.beat(3)
    one.swap(b"second", token)
    assert ended.wait(LIMIT)
    assert two.read(token) is not None


def test_a_wait_ends_by_its_time_and_by_closing(backend):
    one = session(backend)
    token = one.swap(b"first", None).token
    one.wait(token, 0.01)
    one.wait_records(0, 1, 0.01)
    one.close()
    one.wait(token, LIMIT)


def test_a_wait_for_records_ends_with_the_last_of_them(backend):
    one, two = both(backend)
    thread = threading.Thread(target=two.wait_records, args=(0, 2, LIMIT))
    thread.start()
    one.enter(b"a")
    one.enter(b"b")
    thread.join(LIMIT)
    assert not thread.is_alive()


def test_forgotten_records_are_marked_and_their_tickets_never_return(backend):
    one = session(backend)
    for text in (b"a", b"b", b"c"):
        one.enter(text)
    one.publish("old", {"1": b"x"})
    one.publish("new", {"1": b"y"})
    one.forget(0, 2, "old", ["1"])
    assert one.records(0) == [(1, b"-"), (2, b"-"), (3, b"c")]
    assert one.records(2) == [(3, b"c")]
    assert one.enter(b"d") == 4
    assert one.fetch("old", ["1"]) == [None]
    assert one.fetch("new", ["1", "2"]) == [b"y", None]


def state(**changes) -> bytes:
    return json.dumps({"schema": 1, "write": "w", **changes}).encode()


OPERATIONS = {
    "read": lambda s: s.read(None),
    "swap": lambda s: s.swap(b"x", None),
    "wait": lambda s: s.wait(0, 0.0),
    "enter": lambda s: s.enter(b"x"),
    "records": lambda s: s.records(0),
    "beat": lambda s: s.beat(3),
    "beats": lambda s: s.beats([3]),
    "publish": lambda s: s.publish("n", {"1": b"x"}),
    "fetch": lambda s: s.fetch("n", ["1"]),
    "forget": lambda s: s.forget(0, 1, "n", ["1"]),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x80\x04N.",
        b"null",
        b"[]",
        state(tail="many"),
        state(tail=-1),
        state(beats={3: -1}),
        state(document=7),
        state(records={"one": "x"}),
        b"[" * 100_000,
        state().ljust(MAX_STATE_BYTES + 1),
    ],
)
def test_garbage_in_the_state_is_a_state_error_for_every_operation(operation, garbage):
    memory = Memory(garbage)
    with pytest.raises(RendezvousStateError, match="The state of the backend 'memory'"):
        OPERATIONS[operation](session(MemoryBackend(memory)))
    assert memory.state == garbage


@given(st.binary(max_size=500), st.sampled_from(sorted(OPERATIONS)))
def test_any_bytes_are_a_state_or_a_state_error(data, operation):
    try:
        OPERATIONS[operation](session(MemoryBackend(Memory(data))))
    except RendezvousStateError:
        return


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.sampled_from(["document", "changes", "tail", "records", "beats", "pieces", "schema"]),
    jsons,
    st.sampled_from(sorted(OPERATIONS)),
)
def test_any_value_in_any_field_is_a_state_or_a_state_error(field, value, operation):
    try:
        OPERATIONS[operation](session(MemoryBackend(Memory(state(**{field: value})))))
    except RendezvousStateError:
        return


def test_a_state_of_a_newer_version_is_named_and_left_alone():
    memory = Memory(state(schema=2, surprise=1))
    with pytest.raises(RendezvousStateError, match=r"newer rdzv \(schema 2"):
        session(MemoryBackend(memory)).enter(b"x")
    assert memory.version == 1


def test_a_tail_that_nobody_can_have_reached_takes_no_unbounded_memory():
    one = session(MemoryBackend(Memory(state(tail=2**60))))
    try:
        assert len(one.records(0)) <= 10**6
    except RendezvousStateError:
        return


def test_a_state_that_grows_too_large_is_refused_with_a_remedy(backend):
    one = session(backend)
    with pytest.raises(RendezvousStateError, match="tens of nodes; use another"):
        one.enter(b"x" * (MAX_STATE_BYTES + 1))
    assert backend.memory.state is None


def test_what_a_backend_raises_is_handed_on(backend):
    backend.failure = RendezvousConnectionError("no line")
    with pytest.raises(RendezvousConnectionError, match="no line"):
        session(backend).read(None)
    backend.failure = OSError("no disk")
    with pytest.raises(OSError, match="no disk"):
        session(backend).enter(b"x")
