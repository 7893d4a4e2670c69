"""Whether a history of reads and compare-and-sets by many clients is that of one register.

The checker is that of Wing and Gong with Lowe's memory of what was tried: it looks
for an order of the operations that respects real time (what ended before another
began comes before it) in which each has the outcome that it had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["Operation", "contradiction"]


@dataclass(frozen=True)
class Operation:
    """One operation on the register, which holds ``None`` at first.

    Every compare-and-set of a history must write a value of its own.

    Attributes:
        client: Who did it, for people.
        began: When it was called; any clock that all share.
        ended: When it returned.
        seen: The value that it was told is stored, after the operation.
        expected: For a compare-and-set, the value to be replaced.
        new: For a compare-and-set, the value to write; ``None`` for a read.
        won: Whether it was told that it wrote; ``None`` where it failed, so that
            it may take effect at any time after ``began``, or never.
    """

    client: str
    began: float
    ended: float
    seen: Hashable = None
    expected: Hashable = None
    new: Hashable = None
    won: bool | None = False

    def __str__(self) -> str:
        if self.new is None:
            return f"{self.client} read {self.seen!r}"
        outcome = {True: "won", False: f"lost to {self.seen!r}", None: "failed"}[self.won]
        return f"{self.client} set {self.expected!r} -> {self.new!r}: {outcome}"

    def apply(self, value: Hashable) -> tuple[bool, Hashable]:
        """Whether it can take effect while the register holds ``value``, and what it leaves."""
        if self.new is None:
            return self.seen == value, value
        wins = value == self.expected
        if self.won is None:
            return True, self.new if wins else value
        if self.won:
            return wins, self.new
        return not wins and self.seen == value, value


def contradiction(history: Sequence[Operation]) -> list[Operation] | None:
    """Look for what no order of the operations explains.

    Returns:
        ``None`` where the history is linearizable; else the operations that were
        under way or next where the longest explanation ends.
    """
    operations = sorted(history, key=lambda each: each.began)
    # What failed need not have happened: it may come at any time, or not at all.
    needed = sum(1 << n for n, each in enumerate(operations) if each.won is not None)
    ends = [each.ended if each.won is not None else float("inf") for each in operations]
    tried: set[tuple[int, Hashable]] = set()
    furthest, stuck = -1, 0
    todo: list[tuple[int, Hashable]] = [(0, None)]
    while todo:
        done, value = todo.pop()
        done = _looks(operations, ends, done, value)
        if done & needed == needed:
            return None
        if (done, value) in tried:
            continue
        tried.add((done, value))
        explained = bin(done & needed).count("1")
        if explained > furthest:
            furthest, stuck = explained, done
        for number in _next(operations, ends, done):
            possible, after = operations[number].apply(value)
            if possible and after != value:
                todo.append((done | 1 << number, after))
    return [operations[number] for number in _next(operations, ends, stuck)]


def _looks(operations: Sequence[Operation], ends: Sequence[float], done: int, value: object) -> int:
    """Let all come that can and change nothing: no explanation needs them any later."""
    while True:
        before = done
        for number in _next(operations, ends, done):
            operation = operations[number]
            if operation.won is not None and operation.apply(value) == (True, value):
                done |= 1 << number
        if done == before:
            return done


def _next(operations: Sequence[Operation], ends: Sequence[float], done: int) -> list[int]:
    """Those that can come next: none that is left ended before they began."""
    candidates: list[int] = []
    first_end = float("inf")
    for number, operation in enumerate(operations):
        if done >> number & 1:
            continue
        if operation.began > first_end:
            break  # They are in the order of their beginnings.
        candidates.append(number)
        first_end = min(first_end, ends[number])
    return candidates
