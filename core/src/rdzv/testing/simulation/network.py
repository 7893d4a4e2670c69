"""The way between a node and the store: delays, partitions, lost and doubled messages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rdzv.errors import RendezvousConnectionError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .hub import Hub, Process, Thread
    from .store import Server

__all__ = ["Connection", "Link"]

_RETRANSMISSION = (0.2, 3.0)
"""How late a message is that had to be sent again (seconds)."""

_ECHO = 2.0
"""How late the second copy of a doubled request comes at most (seconds)."""


@dataclass
class Link:
    """What lies between one process and the store.

    Args:
        hub: The world's time.
        chance: Decides on each message.
        delay: The usual time one way (seconds).
    """

    hub: Hub
    chance: random.Random
    delay: float
    blocked: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    """Until when nothing gets through, to the store and from it."""
    blocked_since: float = 0.0
    lossy_until: float = 0.0
    loss: float = 0.0
    """How many messages are lost meanwhile, or doubled: a share of 1."""

    def block(self, seconds: float, *, out: bool, back: bool) -> None:
        """Let nothing through for some time, one way or both."""
        if self.hub.now >= max(self.blocked.values()):
            self.blocked_since = self.hub.now
        for outward, chosen in ((True, out), (False, back)):
            if chosen:
                self.blocked[outward] = max(self.blocked[outward], self.hub.now + seconds)

    def blocked_for(self) -> float:
        """For how long it has been blocked (seconds)."""
        now = self.hub.now
        return now - self.blocked_since if now < max(self.blocked.values()) else 0.0

    def latency(self) -> float:
        """The time that the next message takes; at most twice the usual (seconds)."""
        return self.delay * (0.5 + 1.5 * self.chance.random())

    def carry(
        self, deliver: Callable[[], None], broken: Callable[[], None], *, outward: bool
    ) -> None:
        """Bring a message over, late where TCP has to try again, or break the connection."""
        hub, arrival = self.hub, self.hub.now + self.latency()
        if hub.now < self.blocked[outward]:
            arrival = self.blocked[outward] + self.latency()
        if hub.now >= self.lossy_until or self.chance.random() >= self.loss:
            hub.at(arrival, deliver)
            return
        fate = self.chance.random()
        if fate < 0.4:
            low, high = _RETRANSMISSION
            hub.at(arrival + low + (high - low) * self.chance.random(), deliver)
        elif fate < 0.6 and outward:
            hub.at(arrival, deliver)
            hub.at(arrival + _ECHO * self.chance.random(), deliver)
        else:
            if fate > 0.8:  # It had its effect, and nobody learns of it.
                hub.at(arrival, deliver)
            hub.at(arrival, broken)


class Connection:
    """One connection of a process to the store; one request at a time.

    Args:
        process: Whose it is.
        link: The way it takes.
        server: The store.
        timeout: After which a request that has no answer breaks it (seconds of
            the process's clock); ``None`` for never, as some client libraries do.
        keep_alive: After which a peer that is out of reach breaks it while it
            waits for a push (seconds).
    """

    def __init__(
        self,
        process: Process,
        link: Link,
        server: Server,
        timeout: float | None,
        keep_alive: float,
    ) -> None:
        self.process = process
        self.link = link
        self.alive = True
        self.floor = 0
        """What it has seen of the store's history; see :class:`.store.Server`."""
        self._server = server
        self._timeout = timeout
        self._keep_alive = keep_alive
        self._pending: list[Thread] = []
        self._guard: list[Any] | None = None

    def open(self) -> None:
        """Connect. Raises ``RendezvousConnectionError`` where nobody listens."""
        self.ask("connect", lambda: None)
        self._server.connections.append(self)

    def close(self) -> None:
        """Close it, from any thread; a request that waits fails."""
        if self.alive:
            self.alive = False
            self._server.drop(self)
            self._end(("broken", "it was closed"))

    def ask(self, name: str, execute: Callable[[], Any], sent: int = 0) -> Any:
        """Make a request, and wait for its answer.

        Args:
            name: What to count it as.
            execute: Made at the store, whenever and however often it arrives.
            sent: The bytes of its values.

        Raises:
            RendezvousConnectionError: There is no answer; it may have taken effect.
        """
        pending = self._begin(name, sent)

        def arrive() -> None:
            self._server.serve(lambda: answer(execute()), fail)

        def answer(result: Any) -> None:
            self.link.carry(lambda: self._end(("ok", result), pending), fail, outward=False)

        def fail() -> None:
            self._end(("broken", "it was reset"), pending)

        self.link.carry(arrive, fail, outward=True)
        return self._await(name, pending, self._timeout)

    def watch(
        self,
        name: str,
        key: object,
        ready: Callable[[], bool],
        result: Callable[[], Any],
        timeout: float,
    ) -> Any:
        """Wait at the store until ``ready``; returns ``result``, or ``None`` after ``timeout``."""
        pending = self._begin(name, 0)

        def arrive() -> None:
            self._server.serve(
                lambda: self._server.watch(key, ready, lambda: answer(result()), expire, timeout),
                fail,
            )

        def answer(value: Any) -> None:
            self.floor = self._server.writes  # Who was told of a change also reads it.
            self.link.carry(lambda: self._end(("ok", value), pending), fail, outward=False)

        def expire() -> None:
            answer(None)

        def fail() -> None:
            self._end(("broken", "it was reset"), pending)

        self.link.carry(arrive, fail, outward=True)
        self._keep_watch(pending, fail)
        return self._await(name, pending, None)

    def _keep_watch(self, pending: list[Thread], fail: Callable[[], None]) -> None:
        """Notice, while it waits, that the peer has been out of reach for long."""

        def look() -> None:
            if not pending:
                return
            if self.link.blocked_for() >= self._keep_alive:
                fail()
            else:
                self._guard = self.process.hub.after(self._keep_alive, look)

        self._guard = self.process.hub.after(self._keep_alive, look)

    def broken(self) -> None:
        """The store's end of it is gone."""
        self._end(("broken", "the store has gone away"))
        self.alive = False

    def _begin(self, name: str, sent: int) -> list[Thread]:
        if not self.alive:
            raise RendezvousConnectionError("The connection to the store is closed.")
        counts: Counter[str] = self.process.counts
        counts[name] += 1
        counts["sent"] += sent
        self._pending = [self.process.current_thread()]
        return self._pending

    def _await(self, name: str, pending: list[Thread], timeout: float | None) -> Any:
        outcome: Any = self.process.park(timeout)
        if self._guard is not None:
            self._guard.clear()
            self._guard = None
        if outcome is None:
            pending.clear()
            outcome = ("broken", f"no answer within {timeout} s")
        kind, value = outcome
        if kind == "broken":
            if self.alive:
                self.alive = False
                self._server.drop(self)
            raise RendezvousConnectionError(f"The store did not do {name}: {value}.")
        return value

    def _end(self, outcome: tuple[str, Any], pending: list[Thread] | None = None) -> None:
        pending = self._pending if pending is None else pending
        if pending:
            pending.pop().wake(outcome)
