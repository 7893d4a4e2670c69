"""Who is alive: observed change of a counter on the observer's own clock, or a lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .backend import HELD

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

    Where the store keeps a lease for each node, a lease that ends is a death, if this
    observer has looked without a gap for ``patience``. After a gap it may have
    ended because its node was kept from renewing it, too: so it says that the node has
    been silent since the gap was over, and counting goes on.

    Args:
        patience: The longest delay of a beat that must be borne (seconds).
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._counts: dict[str, tuple[int, int]] = {}
        self._silent: dict[str, float] = {}
        self._alive: set[str] = set()
        self._ended: set[str] = set()
        self._looked: float | None = None
        self._steady_since = 0.0

    def observe(self, counts: Mapping[str, tuple[int, int]], now: float, period: float) -> set[str]:
        """Take in one look and return the nodes that beat since the one before.

        Args:
            counts: The slot where each node beats, and its number there as
                :meth:`.backend.Session.beats` has it; nodes that are not in it are forgotten.
            now: The observer's monotonic clock (seconds).
            period: The time from one look to the next, as planned (seconds).
        """
        gap = 0.0 if self._looked is None else now - self._looked
        afresh = gap > max(self._patience, 2 * period)
        if self._looked is None or afresh:
            self._steady_since = now
        steady = min(now - self._steady_since, self._patience)
        self._looked = now
        seen = set()
        silent = {}
        ended = set() if afresh else self._ended & counts.keys()
        for node, count in counts.items():
            known = self._counts.get(node)
            lapsed = known == (count[0], HELD) and count[1] != HELD
            beaten = known is not None and (known != count or count[1] == HELD) and not lapsed
            if beaten:
                seen.add(node)
                ended.discard(node)
            if lapsed:
                # It has been silent for as long as its lease was.
                silent[node] = steady
                if steady >= self._patience:
                    ended.add(node)
            elif known is None or beaten or afresh:
                silent[node] = 0.0
            else:
                silent[node] = self._silent[node] + min(gap, 2 * period, self._patience)
        self._counts = dict(counts)
        self._ended = ended
        self._silent = silent
        self._alive = (seen if afresh else self._alive | seen) & counts.keys()
        return seen

    def of(self, node: str) -> float:
        """Seconds that ``node`` has been seen silent."""
        return self._silent.get(node, 0.0)

    def has_ended(self, node: str) -> bool:
        """Whether the lease of ``node`` was seen to end: it is dead, without more silence."""
        return node in self._ended

    def has_beaten(self, node: str, within: float) -> bool:
        """Whether ``node`` was seen to beat, and to be silent for no more than ``within`` since."""
        return node in self._alive and self.of(node) <= within

    def suspects(self, nodes: Iterable[str]) -> list[str]:
        """Those of ``nodes`` that did not beat between the last two looks."""
        return [node for node in nodes if self._silent.get(node, 0.0) > 0]
