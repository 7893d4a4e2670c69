"""The axis of time of a page, on which long quiet stretches are drawn short."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Axis", "Break", "duration"]

_SMALL_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)
_STEPS = (*_SMALL_STEPS, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)

_SHORTENED = 1.5
"""A stretch is drawn shorter only if that saves so much of it (times)."""


@dataclass(frozen=True)
class Break:
    """A stretch that is drawn shorter than it was: its percent of the axis, and its seconds."""

    start: float
    end: float
    seconds: float


class Axis:
    """Maps times to percents.

    Args:
        times: When something happened; the first and the last are its ends.
        most: The seconds that a stretch in which nothing happened is drawn as at most.
    """

    def __init__(self, times: Iterable[float], most: float) -> None:
        self._times = sorted(set(times)) or [0.0]
        self.start = self._times[0]
        drawn = [0.0]
        shortened = []
        for number, (a, b) in enumerate(pairwise(self._times)):
            gap = b - a
            if gap > _SHORTENED * most:
                shortened.append(number)
                gap = most
            drawn.append(drawn[-1] + gap)
        self._whole = drawn[-1] or 1.0
        self._drawn = drawn
        self._shortened = frozenset(shortened)
        self.breaks = [
            Break(
                100 * drawn[n] / self._whole,
                100 * drawn[n + 1] / self._whole,
                self._times[n + 1] - self._times[n],
            )
            for n in shortened
        ]

    def percent(self, time: float) -> float:
        """Where a time is, from 0 to 100."""
        number = max(0, min(bisect_right(self._times, time) - 1, len(self._times) - 2))
        if len(self._times) < 2:
            return 0.0
        a, b = self._times[number : number + 2]
        share = min(1.0, max(0.0, (time - a) / (b - a)))
        low, high = self._drawn[number : number + 2]
        return 100 * (low + share * (high - low)) / self._whole

    def ticks(self, apart: float) -> list[tuple[float, float]]:
        """Round times since the start with their percents, at least so many percents apart."""
        least = self._whole * apart / 100
        step = next((step for step in _STEPS if step >= least), _STEPS[-1])
        found: list[tuple[float, float]] = []
        for number, (a, b) in enumerate(pairwise(self._times)):
            if number in self._shortened:
                continue
            tick = -(-(a - self.start) // step)
            while (seconds := tick * step) <= b - self.start and len(found) < 1000:
                where = self.percent(self.start + seconds)
                if not found or where - found[-1][1] >= apart:
                    found.append((seconds, where))
                tick += 1
        return found


def duration(seconds: float) -> str:
    """A time for people, with the digits that matter."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
