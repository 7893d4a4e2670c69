"""A session over get and set alone: the roster inside the document's state."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv import RendezvousConnectionError, RendezvousStateError
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES, WatchingBackend
from rdzv.dynamic_rendezvous.roster import DocumentSession
from rdzv.dynamic_rendezvous.runtime import Runtime

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


def test_only_what_is_to_be_forgotten_is_freed(backend):
    one = session(backend)
    for text in (b"a", b"b", b"c", b"d"):
        one.enter(text)
    one.publish("round", {"1": b"x", "2": b"y"})
    one.forget(1, 3, "round", ["1"])
    assert one.records(0) == [(1, b"a"), (2, b"-"), (3, b"-"), (4, b"d")]
    assert one.fetch("round", ["1", "2"]) == [None, b"y"]
    one.forget(0, 1, "round", ["2"])
    assert one.records(0) == [(1, b"-"), (2, b"-"), (3, b"-"), (4, b"d")]
    assert one.fetch("round", ["1", "2"]) == [None, None]
    kept = json.loads(backend.memory.state)["rosters"][""]
    assert (kept["records"], kept["freed"]) == ({"4": "d"}, 3)
    assert "pieces" not in kept


def test_what_is_published_in_two_parts_is_there_as_a_whole(backend):
    one = session(backend)
    one.publish("round", {"1": b"x"})
    one.publish("round", {"2": b"y"})
    assert one.fetch("round", ["1", "2"]) == [b"x", b"y"]


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


# ---------------------------------------------------------------- lives of the run


def test_who_is_still_in_an_earlier_life_of_the_run_writes_into_that_one(backend):
    one, two = both(backend)
    one.attach("old")
    two.attach("new")
    assert [one.enter(b"a"), one.enter(b"b"), two.enter(b"c")] == [1, 2, 1]
    one.beat(1)
    one.publish("round", {"1": b"x"})
    one.forget(0, 2, "round", [])
    assert two.records(0) == [(1, b"c")]
    assert two.beats([1]) == {1: 0}
    assert two.fetch("round", ["1"]) == [None]
    two.attach("old")
    assert two.records(0) == [(1, b"-"), (2, b"-")]
    assert two.beats([1]) == {1: 1}
    assert two.fetch("round", ["1"]) == [b"x"]


def test_a_wait_for_records_is_not_ended_by_those_of_another_life(backend):
    one, two = both(backend)
    one.attach("old")
    one.enter(b"a")
    two.attach("new")
    two.wait_records(0, 1, 0.01)
    assert two.records(0) == []


# ---------------------------------------------------------------- old reads, and lost writes


class SendsTwice(MemoryBackend):
    """Its library sends the first write again, since the answer was lost, after another's."""

    sent = 0

    def set_state(self, state, token=None):
        self.sent += 1
        if self.sent == 1:
            super().set_state(state, token)
            session(MemoryBackend(self.memory)).beat(1)
        return super().set_state(state, token)


def test_a_record_whose_write_was_sent_twice_has_one_ticket(backend):
    session(backend).swap(b"a document", None)
    entering, other = session(SendsTwice(backend.memory)), session(backend)
    assert entering.enter(b'{"id": "one"}') == 1
    assert other.records(0) == [(1, b'{"id": "one"}')]


def test_who_won_is_told_so_where_the_write_was_sent_twice(backend):
    token = session(backend).swap(b"first", None).token
    swap = session(SendsTwice(backend.memory)).swap(b"second", token)
    assert (swap.won, swap.document) == (True, b"second")


class Busy(Runtime):
    """Others write whenever this node pauses."""

    def __init__(self, others: DocumentSession) -> None:
        self.others = others
        self.pauses = 0

    def sleep(self, seconds: float) -> None:
        self.pauses += 1
        assert self.pauses < 20, "it loses to whoever writes while it pauses, every time"
        self.others.beat(1)


class LosesAtFirst(MemoryBackend):
    """Another is just ahead of its first two writes."""

    attempts = 0

    def set_state(self, state, token=None):
        self.attempts += 1
        if self.attempts <= 2:
            session(MemoryBackend(self.memory)).beat(1)
        return super().set_state(state, token)


def test_a_writer_that_has_paused_goes_on_from_what_there_is_then(backend):
    others = session(backend)
    others.swap(b"a document", None)
    runtime = Busy(others)
    one = DocumentSession(LosesAtFirst(backend.memory), threading.Lock(), runtime)
    assert one.enter(b'{"id": "one"}') == 1
    assert runtime.pauses == 1


class NeverWins(MemoryBackend):
    def set_state(self, state, token=None):
        return (*super().get_state(), False)


def test_a_write_that_never_wins_ends_when_the_session_is_closed(backend):
    session(backend).swap(b"a document", None)
    one = session(NeverWins(backend.memory))
    threading.Timer(0.05, one.close).start()
    with pytest.raises(RendezvousConnectionError, match="no longer written"):
        one.beat(1)


class StaleBackend(MemoryBackend):
    """Reads what was there some writes ago; a write is always on top of what there is."""

    def __init__(self, memory: Memory, behind: int) -> None:
        super().__init__(memory)
        self.behind = behind
        self.past: list[tuple[bytes, str] | None] = []

    def get_state(self):
        found = super().get_state()
        if not self.past or self.past[-1] != found:
            self.past.append(found)
        return self.past[max(0, len(self.past) - 1 - self.behind)]

    def set_state(self, state, token=None):
        answer = super().set_state(state, token)
        self.past.append(super()._get())
        return answer


def test_a_read_is_not_older_than_what_the_caller_knows_even_where_the_backend_reads_old_states():
    backend = StaleBackend(Memory(), 0)
    one = session(backend)
    first = one.swap(b"first", None)
    second = one.swap(b"second", first.token)
    backend.behind = 1
    assert one.read(first.token) == (b"first", first.token)
    assert one.read(second.token) == (b"second", second.token)


def test_a_swap_that_begins_with_an_old_read_takes_effect_all_the_same():
    backend = StaleBackend(Memory(), 0)
    one = session(backend)
    first = one.swap(b"first", None)
    second = one.swap(b"second", first.token)
    backend.behind = 1
    third = one.swap(b"third", second.token)
    assert (third.won, third.document) == (True, b"third")


def go_back(backend: MemoryBackend, state: bytes) -> None:
    """Have the store fail over to a replica that was behind."""
    backend.memory.state = state
    backend.memory.version += 1


def test_a_document_that_was_lost_is_not_taken_for_an_old_read(backend):
    one = session(backend)
    first = one.swap(b"first", None)
    snapshot = backend.memory.state
    second = one.swap(b"second", first.token)
    go_back(backend, snapshot)
    assert one.read(second.token) == (b"first", first.token)
    lost = one.swap(b"third", second.token)
    assert (lost.won, lost.document, lost.token) == (False, b"first", first.token)
    assert one.read(None) == (b"first", first.token)


def test_a_ticket_that_is_given_a_second_time_breaks_the_connection(backend):
    one = session(backend)
    one.enter(b"a")
    snapshot = backend.memory.state
    one.enter(b"b")
    one.enter(b"c")
    go_back(backend, snapshot)
    with pytest.raises(RendezvousConnectionError, match="has lost tickets"):
        one.enter(b"d")


def test_the_tickets_of_one_life_of_the_run_say_nothing_of_those_of_another(backend):
    one = session(backend)
    one.attach("old")
    assert [one.enter(b"a"), one.enter(b"b")] == [1, 2]
    one.attach("new")
    assert one.enter(b"c") == 1


def test_a_connection_made_after_tickets_were_lost_goes_on_from_there(backend):
    one = session(backend)
    one.enter(b"a")
    snapshot = backend.memory.state
    one.enter(b"b")
    go_back(backend, snapshot)
    assert session(backend).enter(b"c") == 2


# ---------------------------------------------------------------- backends that can watch


SOON = 2.0
"""What these are waited for where nothing wakes them (seconds)."""


class WatchingMemory(MemoryBackend, WatchingBackend):
    """Counts reads, and waits until a test lets it go on."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.reads = 0
        self.waits: list[tuple[str, float]] = []
        self.on_wait: Callable[[], object] = lambda: None

    def get_state(self):
        self.reads += 1
        return super().get_state()

    def wait_state(self, token, timeout):
        self.waits.append((token, timeout))
        self.on_wait()


def test_a_backend_that_can_watch_is_waited_on_and_not_polled():
    backend = WatchingMemory(Memory())
    one, other = session(backend), session(MemoryBackend(backend.memory))
    token = one.swap(b"first", None).token
    changes = iter([lambda: other.enter(b"x"), lambda: other.swap(b"second", token)])

    def change() -> None:
        next(changes)()

    backend.on_wait = change
    backend.reads = 0
    one.wait(token, SOON)
    assert [waited for waited, _ in backend.waits] == ["v1", "v2"]
    assert all(0 < timeout <= SOON for _, timeout in backend.waits)
    assert backend.reads == 3


def test_who_watches_reads_no_more_often_than_who_polls_however_often_others_write():
    backend = WatchingMemory(Memory())
    one, other = session(backend), session(MemoryBackend(backend.memory))
    token = one.swap(b"first", None).token
    backend.on_wait = lambda: other.beat(1)
    backend.reads = 0
    one.wait(token, 0.6)
    # Looks are 2 ms apart at first, and then ever further.
    assert 3 <= backend.reads <= 20


def test_records_are_waited_for_where_the_backend_can_watch():
    backend = WatchingMemory(Memory())
    one, other = session(backend), session(MemoryBackend(backend.memory))
    backend.memory.state = state()
    backend.on_wait = lambda: other.enter(b"x")
    one.wait_records(0, 2, SOON)
    assert len(backend.waits) == 2


def test_a_wait_leaves_the_backend_to_other_threads():
    backend = WatchingMemory(Memory(state()))
    lock = threading.Lock()
    one = DocumentSession(backend, lock)
    held: list[bool] = []

    def look() -> None:
        held.append(lock.locked())
        one.close()

    backend.on_wait = look
    one.wait(0, SOON)
    assert held == [False]


@pytest.mark.parametrize("failure", [RendezvousConnectionError("no line"), OSError("no line")])
def test_what_a_wait_raises_is_handed_on(failure):
    def fail() -> None:
        raise failure

    backend = WatchingMemory(Memory(state()))
    backend.on_wait = fail
    with pytest.raises(type(failure), match="no line"):
        session(backend).wait(0, SOON)


# ---------------------------------------------------------------- what cannot be


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
        state(rosters={"": {"tail": "many"}}),
        state(rosters={"": {"tail": -1}}),
        state(rosters={"": {"tail": 10**12}}),
        state(rosters={"": {"tail": 1, "records": {"2": "x"}}}),
        state(rosters={"": {"beats": {3: -1}}}),
        state(rosters={"": {"records": {"one": "x"}}}),
        state(document=7),
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
    st.sampled_from(["document", "changes", "rosters", "schema"]).map(lambda name: (name,))
    | st.sampled_from(["tail", "freed", "records", "beats", "pieces"]).map(
        lambda name: ("rosters", "", name)
    ),
    jsons,
    st.sampled_from(sorted(OPERATIONS)),
)
def test_any_value_in_any_field_is_a_state_or_a_state_error(path, value, operation):
    for name in reversed(path[1:]):
        value = {name: value}
    try:
        OPERATIONS[operation](session(MemoryBackend(Memory(state(**{path[0]: value})))))
    except RendezvousStateError:
        return


def test_a_state_of_a_newer_version_is_named_and_left_alone():
    memory = Memory(state(schema=2, surprise=1))
    with pytest.raises(RendezvousStateError, match=r"newer rdzv \(schema 2"):
        session(MemoryBackend(memory)).enter(b"x")
    assert memory.version == 1


TOP = 10**7
"""The highest ticket that can be."""


def test_of_tickets_that_are_long_forgotten_a_part_is_told_at_a_time():
    forgotten = {"tail": TOP, "freed": TOP - 1, "records": {TOP: "last"}}
    one = session(MemoryBackend(Memory(state(rosters={"": forgotten}))))
    assert one.records(0) == [(ticket, b"-") for ticket in range(1, 4097)]
    assert one.records(TOP - 4097) == [
        *((ticket, b"-") for ticket in range(TOP - 4096, TOP)),
        (TOP, b"last"),
    ]


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
