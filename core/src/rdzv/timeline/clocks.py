"""One time for all nodes of a run, whose machines' clocks differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..eventlog import Line

__all__ = ["TOLERANCE", "Clocks", "align"]

TOLERANCE = 0.05
"""Seconds below which a difference may be the time that news takes: nothing is corrected."""


@dataclass(frozen=True)
class Clocks:
    """How to bring the nodes' monotonic clocks to one time.

    Attributes:
        offset: For each node what to add to its ``at`` (seconds), to have seconds since
            1970 that can be compared.
        corrected: By how much that differs from the node's own time of day (seconds), for
            the nodes where it is more than the tolerance.
        alone: Nodes that share no completed round with the others: they are where their own
            time of day says.
        ambiguous: Rounds in which one rank occurs twice: more than one run of this name.
    """

    offset: Mapping[str, float]
    corrected: Mapping[str, float]
    alone: frozenset[str]
    ambiguous: tuple[int, ...]


def align(nodes: Mapping[str, Sequence[Line]]) -> Clocks:
    """Compare the nodes' clocks by the rounds that they share.

    Every node of a round learns within milliseconds that it was agreed on. From the node
    that has seen most rounds on, one node after the other is put where the median of the
    rounds that it shares with those before it says. The time of day that all are brought
    to is that of the median node.
    """
    # Differences of one node's own clocks: their median, since the time of day may jump.
    own = {
        node: median(line.time.timestamp() - line.at for line in lines)
        for node, lines in nodes.items()
    }
    rounds, ambiguous = _rounds(nodes)
    times: dict[int, list[float]] = {number: [] for each in rounds.values() for number in each}
    offset: dict[str, float] = {}
    left = {node for node, each in rounds.items() if each}
    while left:
        node = max(left, key=lambda node: (_shared(rounds[node], times), len(rounds[node]), node))
        left.discard(node)
        seen = [(at, times[number]) for number, at in rounds[node].items() if times[number]]
        if seen:
            offset[node] = median(median(known) - at for at, known in seen)
        elif not offset:
            offset[node] = own[node]
        else:
            continue
        for number, at in rounds[node].items():
            times[number].append(at + offset[node])
    shift = median(offset[node] - own[node] for node in offset) if offset else 0.0
    corrected = {node: offset[node] - shift - own[node] for node in offset}
    corrected = {node: by for node, by in corrected.items() if abs(by) > TOLERANCE}
    return Clocks(
        {node: own[node] + corrected.get(node, 0.0) for node in nodes},
        corrected,
        frozenset(nodes) - offset.keys(),
        ambiguous,
    )


def _shared(rounds: Iterable[int], times: Mapping[int, Sequence[float]]) -> int:
    """In how many of these rounds a node is whose clock is known."""
    return sum(bool(times[number]) for number in rounds)


def _rounds(
    nodes: Mapping[str, Sequence[Line]],
) -> tuple[dict[str, dict[int, float]], tuple[int, ...]]:
    """When each node heard of which round; without rounds that cannot be one."""
    ranks: dict[int, Counter[int]] = defaultdict(Counter)
    rounds: dict[str, dict[int, float]] = {node: {} for node in nodes}
    for node, lines in nodes.items():
        for line in lines:
            # Later it waits for the workers' store, some nodes longer than others.
            if line.event in ("Ranked", "Completed") and line.round not in rounds[node]:
                rounds[node][line.round] = line.at
                ranks[line.round][line.rank] += 1
    ambiguous = {number for number, seen in ranks.items() if max(seen.values()) > 1}
    kept = {
        node: {number: at for number, at in found.items() if number not in ambiguous}
        for node, found in rounds.items()
    }
    return kept, tuple(sorted(ambiguous))
