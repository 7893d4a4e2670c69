"""The roster inside the document, for a backend that offers only get and set.

One JSON state holds everything that a :class:`Session` keeps apart, and every
operation is a compare-and-set of the whole: correct for any backend, and meant
for tens of nodes. Each write carries a random name, so that a writer knows its
own even where a backend infers success from equal bytes.
"""

from __future__ import annotations

import functools
import random
import secrets
import time
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from ..errors import RendezvousConnectionError, RendezvousError, RendezvousStateError
from .backend import MAX_STATE_BYTES, RendezvousBackend, Session, Swap, Token
from .document import Name, decode, encode

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["DocumentSession"]

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.25
"""Seconds between two looks while nothing happens: from the first to the second."""

_GONE = "-"

T = TypeVar("T")


class _State(msgspec.Struct, omit_defaults=True):
    schema: Annotated[int, msgspec.Meta(ge=1)]
    write: Name
    document: str = ""
    changes: Annotated[int, msgspec.Meta(ge=0)] = 0
    tail: Annotated[int, msgspec.Meta(ge=0)] = 0
    records: dict[int, str] = {}
    beats: dict[int, Annotated[int, msgspec.Meta(ge=0)]] = {}
    pieces: dict[Name, dict[str, str]] = {}


class DocumentSession(Session):
    """A session over nothing but ``get_state`` and ``set_state``.

    Args:
        backend: The backend; calls to it are made one at a time, under ``lock``.
        lock: Shared by all sessions on one backend, which need not be thread-safe.
    """

    def __init__(self, backend: RendezvousBackend, lock: threading.Lock) -> None:
        self._backend = backend
        self._lock = lock
        self._closed = False
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
        return decode(_State, found[0], self._where), found[1]

    def _change(self, change: Callable[[_State], T]) -> T:
        """Apply ``change`` to the state until it is this change that is stored."""
        pause = _FIRST_PAUSE
        found = self._get()
        while True:
            state, token = found if found is not None else (_State(schema=1, write=""), None)
            result = change(state)
            state.write = secrets.token_hex(8)
            data = encode(state)
            if len(data) > MAX_STATE_BYTES:
                raise RendezvousStateError(
                    f"{self._where} would take {len(data)} bytes. A backend without a roster of "
                    "its own serves tens of nodes; use another one for more."
                )
            answer = self._call(functools.partial(self._backend.set_state, data, token))
            if answer is not None:
                stored = decode(_State, answer[0], self._where)
                if stored.write == state.write:
                    return result
            time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, no secret
            pause = min(2 * pause, _LONGEST_PAUSE)
            found = self._get() if answer is None else (stored, answer[1])

    # ------------------------------------------------------------ the document

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:
        found = self._get()
        if found is None or not found[0].document:
            return None
        return found[0].document.encode(), found[0].changes

    def swap(self, document: bytes, token: Token | None) -> Swap:
        expected = 0 if token is None else token

        def change(state: _State) -> Swap:
            if state.changes != expected:
                raise _StaleError(Swap(False, state.document.encode(), state.changes))
            state.document = document.decode()
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
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not self._closed:
            found = self._get()
            if found is None or happened(found[0]):
                return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    def attach(self, epoch: str) -> None:
        # The epoch is in the document, and the document is in the same state.
        pass

    # ------------------------------------------------------------ the roster

    def enter(self, record: bytes) -> int:
        def change(state: _State) -> int:
            state.tail += 1
            state.records[state.tail] = record.decode()
            return state.tail

        return self._change(change)

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        found = self._get()
        if found is None:
            return []
        state = found[0]
        return [
            (ticket, state.records.get(ticket, _GONE).encode())
            for ticket in range(after + 1, min(state.tail, after + 10**6) + 1)
        ]

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        self._poll(lambda state: state.tail >= after + count, timeout)

    def bury(self, ticket: int) -> None:
        # A ticket and its record are one write here: there are no holes.
        pass

    def beat(self, slot: int) -> Mapping[int, int]:
        def change(state: _State) -> Mapping[int, int]:
            state.beats[slot] = state.beats.get(slot, 0) + 1
            return dict(state.beats)

        return self._change(change)

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        found = self._get()
        counts = {} if found is None else found[0].beats
        return {slot: counts.get(slot, 0) for slot in slots}

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        def change(state: _State) -> None:
            state.pieces[nonce] = {name: piece.decode() for name, piece in pieces.items()}

        self._change(change)

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        found = self._get()
        pieces = {} if found is None else found[0].pieces.get(nonce, {})
        return [pieces[name].encode() if name in pieces else None for name in names]

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        def change(state: _State) -> None:
            gone = {t: r for t, r in state.records.items() if t <= upto}
            for ticket in gone:
                del state.records[ticket]
            state.pieces.pop(nonce, None)

        self._change(change)

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
