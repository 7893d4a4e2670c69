"""Targets: the bytes that a store holds, from the decoder up to a session over get and set."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from fuzz.values import EPOCH, KINDS, MAKERS, document, hostile, members, record
from rdzv import RendezvousConnectionError, RendezvousStateError
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES, RendezvousBackend
from rdzv.dynamic_rendezvous.document import decode, encode
from rdzv.dynamic_rendezvous.roster import DocumentSession
from rdzv.dynamic_rendezvous.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzz.source import Source
    from rdzv.dynamic_rendezvous.backend import Session, Token

__all__ = [
    "LONGEST_MESSAGE",
    "Holder",
    "Repeatable",
    "decoding",
    "document_session",
    "operation",
    "state",
    "within",
]

LONGEST_MESSAGE = 2000
"""Characters that an error may have, whatever a store holds: it is logged, and shown to people."""

LIMIT = 20.0
"""Seconds after which a call counts as hanging."""

WHERE = "The thing"

T = TypeVar("T")


def decoding(source: Source) -> None:
    """Any bytes are a value that comes back as it was written, or a state error."""
    place = source.number(0, len(KINDS) - 1)
    kind, make = KINDS[place], MAKERS[place]
    data = hostile(source, encode(make(source)))
    if source.number(0, 15) == 0:
        data = data.ljust(MAX_STATE_BYTES + source.number(0, 1))
    try:
        value = decode(kind, data, WHERE)
    except RendezvousStateError as exc:
        check_message(exc)
        assert str(exc).startswith(WHERE)
        return
    assert len(data) <= MAX_STATE_BYTES
    assert decode(kind, encode(value), WHERE) == value


def check_message(exc: BaseException) -> None:
    """An error is text for people: not the whole of what was read."""
    assert 0 < len(str(exc)) <= LONGEST_MESSAGE, f"an error of {len(str(exc))} characters"


class Repeatable(Runtime):
    """The names and numbers that a node makes, the same ones each time a target is run."""

    def __init__(self) -> None:
        self._names = itertools.count()

    def new_id(self) -> str:
        return f"{next(self._names):016x}"

    def random(self) -> float:
        return 0.5


class Holder(RendezvousBackend):
    """A backend that holds whatever bytes it was given."""

    def __init__(self, state: bytes | None) -> None:
        self.state = state
        self.version = 1

    @property
    def name(self) -> str:
        return "holder"

    def get_state(self) -> tuple[bytes, Token] | None:
        return None if self.state is None else (self.state, self.version)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        won = (self.state is None) if token is None else token == self.version
        if won:
            self.state = state
            self.version += 1
        return None if self.state is None else (self.state, self.version, won)

    def replace(self, state: bytes) -> None:
        """Have somebody else write there."""
        self.state = state
        self.version += 1


def state(source: Source) -> bytes:
    """What a session over get and set keeps, with one thing in it spoiled, or several."""
    spoiled = source.number(0, 4)

    def inner(place: int, valid: bytes) -> str:
        return (hostile(source, valid) if place == spoiled else valid).decode(errors="ignore")

    number, freed = source.number(1, 3), source.pick((0, 0, 1, 2**62))
    tail = freed + number
    roster = {
        "tail": source.pick((tail, tail, tail, 0, 2000)),
        "freed": freed,
        "records": {str(t): inner(2, encode(record(source))) for t in range(freed + 1, tail + 1)},
        "beats": {str(source.number(0, 9)): source.number(0, 9)},
        "pieces": {
            "nonce": {
                "1": inner(3, b'{"node":"me","rank":0}'),
                "roster-0": inner(4, encode(members(source))),
            }
        },
    }
    held = {
        "schema": 1,
        "write": "w",
        "document": inner(1, encode(document(source))),
        "changes": number,
        "rosters": {EPOCH: roster},
    }
    valid = encode(held)
    return hostile(source, valid) if spoiled == 0 else valid


def document_session(source: Source) -> None:
    """Whatever a backend holds, a session answers, or says that it is no state or lost some."""
    backend = Holder(state(source) if source.number(0, 7) else None)
    session = DocumentSession(backend, threading.Lock(), Repeatable())
    session.attach(EPOCH)
    for _ in range(source.number(1, 5)):
        call = operation(source)
        try:
            call(session)
        except (RendezvousStateError, RendezvousConnectionError) as exc:
            check_message(exc)
        if source.number(0, 3) == 0:
            backend.replace(state(source))


def operation(source: Source, *, longest: float = 0.0) -> Callable[[Session], Any]:
    """One call of a session, decided now and made later, its answer checked."""
    after, slot = source.number(0, 5), source.number(0, 30)
    token = source.pick((None, 1, 2, 3, source.number(1, 2**62)))
    names = ["1", "2", "roster-0"]

    def records(session: Session) -> None:
        tickets = [ticket for ticket, _ in session.records(after)]
        assert tickets == list(range(after + 1, after + 1 + len(tickets)))

    def beats(session: Session) -> None:
        slots = [slot, 3, 11, 40]
        assert set(session.beats(slots)) == set(slots)

    def beat(session: Session) -> None:
        assert all(isinstance(count, int) for count in session.beat(slot).values())

    def swap(session: Session) -> None:
        swapped = session.swap(b"{}", token)
        assert (swapped.document == b"{}") or not swapped.won

    def fetch(session: Session) -> None:
        assert len(session.fetch("nonce", names)) == len(names)

    def enter(session: Session) -> None:
        assert isinstance(session.enter(b"{}"), int)

    calls: tuple[Callable[[Session], Any], ...] = (
        lambda session: session.read(token),
        lambda session: session.wait(token or 1, longest),
        lambda session: session.wait_records(after, 1, longest),
        lambda session: session.bury(after + 1),
        lambda session: session.publish("nonce", {"1": b"{}"}),
        lambda session: session.forget(after, after + 3, "nonce", names),
        *(records, beats, beats, beats, beat, swap, fetch, enter),
    )
    return source.pick(calls)


def within(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread that can be left behind: a store may block past any signal."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as exc:  # noqa: BLE001 - handed to the caller below.
            failed.append(exc)

    thread = threading.Thread(target=run, name="fuzzed", daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), f"a call has not returned within {LIMIT:g} s"
    if failed:
        raise failed[0]
    return done[0]
