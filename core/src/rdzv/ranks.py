"""Rank policies: the records that a policy is made of and sees, and how labels are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = [
    "MAX_LABELS",
    "MAX_NUMBER",
    "Labels",
    "RankFunction",
    "RankNode",
    "RankPolicy",
    "parse_labels",
]

Labels = tuple[tuple[str, str], ...]
"""Where a node stands, outermost first: ``(("rack", "r1"), ("nvlink", "d3"))``."""

MAX_LABELS = 4
"""A node has no more labels than this."""

MAX_NUMBER = 10**6
"""No scheduler's number of a node is above this."""

_LABEL = re.compile(r"[0-9A-Za-z._-]{1,32}:[0-9A-Za-z._-]{1,63}")
_POLICY_NAME = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True)
class RankNode:
    """One node of the round that is about to complete, as a rank policy sees it.

    Attributes:
        node: The node's incarnation: random, of this handler alone.
        address: Under which the others reach it.
        rank: Its rank in the round before; -1 where it was not in it.
        ticket: Who arrived earlier has a lower one. A node that comes back for a
            round takes a new one, so it tells newcomers apart and no others.
        labels: Where it stands, outermost first; empty where it was not told.
        number: The number that its scheduler gave it, 0 or more; ``None`` where
            it was not told.
    """

    node: str
    address: str
    rank: int
    ticket: int
    labels: Labels = ()
    number: int | None = None

    def seniority(self, leader: str) -> tuple[bool, int, bool, int]:
        """A key to sort by: who was in the round before by rank, the leader, others by arrival."""
        return self.rank < 0, self.rank, self.node != leader, self.ticket


RankFunction = Callable[[Sequence[RankNode], str], Sequence[RankNode]]
"""Takes the nodes of a round and the leader's incarnation; returns the nodes by their new ranks."""


@dataclass(frozen=True)
class RankPolicy:
    """A way to give out ranks, as ``rdzv_rank_policies`` returns it.

    Attributes:
        name: What users choose it by: letters, digits, ``_`` and ``-``, 64 at most.
        summary: One line on what it does.
        rank: Takes the nodes of a round, in no order to rely on, and the
            incarnation of the leader; returns the same records in the order of
            their ranks, the first is rank 0. It has to be pure and quick (a
            few milliseconds): the leader calls it in the middle of its work, maybe
            several times for one round. What it returns is checked; where it is not
            every node once, or where it raises, this is logged once and the round
            is ranked as by ``sticky``.

    Raises:
        ValueError: A field is not as described.
    """

    name: str
    summary: str
    rank: RankFunction

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _POLICY_NAME.fullmatch(self.name):
            raise ValueError(
                f"The name {self.name!r} of a rank policy must consist of letters, digits, '_' and "
                "'-', 64 at most."
            )
        if not isinstance(self.summary, str) or not self.summary or "\n" in self.summary:
            raise ValueError(f"The summary of the rank policy '{self.name}' must be one line.")
        if not callable(self.rank):
            raise ValueError(f"'rank' of the rank policy '{self.name}' cannot be called.")


def parse_labels(text: str, where: str = "labels") -> Labels:
    """Read labels as users write them: ``rack:r1/nvlink:d3``, outermost first.

    Args:
        text: The labels; empty for none.
        where: Where they were given, for the error.

    Raises:
        ValueError: It is written otherwise, a name comes twice, or there are more
            than four.
    """
    if not isinstance(text, str):
        raise ValueError(f"The labels of this node ({where}) must be a text, not {text!r}.")
    if not text.strip():
        return ()
    parts = [part.strip() for part in text.split("/")]
    labels = tuple((name, value) for name, _, value in (part.partition(":") for part in parts))
    if (
        not all(_LABEL.fullmatch(part) for part in parts)
        or len(parts) > MAX_LABELS
        or len({name for name, _ in labels}) < len(labels)
    ):
        raise ValueError(
            f"The labels of this node ({where}) are {text[:200]!r}; they must be written "
            f"name:value/name:value, outermost first, such as rack:r1/nvlink:d3: up to "
            f"{MAX_LABELS}, each name once; letters, digits, '.', '_' and '-', up to 32 of them in "
            "a name and 63 in a value."
        )
    return labels
