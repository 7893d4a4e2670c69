"""What happens in a run, told to whoever wants to know, outside the protocol's path."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import weakref
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Closed",
    "Completed",
    "Event",
    "Failed",
    "Joined",
    "LeaderChanged",
    "Left",
    "Lost",
    "Observers",
    "Waiting",
]

log = logging.getLogger(__name__)


def _wall_time() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that this node saw in a run.

    Attributes:
        run_id: The run.
        node: The node that saw it, as its name stands in logs.
        round: The round that it belongs to.
        at: Seconds on the monotonic clock of the process; for differences.
        time: The time of day in UTC, ISO 8601; for people, never for decisions.
    """

    run_id: str
    node: str
    round: int
    at: float
    time: str = field(default_factory=_wall_time)


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    """This node has entered and waits for the round to complete."""


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """This node came while a round was running, and waits for the next one.

    Attributes:
        spare: Whether it waits because the round is full.
    """

    spare: bool = False


@dataclass(frozen=True, kw_only=True)
class Completed(Event):
    """A round with this node in it is complete.

    Attributes:
        rank: This node's rank.
        world_size: The number of nodes.
    """

    rank: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Lost(Event):
    """Nodes stopped giving signs of life.

    Attributes:
        lost: Their names.
    """

    lost: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Left(Event):
    """This node has left the run."""


@dataclass(frozen=True, kw_only=True)
class LeaderChanged(Event):
    """Another node leads the run.

    Attributes:
        leader: Its name.
    """

    leader: str


@dataclass(frozen=True, kw_only=True)
class Closed(Event):
    """The run is closed."""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """A call of this node ended with an error.

    Attributes:
        error: The error's type and message, without secrets.
    """

    error: str


class Observers:
    """The observers of one handler, each with a queue and a thread of its own.

    Args:
        observers: Names, for the log, and the functions to call with each event.
        limit: How many events may wait for one observer; further ones are
            dropped for it.

    ``emit`` never blocks and never raises. With no observers it does nothing and
    there is no thread; callers may look at ``active`` first to spare themselves
    making the event.
    """

    def __init__(
        self,
        observers: Iterable[tuple[str, Callable[[Event], object]]] = (),
        *,
        limit: int = 1000,
    ) -> None:
        self._observers = tuple(_Observer(name, call, limit) for name, call in observers)
        self.active = bool(self._observers)
        # The threads of observers that were dropped without close() end as well.
        weakref.finalize(self, _finish, self._observers)

    @classmethod
    def from_extensions(cls) -> Observers:
        """Return the observers that the installed extensions bring."""
        from rdzv.plugins import extensions

        found = extensions().hook.rdzv_event.get_hookimpls()
        return cls((each.plugin_name, _caller(each.function, each.argnames)) for each in found)

    def emit(self, event: Event) -> None:
        """Hand an event to every observer, without waiting for any."""
        if self.active:
            for observer in self._observers:
                observer.put(event)

    def close(self, timeout: float = 1.0) -> None:
        """Let the observers see what has been emitted, and end their threads.

        Args:
            timeout: Seconds to wait for all of them together. One that is still
                busy then is left behind in its daemon thread.
        """
        self.active = False
        deadline = time.monotonic() + timeout
        _finish(self._observers)
        for observer in self._observers:
            observer.join(max(0.0, deadline - time.monotonic()))


def _caller(
    function: Callable[..., object], argument_names: tuple[str, ...]
) -> Callable[[Event], object]:
    # pluggy lets an implementation leave out arguments that it does not need.
    if argument_names:
        return lambda event: function(event=event)
    return lambda _event: function()


def _finish(observers: tuple[_Observer, ...]) -> None:
    for observer in observers:
        observer.finish()


class _Observer:
    """One observer: a bounded queue, and a thread that starts with the first event."""

    def __init__(self, name: str, call: Callable[[Event], object], limit: int) -> None:
        self._name = name
        self._call = call
        self._queue: queue.Queue[Event | None] = queue.Queue(limit)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._finished = False
        self._dropped = 0
        self._failed = False

    def put(self, event: Event) -> None:
        with self._lock:
            if self._finished:
                return
            try:
                self._queue.put_nowait(event)
            except queue.Full:
                self._dropped += 1
                if self._dropped == 1:
                    log.warning("The rdzv observer '%s' is too slow: it misses events.", self._name)
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name=f"rdzv-observer-{self._name}", daemon=True
                )
                self._thread.start()

    def finish(self) -> None:
        with self._lock:
            if self._finished:
                return
            self._finished = True
            if self._dropped:
                log.warning("The rdzv observer '%s' missed %d events.", self._name, self._dropped)
            # Wakes a thread that waits; one with a full queue looks by itself.
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)

    def join(self, timeout: float) -> None:
        # An observer may close the handler that calls it.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _serve(self) -> None:
        while not (self._finished and self._queue.empty()):
            event = self._queue.get()
            if event is None:
                return
            try:
                self._call(event)
            except Exception:  # an observer may raise anything; the run goes on
                if not self._failed:
                    self._failed = True
                    log.warning(
                        "The rdzv observer '%s' failed with %s; further failures of it are not "
                        "logged.",
                        self._name,
                        type(event).__name__,
                        exc_info=True,
                    )
