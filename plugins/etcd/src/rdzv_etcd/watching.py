"""A watch on grpcio: a thread that reads it, and opens it anew wherever it breaks."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc

from . import seam
from .forks import GATE, PARENTS
from .translate import canceled_error, event_of
from .wire import Message, message

if TYPE_CHECKING:
    from .client import Connection, EtcdClient
    from .seam import Event

__all__ = ["ReadWatch", "Reader"]

_RETRY = 0.1
"""Seconds between two attempts to open a watch."""

_CREATE, _WATCH = message("WatchCreateRequest"), message("WatchRequest")


class ReadWatch(seam.Watch):
    """What the user has of a watch: it ends when nobody has it any more."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        weakref.finalize(self, reader.close).atexit = False

    @property
    def since(self) -> int:
        return self._reader.since

    def next(self, timeout: float) -> list[Event] | None:
        return self._reader.next(timeout)

    def close(self) -> None:
        self._reader.close()


class Reader:
    """A watch's thread, which opens it anew wherever it breaks, and what it has read."""

    def __init__(self, client: EtcdClient, key: bytes, end: bytes, revision: int) -> None:
        self._client = client
        self._key, self._end = key, end
        self._revision = self.since = revision
        self._changed = threading.Condition()
        self._events: deque[list[Event] | None] = deque()
        self._error: seam.EtcdError | None = None
        self._failed = False
        self._ended = ""
        self._call: Any = None
        self._asked: tuple[Connection, float] | None = None
        """The member that was asked for it last, and when."""
        self._trouble: seam.UnavailableError | None = None
        # Since when there is no watch, and whether it was for the login already.
        self._broken_at: float | None = time.monotonic()
        self._renewed = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="rdzv-etcd-watch", daemon=True).start()

    def begin(self, until: float, *, others: bool) -> None:
        """Start, and wait until etcd tells what happens from now on.

        Args:
            until: The time to give up (monotonic clock).
            others: Whether there are other members to go to.

        Raises:
            EtcdError: It is not to be.
        """
        self.start()
        left = until - time.monotonic()
        # Whoever is frozen is not to keep the others from being asked.
        patience = left / 2 if others else left
        silent: seam.UnavailableError | None = None
        while (member := self._silent_for(patience, until)) is not None:
            silent = seam.TimeoutError(f"etcd at {member.endpoint} does not begin a watch.")
            self._client.drop(member)
        with self._changed:
            if self._ended:
                raise seam.EtcdError(self._ended)
            if not self.since:
                late = seam.TimeoutError(f"etcd at {self._client.where} does not begin a watch.")
                raise self._error or silent or self._trouble or late

    def _silent_for(self, patience: float, until: float) -> Connection | None:
        """Wait for the beginning; the member that has been asked for so long in vain, if one has.

        A busy process may look late: what counts is when that very member was asked.
        """
        with self._changed:
            while not (self.since or self._ended or self._error):
                asked, now = self._asked, time.monotonic()
                due = until if asked is None else min(until, asked[1] + patience)
                if now < due:
                    self._changed.wait(due - now)
                    continue
                self._asked = None
                return asked[0] if asked is not None and now < until else None
            return None

    def next(self, timeout: float) -> list[Event] | None:
        with self._changed:
            self._changed.wait_for(self._ready, timeout)
            if self._events:
                if self._events[0] is None:
                    return self._events.popleft()
                events: list[Event] = []
                while self._events and self._events[0] is not None:
                    events += self._events.popleft() or ()
                return events
            if self._ended:
                raise seam.EtcdError(self._ended)
            error = self._error
            if error is None:
                return []
            if not self._failed:
                self._error = None
            raise error

    def _ready(self) -> bool:
        return bool(self._events or self._ended) or self._error is not None

    def close(self) -> None:
        self._end_with(f"The watch at {self._client.where} was closed.")
        self.interrupt()
        self._client.forget(self)

    def _end_with(self, text: str) -> None:
        with self._changed:
            self._ended = self._ended or text
            self._changed.notify_all()

    def after_fork(self) -> None:
        """In the child: there is no thread that reads, and the call is the parent's."""
        PARENTS.append(self._call)
        self._call = None
        self._changed = threading.Condition()
        self._events.clear()
        self._end_with("The watch belongs to the process that has opened it; open another one.")

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._ended:
            try:
                self._read()
            except seam.CompactedError as error:  # noqa: PERF203 - each break is one
                self._revision = max(self._revision, error.revision)
                self._say(None)
            except seam.UnavailableError as error:
                self._trouble = error
                now = time.monotonic()
                if self._broken_at is None:
                    self._broken_at = now
                if self._client.closed:
                    return self._complain(error, for_good=True)
                if now - self._broken_at >= self._client.timeout:
                    self._complain(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, _RETRY)
            except seam.EtcdError as error:
                return self._complain(error, for_good=True)
        return None

    def _read(self) -> None:
        """Take what etcd sends, until something is raised."""
        client = self._client
        until = time.monotonic() + client.timeout
        connection = client.connected(until)
        metadata = connection.metadata
        create = _CREATE(key=self._key, range_end=self._end, start_revision=self._revision)
        call = None
        error: seam.EtcdError | None = None
        GATE.enter()
        try:
            # etcd goes on after the client has said all that it has to say.
            call = connection.watch(_WATCH(create_request=create), metadata)
            with self._changed:
                self._call = call
                self._asked = connection, time.monotonic()
                self._changed.notify_all()
            if self._ended or GATE.closed:
                call.cancel()
            for response in call:
                self._take(response, connection)
            raise seam.UnavailableError(f"etcd at {connection.endpoint} has ended a watch.")
        except seam.EtcdError as exc:
            if isinstance(exc, seam.UnavailableError):
                client.drop(connection)
            error = exc
        except (grpc.RpcError, ValueError) as exc:
            # What is cancelled here, by a close or for a fork, is no fault of the connection's.
            if call is None or not call.cancelled():
                error = client.failed(connection, exc)
        finally:
            self.interrupt()
            drain(call)
            GATE.leave()
        if isinstance(error, seam.AuthError) and client.has_login and not self._renewed:
            # etcd may say "permission denied" of a token that it does not know any more.
            self._renewed = True
            client.renew(connection, metadata, until)
        elif error is not None:
            try:
                raise error
            finally:
                # It knows this frame, which would keep the client until garbage is collected.
                del error

    def _take(self, response: Message, connection: Connection) -> None:
        if response.canceled:
            raise canceled_error(response, connection.endpoint)
        if response.created:
            with self._changed:
                self._broken_at, self._renewed, self._error = None, False, None
                if not self._revision:
                    self._revision = self.since = response.header.revision + 1
                    self._changed.notify_all()
        if response.events:
            events = [event_of(event) for event in response.events]
            # Not the response's revision: that is the store's, and more responses may follow
            # with what happened up to there.
            self._revision = events[-1].kv.mod_revision + 1
            self._say(events)

    def interrupt(self) -> None:
        """End the call; the thread then looks what to do."""
        with self._changed:
            call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _say(self, events: list[Event] | None) -> None:
        with self._changed:
            self._events.append(events)
            self._changed.notify_all()

    def _complain(self, error: seam.EtcdError, *, for_good: bool = False) -> None:
        with self._changed:
            self._error, self._failed = error, for_good
            self._changed.notify_all()
        if for_good:
            self._client.forget(self)


def drain(call: Any) -> None:
    """Take from a call that was cancelled what is left, for gRPC lets go of nothing before.

    A stream that is read by one thread looks no further once it was cancelled: its connection
    would stay open for ever, even after the channel was closed. gRPC offers no public way.
    """
    consume = getattr(call, "_consume_next_event", None)
    while consume is not None and call._state.due:  # noqa: SLF001 - see above
        consume()
