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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pluggy import HookImpl

__all__ = [
    "Admitted",
    "Closed",
    "Completed",
    "Deferred",
    "Event",
    "Failed",
    "Joined",
    "LastCall",
    "LeaderChanged",
    "Left",
    "Lost",
    "Observers",
    "Ranked",
    "Reopened",
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
        round: The round that this node is or was last in; 0 for one that was in none.
        at: Seconds on the monotonic clock of the process; for differences.
        time: The time of day in UTC, ISO 8601; for people, never for decisions.
        backend: The name of the backend.
    """

    run_id: str
    node: str
    round: int
    at: float
    time: str = field(default_factory=_wall_time)
    backend: str = ""


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    """This node enters, and waits for a round to complete."""


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """This node came while a round was running, and waits for the next one.

    Attributes:
        spare: Whether it waits because the round is full.
        deferred: Whether it waits until workers have reached a checkpoint.
    """

    spare: bool = False
    deferred: bool = False


@dataclass(frozen=True, kw_only=True)
class Deferred(Event):
    """This node leads, and nodes that have arrived wait until workers have reached a checkpoint.

    Attributes:
        waiting: How many; told again when they become more.
    """

    waiting: int


@dataclass(frozen=True, kw_only=True)
class Admitted(Event):
    """This node leads, and has let nodes into a round of a run with deferred admission.

    Attributes:
        arrived: How many nodes are in it that were not in the round before.
        why: What has ended that: a checkpoint, or what happened to participants.
    """

    arrived: int
    why: str


@dataclass(frozen=True, kw_only=True)
class LastCall(Event):
    """This node leads, ``min_nodes`` are here, and more may still come.

    Attributes:
        nodes: How many are here.
        seconds: How long it waits for more.
    """

    nodes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ranked(Event):
    """A round was agreed on, and this node is in it; the workers' store is not open yet.

    Attributes:
        rank: This node's rank.
        world_size: The number of nodes.
    """

    rank: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Completed(Event):
    """A round with this node in it is complete.

    Attributes:
        rank: This node's rank.
        world_size: The number of nodes.
        seconds: The time since this node's ``Joined``.
    """

    rank: int
    world_size: int
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Reopened(Event):
    """This node was told that its round is over: its workers have to be restarted.

    Attributes:
        reason: Why, for people.
        arrived: How many nodes have arrived.
        returned: How many participants have come back, since their workers failed, say.
        left: How many participants have left.
        lost: How many participants were lost.
        surplus: How many are more than the run may have, since it was scaled down. All
            are 0 where others have completed another round without this node.
    """

    reason: str
    arrived: int = 0
    returned: int = 0
    left: int = 0
    lost: int = 0
    surplus: int = 0


@dataclass(frozen=True, kw_only=True)
class Lost(Event):
    """This node leads, and nodes have stopped giving signs of life.

    Attributes:
        lost: Their names.
        silent: For how long the last of them was seen to be silent (seconds).
    """

    lost: tuple[str, ...]
    silent: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Left(Event):
    """This node has left the run."""


@dataclass(frozen=True, kw_only=True)
class LeaderChanged(Event):
    """This node leads the run from now on.

    Attributes:
        leader: Its name.
    """

    leader: str


@dataclass(frozen=True, kw_only=True)
class Closed(Event):
    """This node has closed the run: nobody can join it any more."""


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
        """Return the observers that the installed extensions bring, but for idle ones."""
        from rdzv.plugins import extensions

        hook = extensions().hook
        told = [
            (each.plugin_name, _caller(each.function, each.argnames))
            for each in hook.rdzv_event.get_hookimpls()
        ]
        return cls(told + list(_made(hook.rdzv_observer.get_hookimpls())))

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
        if not self._observers:
            return
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


def _made(found: Iterable[HookImpl]) -> Iterator[tuple[str, Callable[[Event], object]]]:
    """What the implementations of ``rdzv_observer`` answer; one that fails costs no other."""
    for each in found:
        try:
            observer: Any = each.function()
        except Exception:  # whatever a stranger's code raises must cost no job
            log.warning("The rdzv observer '%s' is left out.", each.plugin_name, exc_info=True)
            continue
        if observer is not None:
            yield each.plugin_name, observer


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
