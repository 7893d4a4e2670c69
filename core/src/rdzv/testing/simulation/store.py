"""The store: keys and values on one server, of good and of bad kinds."""

from __future__ import annotations

import bisect
import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .hub import Hub, Process
    from .network import Connection

__all__ = ["Kind", "Server"]


class Kind(enum.Enum):
    """What a store can be trusted with."""

    LINEARIZABLE = "linearizable"
    STALE = "stale reads: what is read may be old, but never older than what the connection saw"
    FORGETFUL = "loses its memory when it restarts"
    LOSING = "loses its last acknowledged writes when it fails over"
    SLOW = "slow to answer"


class Server:
    """One server. Everything in it happens at one moment, when a request is served.

    Args:
        hub: The world's time.
        chance: Decides how slow and how stale it is.
        kind: What it can be trusted with.
        lag: How old a stale read, or what is left after a failover, is at most (seconds).
    """

    def __init__(self, hub: Hub, chance: random.Random, kind: Kind, lag: float) -> None:
        self.kind = kind
        self.data: dict[Any, Any] = {}
        self.size = 0
        """Bytes stored."""
        self.writes = 0
        self.writer: Process | None = None
        """Whose compare-and-set has last taken effect."""
        self.connections: list[Connection] = []
        self.losses = 0
        """How often it has come back with less than it had."""
        self.down_until = 0.0
        self.outages: list[tuple[float, float]] = []
        """When it went, and when it came back (seconds)."""
        self.frozen_until = 0.0
        self.slow_until = 0.0
        self.slowness = 0.0
        self.on_write: Callable[[Any, Any], None] = lambda _key, _value: None
        self.on_loss: Callable[[], None] = lambda: None
        self._hub = hub
        self._chance = chance
        self._lag = lag
        self._keeps_history = kind in (Kind.STALE, Kind.LOSING)
        self._history: dict[Any, list[tuple[int, Any]]] = {}
        self._times: list[float] = []
        self._tokens = 0
        self._watchers: dict[Any, list[_Watcher]] = {}

    @property
    def now(self) -> float:
        """The server's own time (seconds)."""
        return self._hub.now

    # ------------------------------------------------------------ trouble

    def fail(self, seconds: float) -> None:
        """Be gone for some time, and come back as this kind of store does."""
        hub = self._hub
        self.down_until = hub.now + seconds
        self.outages.append((hub.now, self.down_until))
        self._watchers.clear()
        connections, self.connections = self.connections, []
        for connection in connections:
            hub.after(connection.link.latency(), connection.broken)
        if self.kind is Kind.FORGETFUL:
            self.data.clear()
            self.size = 0
            self.on_loss()
        elif self.kind is Kind.LOSING:
            self.losses += 1
            self._roll_back()
            self.on_loss()

    def _roll_back(self) -> None:
        index = self._index_at(self._hub.now - self._lag * self._chance.random())
        for key, versions in self._history.items():
            kept = bisect.bisect_right(versions, index, key=lambda v: v[0])
            del versions[kept:]
            self.data.pop(key, None)
            if versions and versions[-1][1] is not None:
                self.data[key] = versions[-1][1]
        del self._times[index:]
        self.writes = index
        self.size = sum(_size(value) for value in self.data.values())

    def drop(self, connection: Connection) -> None:
        """A client has closed its end."""
        if connection in self.connections:
            self.connections.remove(connection)

    # ------------------------------------------------------------ service

    def serve(self, execute: Callable[[], None], refuse: Callable[[], None]) -> None:
        """A request has arrived."""
        hub = self._hub
        if hub.now < self.down_until:
            refuse()
        elif hub.now < self.frozen_until:
            hub.at(self.frozen_until, lambda: self.serve(execute, refuse))
        elif hub.now < self.slow_until or self.kind is Kind.SLOW:
            slowness = self.slowness if hub.now < self.slow_until else self._lag
            hub.after(
                slowness * self._chance.random(),
                lambda: refuse() if hub.now < self.down_until else execute(),
            )
        else:
            execute()

    def watch(
        self,
        key: Any,
        ready: Callable[[], bool],
        answer: Callable[[], None],
        expire: Callable[[], None],
        timeout: float,
    ) -> None:
        """Answer once ``ready``, asked whenever ``key`` is written, or after ``timeout``."""
        if ready():
            answer()
            return
        watcher = _Watcher(ready, answer)
        waiting = self._watchers.setdefault(key, [])
        waiting.append(watcher)

        def stop() -> None:
            if watcher in waiting:
                waiting.remove(watcher)
                expire()

        watcher.timer = self._hub.after(timeout, stop)

    # ------------------------------------------------------------ keys and values

    def get(self, key: Any, view: int | None = None) -> Any:
        """The value now, or as of an earlier number of writes; ``None`` where there is none."""
        if view is None:
            return self.data.get(key)
        versions = self._history.get(key, ())
        place = bisect.bisect_right(versions, view, key=lambda v: v[0])
        return versions[place - 1][1] if place else None

    def view(self, connection: Connection) -> int | None:
        """What a read over this connection sees: ``None`` for everything."""
        if self.kind is not Kind.STALE:
            return None
        floor = self._index_at(self._hub.now - self._lag * self._chance.random() ** 2)
        connection.floor = max(connection.floor, floor)
        return connection.floor

    def put(self, key: Any, value: Any) -> None:
        """Store a value; ``None`` deletes the key."""
        self.size += _size(value) - _size(self.data.get(key))
        if value is None:
            self.data.pop(key, None)
        else:
            self.data[key] = value
        self.writes += 1
        if self._keeps_history:
            self._history.setdefault(key, []).append((self.writes, value))
            self._times.append(self._hub.now)
        self.on_write(key, value)
        self.wake(key)

    def next_token(self) -> str:
        """A token that was never given out before, and says nothing by itself."""
        self._tokens += 1
        return f"t{self._tokens}"

    def wake(self, key: Any) -> None:
        """Ask those who wait for ``key`` whether they are ready."""
        waiting = self._watchers.get(key)
        if waiting:
            for watcher in [w for w in waiting if w.ready()]:
                waiting.remove(watcher)
                watcher.timer.clear()
                watcher.answer()

    def _index_at(self, time: float) -> int:
        return bisect.bisect_right(self._times, time)


class _Watcher:
    def __init__(self, ready: Callable[[], bool], answer: Callable[[], None]) -> None:
        self.ready = ready
        self.answer = answer
        self.timer: list[Any] = []


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, tuple):
        return sum(_size(part) for part in value)
    return 0 if value is None else 8
