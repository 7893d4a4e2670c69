"""Every operation that a run needs, done in a run that was made up for it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rdzv.diagnosis import SCRATCH_EPOCH, Finding
from rdzv.dynamic_rendezvous.backend import RendezvousBackend, Session, SessionBackend

from .bounded import LateError, reason, within

__all__ = ["OperationError", "Operations", "latencies"]

T = TypeVar("T")

_RECORD = b'{"doctor":"record"}'
_PIECE = {"piece": b'"doctor"'}
_FIRST, _SECOND, _THIRD = (b'{"doctor":%d}' % number for number in (1, 2, 3))
_ENOUGH = 2.0
"""Seconds after which one kind of operation has been timed often enough."""


class OperationError(Exception):
    """An operation failed, or did something else than it is to do.

    Attributes:
        operation: Which.
        cause: What it raised, if it did.
    """

    def __init__(self, operation: str, text: str, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.operation = operation
        self.cause = cause


@dataclass
class Operations:
    """Tries what a backend offers, one operation after the other.

    Args:
        backend: The backend of a scratch run.
        store: The store that comes with it.
        limit: Seconds that one operation may take.
    """

    backend: RendezvousBackend
    store: Any
    limit: float
    done: list[str] = field(default_factory=list)
    """The operations that worked."""
    sessions: list[Session] = field(default_factory=list)
    """Two of them, where the backend has sessions."""

    def run(self) -> Iterator[Finding]:
        """Do all of them.

        Raises:
            OperationError: One did not work; none after it was tried.
        """
        self._state()
        if isinstance(self.backend, SessionBackend):
            yield from self._session(self.backend)
        self._store()
        yield Finding("operation.works", "ok", f"Permitted and working: {', '.join(self.done)}.")

    def close(self) -> None:
        """Close the sessions."""
        for session in self.sessions:
            session.close()

    def _do(self, operation: str, call: Callable[[], T]) -> T:
        try:
            result = within(self.limit, call)
        except LateError as exc:
            raise OperationError(operation, f"no answer within {self.limit:g} s", exc) from exc
        except Exception as exc:
            raise OperationError(operation, reason(exc), exc) from exc
        if operation not in self.done:
            self.done.append(operation)
        return result

    def _expect(self, operation: str, held: object, seen: object) -> None:
        if not held:
            self.done.remove(operation)
            raise OperationError(operation, f"it worked, and what came of it is wrong: {seen!r}")

    def _state(self) -> None:
        found = self._do("get_state", self.backend.get_state)
        self._expect("get_state", found is None, found)
        set_ = self._do("set_state", lambda: self.backend.set_state(_FIRST, None))
        self._expect("set_state", set_ is not None and set_[2] and set_[0] == _FIRST, set_)
        found = self._do("get_state", self.backend.get_state)
        self._expect("get_state", found is not None and found[0] == _FIRST, found)
        lost = self._do("set_state", lambda: self.backend.set_state(_SECOND, None))
        self._expect("set_state", lost is not None and not lost[2] and lost[0] == _FIRST, lost)

    def _session(self, backend: SessionBackend) -> Iterator[Finding]:
        for _ in range(2):
            self.sessions.append(self._do("open_session", backend.open_session))
        one, two = self.sessions
        found = self._do("read", lambda: one.read(None))
        self._expect("read", found is None, found)
        first = self._do("swap", lambda: one.swap(_FIRST, None))
        self._expect("swap", first.won, first)
        yield self._push(one, two, first.token)
        lost = self._do("swap", lambda: one.swap(_THIRD, first.token))
        self._expect("swap", not lost.won and lost.document == _SECOND, lost)

        for session in self.sessions:
            self._do("attach", lambda session=session: session.attach(SCRATCH_EPOCH))  # type: ignore[misc]
        ticket = self._do("enter", lambda: one.enter(_RECORD))
        self._expect("enter", ticket == 1, ticket)
        self._do("wait_records", lambda: two.wait_records(0, 1, self.limit / 2))
        records = self._do("records", lambda: two.records(0))
        self._expect("records", [r for _, r in records] == [_RECORD], records)
        self._do("bury", lambda: one.bury(2))
        before = self._do("beats", lambda: two.beats([0]))
        self._do("beat", lambda: one.beat(0))
        after = self._do("beats", lambda: two.beats([0]))
        self._expect("beats", before != after, after)
        self._do("publish", lambda: one.publish("nonce", _PIECE))
        # What was published is in effect once a later swap is.
        newest = self._do("read", lambda: one.read(None))
        self._expect("read", newest is not None, newest)
        self._do("swap", lambda: one.swap(_THIRD, newest[1] if newest else None))
        self._do("read", lambda: two.read(newest[1] if newest else None))
        pieces = self._do("fetch", lambda: two.fetch("nonce", list(_PIECE)))
        self._expect("fetch", pieces == list(_PIECE.values()), pieces)
        self._do("forget", lambda: one.forget(0, 1, "nonce", list(_PIECE)))

    def _push(self, one: Session, two: Session, token: Any) -> Finding:
        """One session waits for what the other writes."""
        self._do("listen", lambda: two.listen(token))
        waits = threading.Event()
        until = time.monotonic() + self.limit / 2

        def wait() -> float | None:
            waits.set()
            while (left := until - time.monotonic()) > 0:
                told = two.wait(token, left)
                if told is None:
                    told = two.read(token)  # It says no more than that it is time to read.
                if told is not None and told[0] == _SECOND:
                    return time.monotonic()
            return None

        seen: list[float | None] = []
        failed: list[BaseException] = []

        def watch() -> None:
            try:
                seen.append(self._do("wait", wait))
            except OperationError as exc:
                failed.append(exc)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        waits.wait(self.limit)
        second = self._do("swap", lambda: one.swap(_SECOND, token))
        written = time.monotonic()
        self._expect("swap", second.won, second)
        watcher.join(self.limit + 1)
        if failed:
            raise failed[0]
        if not seen or seen[0] is None:
            raise OperationError("wait", "a change that another session made was not seen")
        # It may be told before the writer is.
        took = max(0.0, seen[0] - written) * 1000
        when = f"{took:.1f} ms later" if took >= 0.05 else "at once"
        return Finding("operation.push", "ok", f"One session is told of another's change {when}.")

    def _store(self) -> None:
        # It may be one for all runs, so that the key has to be nobody else's.
        key = f"rdzv-doctor/{uuid.uuid4().hex}"
        self._do("store.set", lambda: self.store.set(key, "1"))
        value = self._do("store.get", lambda: self.store.get(key))
        self._expect("store.get", value == b"1", value)
        self._do("store.delete_key", lambda: self.store.delete_key(key))


def latencies(operations: Operations, tries: int) -> list[tuple[str, list[float]]]:
    """Seconds that the main operations take, each of them ``tries`` times or for two seconds."""
    backend = operations.backend
    if not operations.sessions:
        return [("get_state", _timed(backend.get_state, tries))]
    session = operations.sessions[0]
    found = session.read(None)
    token = found[1] if found else None

    def swap() -> None:
        nonlocal token
        token = session.swap(_THIRD, token).token

    return [
        ("read", _timed(lambda: session.read(None), tries)),
        ("swap", _timed(swap, tries)),
        ("beat", _timed(lambda: session.beat(0), tries)),
    ]


def _timed(call: Callable[[], object], tries: int) -> list[float]:
    times: list[float] = []
    until = time.monotonic() + _ENOUGH
    while len(times) < tries and time.monotonic() < until:
        began = time.monotonic()
        call()
        times.append(time.monotonic() - began)
    return sorted(times)
