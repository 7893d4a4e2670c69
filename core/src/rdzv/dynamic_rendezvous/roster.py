"""The roster inside the document, for a backend that offers only get and set.

One JSON state holds everything that a :class:`Session` keeps apart, and every
operation is a compare-and-set of the whole: correct for any backend, and meant
for tens of nodes. Each write carries a random name, so that a writer knows its
own even where a backend infers success from equal bytes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from ..errors import RendezvousConnectionError, RendezvousError, RendezvousStateError
from .backend import (
    MAX_RECORDS,
    MAX_STATE_BYTES,
    MAX_TICKETS,
    RendezvousBackend,
    Session,
    Swap,
    Token,
    WatchingBackend,
)
from .document import Name, decode, encode, prepare
from .runtime import REAL, Runtime

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["DocumentSession"]

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.25
"""Seconds between two looks while nothing happens: from the first to the second."""

_GONE = "-"

T = TypeVar("T")


class _Roster(msgspec.Struct, omit_defaults=True):
    """What a session keeps below one epoch."""

    tail: Annotated[int, msgspec.Meta(ge=0, le=MAX_TICKETS)] = 0
    freed: Annotated[int, msgspec.Meta(ge=0, le=MAX_TICKETS)] = 0
    """No record up to this ticket is kept; all above it are."""
    records: dict[int, str] = {}
    beats: dict[int, Annotated[int, msgspec.Meta(ge=0)]] = {}
    pieces: dict[Name, dict[str, str]] = {}

    @property
    def complete(self) -> bool:
        """Whether there is a record for each ticket: nobody can make up a million of them."""
        tickets = self.records.keys()
        return len(tickets) == self.tail - self.freed and all(
            self.freed < ticket <= self.tail for ticket in tickets
        )


class _State(msgspec.Struct, omit_defaults=True):
    schema: Annotated[int, msgspec.Meta(ge=1)]
    write: Name
    document: str = ""
    changes: Annotated[int, msgspec.Meta(ge=0)] = 0
    rosters: dict[Name, _Roster] = {}
    """By epoch: who is still in a life of the run that was lost writes into its own."""


prepare(_State)


class DocumentSession(Session):
    """A session over nothing but ``get_state`` and ``set_state``.

    Args:
        backend: The backend; calls to it are made one at a time, under ``lock``.
        lock: Shared by all sessions on one backend, which need not be thread-safe.
        runtime: The clock, and chance.
    """

    def __init__(
        self, backend: RendezvousBackend, lock: threading.Lock, runtime: Runtime = REAL
    ) -> None:
        self._backend = backend
        self._runtime = runtime
        self._lock = lock
        self._closed = False
        self._epoch = ""
        self._tail = 0
        self._where = f"The state of the backend {backend.name!r}"

    # ------------------------------------------------------------ the state

    def _call(self, operation: Callable[[], T]) -> T:
        try:
            with self._lock:
                return operation()
        except RendezvousError:
            raise
        except Exception as exc:
            raise _translated(exc, self._backend.name) from exc

    def _get(self) -> tuple[_State, Token] | None:
        found = self._call(self._backend.get_state)
        if found is None:
            return None
        return self._decode(found[0]), found[1]

    def _decode(self, data: bytes) -> _State:
        state = decode(_State, data, self._where)
        for roster in state.rosters.values():
            if not roster.complete:
                raise RendezvousStateError(
                    f"{self._where} contradicts itself: its records are not those of the tickets "
                    f"{roster.freed + 1} to {roster.tail}. Use another run id."
                )
        return state

    def _roster_in(self, state: _State) -> _Roster:
        return state.rosters.setdefault(self._epoch, _Roster())

    def _get_roster(self) -> _Roster:
        found = self._get()
        return _Roster() if found is None else self._roster_in(found[0])

    def _change_roster(self, change: Callable[[_Roster], T]) -> T:
        return self._change(lambda state: change(self._roster_in(state)))

    def _change(self, change: Callable[[_State], T]) -> T:
        """Apply ``change`` to the state until it is this change that is stored."""
        pause = _FIRST_PAUSE
        rested = True
        found = self._get()
        while True:
            state, token = found if found is not None else (_State(schema=1, write=""), None)
            result = change(state)
            state.write = self._runtime.new_id()
            data = encode(state)
            if len(data) > MAX_STATE_BYTES:
                raise RendezvousStateError(
                    f"{self._where} would take {len(data)} bytes. A backend without a roster of "
                    "its own serves tens of nodes; use another one for more."
                )
            answer = self._call(functools.partial(self._backend.set_state, data, token))
            if answer is not None:
                stored = self._decode(answer[0])
                if stored.write == state.write:
                    self._check_tail(stored)
                    return result
            if answer is not None and rested:
                # At once: what it lost to is the newest there is, even where reads are old.
                found, rested = (stored, answer[1]), False
            elif self._closed:
                raise RendezvousConnectionError(f"{self._where} is no longer written: closed.")
            else:
                self._runtime.sleep(pause * self._runtime.random())
                pause = min(2 * pause, _LONGEST_PAUSE)
                # Who goes on from what there was before the pause loses again, every time.
                found, rested = self._get(), True

    def _check_tail(self, state: _State) -> None:
        """A store that gives a ticket a second time has lost something: begin anew, then."""
        tail = self._roster_in(state).tail
        if tail < self._tail:
            raise RendezvousConnectionError(
                f"{self._where} has lost tickets that it had given out. It may have failed over."
            )
        self._tail = tail

    # ------------------------------------------------------------ the document

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:
        found = self._get()
        if found is None or not found[0].document:
            return None
        state = found[0]
        if known is not None and state.changes < known:
            # It was an old state that was read, or the store has lost the newer one: a
            # write, which has to be on top of what there is, tells.
            state = self._change(lambda current: current)
        return state.document.encode(), state.changes

    def swap(self, document: bytes, token: Token | None) -> Swap:
        expected = 0 if token is None else token
        text = document.decode()
        tried = False

        def change(state: _State) -> Swap:
            nonlocal tried
            if tried and state.changes == expected + 1 and state.document == text:
                # Its own: as with a record in enter(). Every version has a name of its own.
                return Swap(True, document, state.changes)
            if state.changes > expected:
                raise _StaleError(Swap(False, state.document.encode(), state.changes))
            if state.changes < expected:
                # An old state, or the store has lost the newer one: see read().
                return Swap(False, state.document.encode(), state.changes)
            tried = True
            state.document = text
            state.changes += 1
            return Swap(True, document, state.changes)

        try:
            return self._change(change)
        except _StaleError as stale:
            return stale.found

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        self._poll(lambda state: state.changes != token, timeout)
        return None

    def _poll(self, happened: Callable[[_State], bool], timeout: float) -> None:
        deadline = self._runtime.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not self._closed:
            looked = self._runtime.monotonic()
            found = self._get()
            if found is None or happened(found[0]):
                return
            left = deadline - self._runtime.monotonic()
            if left <= 0:
                return
            if isinstance(self._backend, WatchingBackend):
                self._watch(self._backend, found[1], left)
                waited = self._runtime.monotonic() - looked
                if waited > _LONGEST_PAUSE:
                    pause = _FIRST_PAUSE
                # Every beat of every node is a change of the state, and wakes all who watch: no
                # more often than they would look without. Also where a watch returns for nothing.
                self._runtime.sleep(max(0.0, min(pause - waited, left)))
            else:
                self._runtime.sleep(min(pause, left))
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    def _watch(self, backend: WatchingBackend, token: Token, timeout: float) -> None:
        """Have the backend say when to look again, beside other calls to it."""
        try:
            backend.wait_state(token, timeout)
        except RendezvousError:
            raise
        except Exception as exc:
            raise _translated(exc, backend.name) from exc

    def attach(self, epoch: str) -> None:
        if epoch != self._epoch:
            self._epoch, self._tail = epoch, 0

    # ------------------------------------------------------------ the roster

    def enter(self, record: bytes) -> int:
        text = record.decode()

        tried: set[int] = set()

        def change(roster: _Roster) -> int:
            # A write that a client library sent twice can have taken effect, be followed by
            # another's, and be said to have lost: each record has a name of its own.
            for ticket in tried:
                if roster.records.get(ticket) == text:
                    return ticket
            roster.tail += 1
            roster.records[roster.tail] = text
            tried.add(roster.tail)
            return roster.tail

        return self._change_roster(change)

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        roster = self._get_roster()
        last = min(roster.freed, after + MAX_RECORDS)
        lines: list[tuple[int, bytes | None]] = [
            (ticket, _GONE.encode()) for ticket in range(after + 1, last + 1)
        ]
        if last < roster.freed:
            return lines
        kept = sorted(item for item in roster.records.items() if item[0] > after)
        return lines + [(ticket, text.encode()) for ticket, text in kept]

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        self._poll(lambda state: self._roster_in(state).tail >= after + count, timeout)

    def bury(self, ticket: int) -> None:
        # A ticket and its record are one write here: there are no holes.
        pass

    def beat(self, slot: int) -> Mapping[int, int]:
        def change(roster: _Roster) -> Mapping[int, int]:
            roster.beats[slot] = roster.beats.get(slot, 0) + 1
            return dict(roster.beats)

        return self._change_roster(change)

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        counts = self._get_roster().beats
        return {slot: counts.get(slot, 0) for slot in slots}

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        def change(roster: _Roster) -> None:
            roster.pieces.setdefault(nonce, {}).update(
                {name: piece.decode() for name, piece in pieces.items()}
            )

        self._change_roster(change)

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        pieces = self._get_roster().pieces.get(nonce, {})
        return [pieces[name].encode() if name in pieces else None for name in names]

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        def change(roster: _Roster) -> None:
            for ticket in roster.records:
                if after < ticket <= upto:
                    roster.records[ticket] = _GONE
            while roster.records.get(roster.freed + 1) == _GONE:
                roster.freed += 1
                del roster.records[roster.freed]
            pieces = roster.pieces.get(nonce, {})
            for name in names:
                pieces.pop(name, None)
            if not pieces:
                roster.pieces.pop(nonce, None)

        self._change_roster(change)

    def close(self) -> None:
        self._closed = True


class _StaleError(Exception):
    """The document is not the one that was to be replaced."""

    def __init__(self, found: Swap) -> None:
        super().__init__()
        self.found = found


_BY_NAME = {
    "RendezvousConnectionError": RendezvousConnectionError,
    "RendezvousStateError": RendezvousStateError,
}


def _translated(exc: Exception, backend: str) -> Exception:
    """Ours for one of torch's, which a backend written for torch raises; others as they are."""
    for kind in type(exc).__mro__:
        if kind.__module__.startswith("torch.") and kind.__name__ in _BY_NAME:
            return _BY_NAME[kind.__name__](f"The backend {backend!r} failed: {exc}")
    return exc
