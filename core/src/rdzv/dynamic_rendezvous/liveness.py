"""Who is alive: observed change of a counter, measured on the observer's own clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Silence"]


class Silence:
    """How long nodes have gone without a beat, as far as this observer has looked.

    Only successful looks count, and each adds no more than two of its periods, nor
    so much that it would be a death by itself: an observer that slept learns nothing
    from having slept. After a gap longer
    than ``patience`` everybody starts afresh, since whatever kept the observer
    from looking (its own pause, an outage of the store) may have kept the others
    from beating.

    Args:
        patience: The longest delay of a beat that must be borne (seconds).
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._counts: dict[str, object] = {}
        self._silent: dict[str, float] = {}
        self._alive: set[str] = set()
        self._looked: float | None = None

    def observe(self, counts: Mapping[str, object], now: float, period: float) -> set[str]:
        """Take in one look and return the nodes that beat since the one before.

        Args:
            counts: Each node's beat counter, or whatever else changes with each beat and
                with nothing but a beat or the place of it; nodes that are not in it are
                forgotten.
            now: The observer's monotonic clock (seconds).
            period: The time from one look to the next, as planned (seconds).
        """
        gap = 0.0 if self._looked is None else now - self._looked
        afresh = gap > max(self._patience, 2 * period)
        self._looked = now
        seen = set()
        silent = {}
        for node, count in counts.items():
            known = self._counts.get(node)
            if known is not None and known != count:
                seen.add(node)
            if known is None or known != count or afresh:
                silent[node] = 0.0
            else:
                silent[node] = self._silent[node] + min(gap, 2 * period, self._patience)
        self._counts = dict(counts)
        self._silent = silent
        self._alive = (seen if afresh else self._alive | seen) & counts.keys()
        return seen

    def of(self, node: str) -> float:
        """Seconds that ``node`` has been seen silent."""
        return self._silent.get(node, 0.0)

    def has_beaten(self, node: str, within: float) -> bool:
        """Whether ``node`` was seen to beat, and to be silent for no more than ``within`` since."""
        return node in self._alive and self.of(node) <= within

    def suspects(self, nodes: Iterable[str]) -> list[str]:
        """Those of ``nodes`` that did not beat between the last two looks."""
        return [node for node in nodes if self._silent.get(node, 0.0) > 0]
