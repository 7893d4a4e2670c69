"""Hypothesis state machines: random calls of several clients, against a model in Python.

For the authors of backends. :func:`backend_machine` takes anything that implements
``RendezvousBackend``, :func:`session_machine` anything that implements ``Session``. Each
is given a function that begins a new run and returns a function that opens one more
client of it::

    def new_run():
        run_id = uuid.uuid4().hex
        return lambda: MyBackend(connect("localhost"), run_id)

    test_get_and_set = backend_machine(new_run).TestCase

or, with a number of examples of one's own, ``check(backend_machine(new_run), examples=50)``.

One call is made at a time, so that for each there is one right answer. What is seen of
several at once is a matter of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.dynamic_rendezvous.backend import RendezvousBackend, Session, Token

__all__ = ["backend_machine", "check", "session_machine"]

CLIENTS = 3
_SLOTS = (0, 1, 5, 8, 9, 40)
_GONE = b"-"

# The same few again and again, since equal bytes are what confuses backends.
_states = st.sampled_from([b"a", b"b"]) | st.binary(max_size=40)
_documents = (st.sampled_from(["", "a"]) | st.text(max_size=20)).map(
    lambda text: json.dumps({"epoch": "epoch-0", "text": text}, ensure_ascii=False).encode()
)
_clients = st.integers(0, CLIENTS - 1)
_pieces = st.dictionaries(st.sampled_from(["1", "2", "roster-0"]), _documents, max_size=3)
_nonces = st.sampled_from(["nonce-a", "nonce-b"])


def backend_machine(
    new_run: Callable[[], Callable[[], RendezvousBackend]],
) -> type[RuleBasedStateMachine]:
    """A state machine for ``get_state`` and ``set_state``.

    Args:
        new_run: Begins a run that nothing is known of, and returns what opens an
            independent client of it.

    Returns:
        A class with Hypothesis' ``TestCase`` for pytest and unittest; see also :func:`check`.
    """
    return type("BackendMachine", (_BackendRules,), {"new_run": staticmethod(new_run)})


def session_machine(
    new_run: Callable[[], Callable[[], Session]], *, epochs: int = 2
) -> type[RuleBasedStateMachine]:
    """A state machine for all methods of ``Session``.

    Roster, beats and pieces are used once there is a document, as the engine does.

    Args:
        new_run: Begins a run that nothing is known of, and returns what opens an
            independent session of it.
        epochs: How many epochs to work below, one after the other and to and fro; 1
            for sessions that keep everything in one value, which is itself of one epoch.

    Returns:
        A class with Hypothesis' ``TestCase`` for pytest and unittest; see also :func:`check`.
    """
    members = {"new_run": staticmethod(new_run), "epoch_count": epochs}
    return type("SessionMachine", (_SessionRules,), members)


def check(
    machine: type[RuleBasedStateMachine], *, examples: int = 100, steps: int = 40, **others: Any
) -> None:
    """Run a state machine, the same examples at every call.

    Args:
        machine: What :func:`backend_machine` or :func:`session_machine` returned.
        examples: The number of runs.
        steps: The most calls in one run.
        **others: Further settings of Hypothesis.

    Raises:
        AssertionError: The backend has given another answer than the model; Hypothesis
            prints the shortest calls that lead there.
    """
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=settings(chosen, **others))


@dataclass
class _History:
    """Every value that was stored, in order, with its token."""

    values: list[bytes] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)

    @property
    def newest(self) -> Token | None:
        return self.tokens[-1] if self.tokens else None

    @property
    def current(self) -> tuple[bytes, Token] | None:
        return (self.values[-1], self.tokens[-1]) if self.tokens else None

    def append(self, value: bytes, token: Token) -> None:
        assert token is not None, "a value was stored under no token"
        assert token not in self.tokens, f"the token {token!r} names two versions"
        self.values.append(value)
        self.tokens.append(token)

    def place(self, value: bytes, token: Token) -> int:
        """Which version an answer is."""
        assert token in self.tokens, f"{token!r} is the token of nothing that was ever stored"
        place = self.tokens.index(token)
        assert value == self.values[place], f"{token!r} names {self.values[place]!r}, not {value!r}"
        return place


class _BackendRules(RuleBasedStateMachine):
    """Get and set."""

    new_run: Callable[[], Callable[[], RendezvousBackend]]

    def __init__(self) -> None:
        super().__init__()
        open_client = self.new_run()
        self.clients = [open_client() for _ in range(CLIENTS)]
        self.open_client = open_client
        self.history = _History()
        self.turn = 0

    @rule(client=_clients, state=_states)
    def set_what_is_there(self, client: int, state: bytes) -> None:
        """The newest token, or none where there is nothing, wins."""
        answer = self.clients[client].set_state(state, self.history.newest)
        assert answer is not None, "a write with the right token stored nothing"
        stored, token, won = answer
        assert won is True, "a write with the right token lost"
        assert stored == state, f"{state!r} was written, {stored!r} is stored"
        self.history.append(state, token)

    @precondition(lambda self: len(self.history.tokens) > 1)
    @rule(client=_clients, state=_states, data=st.data())
    def set_what_was_there(self, client: int, state: bytes, data: st.DataObject) -> None:
        """A token that was replaced loses, whatever the bytes."""
        token = data.draw(st.sampled_from(self.history.tokens[:-1]), label="token")
        self._lose(client, state, token)

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, state=_states)
    def create_what_is_there(self, client: int, state: bytes) -> None:
        """No token at all loses where there is something."""
        self._lose(client, state, None)

    @rule(client=_clients, state=_states, token=st.sampled_from(["foreign", b"x", -1, 0, 1.5, ()]))
    def set_with_a_foreign_token(self, client: int, state: bytes, token: Any) -> None:
        """A token that this backend never gave out loses, even where there is nothing."""
        self._lose(client, state, token)

    def _lose(self, client: int, state: bytes, token: Token) -> None:
        answer = self.clients[client].set_state(state, token)
        if self.history.current is None:
            assert answer is None, f"nothing can be stored, and {answer!r} is said to be"
            return
        assert answer is not None, "something is stored, and the answer is that nothing is"
        assert answer[2] is False, f"a write with the token {token!r} is said to have won"
        assert answer[:2] == self.history.current, "the answer is not what is stored now"

    @rule(client=_clients)
    def open_anew(self, client: int) -> None:
        """A client that comes later sees the same."""
        self.clients[client] = self.open_client()

    @invariant()
    def the_state_is_that_of_the_model(self) -> None:
        """One client after the other reads what is stored."""
        self.turn += 1
        found = self.clients[self.turn % CLIENTS].get_state()
        assert found == self.history.current, f"read {found!r}, stored is {self.history.current!r}"


@dataclass
class _Epoch:
    """What a session keeps below one epoch."""

    records: list[bytes] = field(default_factory=list)
    beats: dict[int, int] = field(default_factory=dict)
    pieces: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def after(self, ticket: int) -> list[tuple[int, bytes]]:
        return [(t + 1, record) for t, record in enumerate(self.records) if t >= ticket]


class _SessionRules(RuleBasedStateMachine):
    """All of a session."""

    new_run: Callable[[], Callable[[], Session]]
    epoch_count: int

    def __init__(self) -> None:
        super().__init__()
        self.open_session = self.new_run()
        self.sessions = [self.open_session() for _ in range(CLIENTS)]
        self.history = _History()
        self.seen = [-1] * CLIENTS
        """The newest version that each client has been given."""
        self.epochs: dict[str, _Epoch] = {}
        self.epoch = ""
        self.turn = 0

    @initialize(document=st.none() | _documents)
    def begin(self, document: bytes | None) -> None:
        """All work below one epoch, of a run that there may be already."""
        self.attach(0)
        if document is not None:
            self.swap_what_is_there(0, document)

    @rule(number=st.integers(0, 9))
    def attach(self, number: int) -> None:
        """Another epoch has records, beats and pieces of its own."""
        self.epoch = f"epoch-{number % self.epoch_count}"
        for session in self.sessions:
            session.attach(self.epoch)

    @property
    def model(self) -> _Epoch:
        return self.epochs.setdefault(self.epoch, _Epoch())

    def teardown(self) -> None:
        """Closing never raises, however often."""
        for session in [*self.sessions, *self.sessions]:
            session.close()

    @rule(client=_clients)
    def close_and_open_anew(self, client: int) -> None:
        """A session that comes later sees the same."""
        self.sessions[client].close()
        self.sessions[client] = self.open_session()
        self.sessions[client].attach(self.epoch)

    # ------------------------------------------------------------ the document

    @rule(client=_clients, document=_documents)
    def swap_what_is_there(self, client: int, document: bytes) -> None:
        """The newest token, or none where there is nothing, wins."""
        swapped = self.sessions[client].swap(document, self.history.newest)
        assert swapped.won is True, "a swap with the right token lost"
        assert swapped.document == document, f"{document!r} was written, not {swapped.document!r}"
        self.history.append(document, swapped.token)
        self.seen[client] = len(self.history.tokens) - 1

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, document=_documents, data=st.data())
    def swap_what_was_there(self, client: int, document: bytes, data: st.DataObject) -> None:
        """A token that was replaced loses, and so does none where there is something."""
        tokens = [None, *self.history.tokens[:-1]]
        place = data.draw(st.integers(0, len(tokens) - 1), label="version")
        swapped = self.sessions[client].swap(document, tokens[place])
        assert swapped.won is False, f"a swap with the token {tokens[place]!r} won"
        found = self.history.place(swapped.document, swapped.token)
        assert found >= place, "the answer is no newer than the token that lost"
        self.seen[client] = max(self.seen[client], found)

    @rule(client=_clients)
    def read_afresh(self, client: int) -> None:
        """Nothing older is read than this client has seen."""
        self._read(client, None)

    @rule(client=_clients)
    def read_on(self, client: int) -> None:
        """Whoever knows a version is given a newer one where there is one."""
        self._read(client, self.seen[client] if self.seen[client] >= 0 else None)

    def _read(self, client: int, known: int | None) -> None:
        token = None if known is None else self.history.tokens[known]
        found = self.sessions[client].read(token)
        if not self.history.tokens:
            assert found is None, f"there is no document, and {found!r} was read"
            return
        assert found is not None, "there is a document, and none was read"
        place = self.history.place(*found)
        oldest = self.seen[client] if known is None else known
        newest = len(self.history.tokens) - 1
        assert place >= oldest, f"version {place} was read where {oldest} was known"
        assert known is None or place > known or known == newest, "a newer version was not read"
        self.seen[client] = max(self.seen[client], place)

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, data=st.data())
    def wait_for_another(self, client: int, data: st.DataObject) -> None:
        """A wait brings something newer, or nothing."""
        known = data.draw(st.integers(0, len(self.history.tokens) - 1), label="version")
        found = self.sessions[client].wait(self.history.tokens[known], 0.0)
        if found is not None:
            assert self.history.place(*found) > known, "a wait brought nothing new"

    # ------------------------------------------------------------ the roster

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, record=_documents)
    def enter(self, client: int, record: bytes) -> None:
        """Tickets are 1, 2, 3 and so on."""
        for entering in (client, (client + 1) % CLIENTS):
            ticket = self.sessions[entering].enter(record)
            self.model.records.append(record)
            assert ticket == len(self.model.records), f"the ticket is {ticket}"

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, after=st.integers(0, 12))
    def records(self, client: int, after: int) -> None:
        """The log above a ticket."""
        found = self.sessions[client].records(after)
        assert found == self.model.after(after), f"the log is {found!r}"

    @precondition(lambda self: self.model.records)
    @rule(client=_clients, data=st.data())
    def bury_a_record(self, client: int, data: st.DataObject) -> None:
        """Only a hole can be buried; what is there stays."""
        self.sessions[client].bury(data.draw(st.integers(1, len(self.model.records))))

    @precondition(lambda self: self.model.records)
    @rule(client=_clients, data=st.data())
    def wait_for_records(self, client: int, data: st.DataObject) -> None:
        """A wait for a record ends, whether it is there or not."""
        after = data.draw(st.integers(0, len(self.model.records)), label="after")
        self.sessions[client].wait_records(after, 1, 0.0)

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, data=st.data(), nonce=_nonces)
    def forget(self, client: int, data: st.DataObject, nonce: str) -> None:
        """What is forgotten is gone, and nothing else is."""
        model = self.model
        upto = data.draw(st.integers(0, len(model.records)), label="upto")
        after = data.draw(st.integers(0, upto), label="after")
        names = data.draw(st.lists(st.sampled_from(["1", "2", "roster-0"]), max_size=2))
        session = self.sessions[client]
        session.forget(after, upto, nonce, names)
        model.records[after:upto] = [_GONE] * (upto - after)
        for name in names:
            model.pieces.get(nonce, {}).pop(name, None)
        # Writes need not be answered, but hold before whatever this session does next.
        assert session.records(0) == model.after(0)
        self.fetch(client, nonce)

    # ------------------------------------------------------------ beats

    @precondition(lambda self: self.history.tokens)
    @rule(
        client=_clients,
        slot=st.integers(0, len(_SLOTS) // CLIENTS - 1),
        times=st.sampled_from([1, 1, 1, 2, 130]),
    )
    def beat(self, client: int, slot: int, times: int) -> None:
        """Each beat changes the number of its slot, and no other's."""
        session, counts = self.sessions[client], self.model.beats
        own = _SLOTS[client + CLIENTS * slot]
        for _ in range(times):
            along = session.beat(own)
            after = session.beats([own])[own]
            assert after != counts.get(own, 0), f"slot {own} has beaten, its number has not changed"
            counts[own] = after
            told = {other: counts.get(other, 0) for other in along}
            assert along == told, f"{along!r} came along, and not {told!r}"

    # ------------------------------------------------------------ pieces

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, nonce=_nonces, pieces=_pieces, document=_documents)
    def publish(self, client: int, nonce: str, pieces: dict[str, bytes], document: bytes) -> None:
        """Who sees the document that follows the pieces sees the pieces."""
        kept = self.model.pieces.setdefault(nonce, {})
        if kept:
            return  # A nonce is used once: what a second use leaves of the first is not said.
        self.sessions[client].publish(nonce, pieces)
        kept.update(pieces)
        self.swap_what_is_there(client, document)

    @precondition(lambda self: self.history.tokens)
    @rule(client=_clients, nonce=_nonces | st.just("unknown"))
    def fetch(self, client: int, nonce: str) -> None:
        """Each piece, or none."""
        names = ["2", "1", "roster-0", "roster-1"]
        found = self.sessions[client].fetch(nonce, names)
        kept = self.model.pieces.get(nonce, {})
        assert found == [kept.get(name) for name in names], f"the pieces are {found!r}"

    # ------------------------------------------------------------ after each step

    @invariant()
    def what_is_stored_is_that_of_the_model(self) -> None:
        """One client after the other finds document, log and beats."""
        if not self.history.tokens:
            return
        self.turn += 1
        client = self.turn % CLIENTS
        session = self.sessions[client]
        found = session.read(self.history.newest)
        assert found == self.history.current, f"the document is {found!r}"
        self.seen[client] = len(self.history.tokens) - 1
        after = self.turn % 4
        log = session.records(after)
        assert log == self.model.after(after), f"the log above {after} is {log!r}"
        counts = session.beats(_SLOTS)
        expected = {slot: self.model.beats.get(slot, 0) for slot in _SLOTS}
        assert counts == expected, f"the beats are {counts!r}, and were {expected!r}"
