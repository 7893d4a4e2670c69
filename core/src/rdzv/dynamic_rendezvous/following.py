"""What a node that does not lead sees of the one that does, and when it should take over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .liveness import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from .document import Leader
    from .leader import Settings

__all__ = ["Following"]

_FAR = 4
"""Intervals between two looks at the leader by those who are not next to it."""


class Following:
    """Watches one leader after the other.

    Nodes next to the leader look at it every interval and take over first; the
    others look now and then, and leave it to those unless they are gone as well.

    Args:
        settings: This node's settings.
        jitter: Makes random numbers between 0 and 1.
    """

    def __init__(self, settings: Settings, jitter: Callable[[], float]) -> None:
        self._settings = settings
        self._jitter = jitter
        self._silence = Silence(settings.patience)
        self._vacant_since: float | None = None
        self.due = 0.0
        """When to look next (this node's clock)."""

    def silent(self, node: str) -> float:
        """Seconds that the leader has been seen silent."""
        return self._silence.of(node)

    def another(self) -> None:
        """There is another leader, or none, from now on."""
        self._silence = Silence(self._settings.patience)
        self._vacant_since = None

    def start(self, now: float, *, near: bool) -> None:
        """Watch from now on."""
        self.due = now + self._period(near=near)

    def sooner(self, now: float, *, near: bool) -> None:
        """This node has come nearer to the leader, maybe."""
        self.due = min(self.due, now + self._period(near=near))

    def soon(self, due: float) -> None:
        """Look at ``due`` at the latest."""
        self.due = min(self.due, due)

    def look(self, leader: Leader | None, now: float, *, near: bool) -> bool:
        """It is time to look; returns whether the place has been empty for too long."""
        self.start(now, near=near)
        if leader is not None:
            return False
        if self._vacant_since is None:
            self._vacant_since = now
        return near or now - self._vacant_since >= self._settings.interval

    def seen(self, leader: Leader, count: int, now: float, *, near: bool) -> bool:
        """A look that was asked for; returns whether the leader counts as dead."""
        return self._observe(leader, count, now, self._period(near=near), near=near)

    def seen_along(self, leader: Leader, count: int, now: float, *, near: bool) -> bool:
        """A look that came along with this node's own beat, and will with the next."""
        interval = self._settings.interval
        self.due = now + 1.5 * interval
        return self._observe(leader, count, now, interval, near=near)

    def _period(self, *, near: bool) -> float:
        return self._settings.interval * (1 if near else _FAR)

    def _observe(
        self, leader: Leader, count: int, now: float, period: float, *, near: bool
    ) -> bool:
        self._silence.observe({leader.node: (leader.slot, count)}, now, period)
        limit = self._settings.silence(leader.interval)
        if not near:
            limit += self._settings.interval * (1 + self._jitter())
        silent = self._silence.of(leader.node)
        if silent > 0:
            self.due = min(self.due, now + min(period, limit - silent))
        return limit - silent <= 1e-9 or (near and self._silence.has_ended(leader.node))
