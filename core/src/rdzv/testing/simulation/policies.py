"""The rank policies that a simulated run may have: those that are built in, and a hostile one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from rdzv.dynamic_rendezvous.ranking import BUILT_IN, Ranking
from rdzv.ranks import RankNode, RankPolicy, parse_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .scenario import Node

__all__ = ["HOSTILE", "ranking", "split_group"]


def _hostile(nodes: Sequence[RankNode], leader: str) -> Any:
    """Wrong in another way each time, as far as can be told from what it is given."""
    strange = RankNode("nobody", "nowhere", -1, 0)
    ways: list[Any] = [
        None,
        list(nodes[1:]),
        [*nodes, nodes[0]],
        [nodes[0]] * len(nodes),
        [strange, *nodes[1:]],
        [node.rank for node in nodes],
        itertools.cycle(nodes),
        leader,
        nodes[::-1],  # Odd, and right.
    ]
    way = sum(node.ticket for node in nodes) % (len(ways) + 2)
    if way == len(ways):
        raise SystemExit("no more of this")
    if way > len(ways):
        raise RuntimeError(leader)
    return ways[way]


HOSTILE = RankPolicy("hostile", "raises, or returns what is no order of the nodes", _hostile)


def ranking(policy: str, node: Node) -> Ranking:
    """What a node of a scenario with this policy is started with."""
    chosen = HOSTILE if policy == HOSTILE.name else BUILT_IN[policy]
    return Ranking(chosen, parse_labels(node.labels), node.number)


def split_group(ranks: Mapping[str, int], labels: Mapping[str, Sequence[Any]]) -> str:
    """Two nodes with the same labels between which another has its rank, if there are any.

    Args:
        ranks: The nodes of a round, and their ranks.
        labels: The nodes' labels, outermost first.
    """
    order = sorted(ranks, key=lambda node: ranks[node])
    deepest = max((len(labels[node]) for node in order), default=0)
    for depth in range(1, deepest + 1):
        last: dict[Any, int] = {}
        for rank, node in enumerate(order):
            group = tuple(labels[node][:depth])
            if len(group) == depth:
                if last.get(group, rank - 1) != rank - 1:
                    return f"{order[last[group]]} and {node}, both of {group}"
                last[group] = rank
    return ""
