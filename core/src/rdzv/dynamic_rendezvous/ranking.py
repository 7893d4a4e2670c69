"""How ranks are given out: the policies that are built in, and any policy made safe to ask."""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ranks import MAX_NUMBER, Labels, RankNode, RankPolicy, parse_labels
from .leadership import Entry, assign_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..api import RendezvousParameters
    from .leadership import Assign

__all__ = ["BUILT_IN", "STICKY", "Ranking", "checked"]

log = logging.getLogger(__name__)

_LABELS = "RDZV_LABELS"

_NUMBERS = ("JOB_COMPLETION_INDEX", "SLURM_PROCID", "SLURM_NODEID")
"""Where schedulers say a node's number. Of Slurm's, that of the task tells more than the node's."""


def _sticky(nodes: Sequence[RankNode], leader: str) -> Sequence[RankNode]:
    return assign_ranks(nodes, leader)


def _topology(nodes: Sequence[RankNode], leader: str) -> Sequence[RankNode]:
    # Groups are ordered as the most senior of each, so rank 0 and the groups stay.
    return list(_grouped(sorted(nodes, key=lambda node: node.seniority(leader)), 0))


def _grouped(nodes: Sequence[RankNode], depth: int) -> Iterable[RankNode]:
    """Those with the same label at ``depth`` together, and within them the same one deeper."""
    groups: dict[object, list[RankNode]] = {}
    for node in nodes:
        label = node.labels[depth] if depth < len(node.labels) else node.node
        groups.setdefault(label, []).append(node)
    for group in groups.values():
        yield from group if len(group) == 1 else _grouped(group, depth + 1)


def _scheduler(nodes: Sequence[RankNode], leader: str) -> Sequence[RankNode]:
    def key(node: RankNode) -> tuple[object, ...]:
        return node.number is None, node.number or 0, node.seniority(leader)

    return sorted(nodes, key=key)


STICKY = RankPolicy(
    "sticky", "who stays keeps its rank, newcomers fill the gaps in the order of arrival", _sticky
)
BUILT_IN = {
    policy.name: policy
    for policy in (
        STICKY,
        RankPolicy("topology", "nodes with the same labels get neighbouring ranks", _topology),
        RankPolicy("scheduler", "ranks in the order of the scheduler's numbers", _scheduler),
    )
}


@dataclass(frozen=True)
class Ranking:
    """What a node was told about ranks.

    Attributes:
        policy: Gives out the ranks.
        labels: Where the node stands.
        number: Its number, or -1.
    """

    policy: RankPolicy = STICKY
    labels: Labels = ()
    number: int = -1

    @classmethod
    def made(
        cls,
        name: str | None,
        labels: str | None,
        number: int | None,
        environment: Mapping[str, str] = os.environ,
    ) -> Ranking:
        """From settings, and from the environment for what they leave out.

        Args:
            name: The policy's; ``sticky`` where there is none.
            labels: As :func:`~rdzv.ranks.parse_labels` reads them; else ``RDZV_LABELS``.
            number: The node's, 0 or more; else what the scheduler has set.
            environment: The process's variables. They are not looked at for ``sticky``,
                which needs nothing of them.

        Raises:
            UnknownRankPolicyError: No such policy is built in or installed.
            DuplicateRankPolicyError: More than one extension offers it.
            ValueError: Labels or number are not as described.
        """
        if not isinstance(name, str | None):
            raise ValueError(f"rank_policy must be a name, not {name!r}.")
        policy = BUILT_IN.get(name or STICKY.name) or _installed(name or "")
        found = () if labels is None else parse_labels(labels)
        if number is not None and not 0 <= number <= MAX_NUMBER:
            raise ValueError(f"node_number is {number}; it must be from 0 to {MAX_NUMBER}.")
        if policy is STICKY:
            return cls()
        if labels is None:
            found = parse_labels(environment.get(_LABELS, ""), f"in {_LABELS}")
        if number is None:
            number = _from_scheduler(environment)
        return cls(policy, found, -1 if number is None else number)

    @classmethod
    def of(cls, params: RendezvousParameters) -> Ranking:
        """From the parameters of a run; raises as :meth:`made` does."""
        get = params.get
        return cls.made(get("rank_policy"), get("labels"), params.get_as_int("node_number"))

    @property
    def recorded(self) -> str:
        """The policy's name as a run's document has it: nothing for ``sticky``."""
        return "" if self.policy is STICKY else self.policy.name


def _installed(name: str) -> RankPolicy:
    # Not before: most runs need no plugin for this.
    from ..plugins import load_rank_policy

    return load_rank_policy(name, BUILT_IN)


def _from_scheduler(environment: Mapping[str, str]) -> int | None:
    for variable in _NUMBERS:
        text = environment.get(variable, "").strip()
        if text:
            if text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= MAX_NUMBER:
                return int(text)
            raise ValueError(
                f"The environment variable {variable} is {text[:40]!r}, which is no node's number "
                f"from 0 to {MAX_NUMBER}; give one as the parameter node_number."
            )
    return None


def checked(policy: RankPolicy) -> Assign:
    """A policy for the engine: whatever it does, each node gets one rank.

    Returns:
        A function from the entries of the chosen nodes, and the leader, to their order.
        Where the policy raises or returns something else, it logs that once, and orders
        as ``sticky`` does.
    """
    if policy is STICKY:
        return assign_ranks
    told = False

    def assign(entries: Sequence[Entry], leader: str = "") -> list[Entry]:
        nonlocal told
        known = {entry.node: entry for entry in entries}
        error: BaseException | None = None
        try:
            ranked = policy.rank([_seen(entry) for entry in entries], leader)
            # One too many at most: what it returns may have no end.
            names = [node.node for node in itertools.islice(ranked, len(known) + 1)]
            if len(names) == len(known) and set(names) == known.keys():
                return [known[name] for name in names]
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a stranger's code may raise anything
            error = exc
        if not told:
            told = True
            log.warning(
                "The rank policy '%s' %s, so ranks are given out as by 'sticky'. Further failures "
                "of it are not logged. Tell its authors.",
                policy.name,
                "did not return every node once" if error is None else "failed",
                exc_info=error,
            )
        return assign_ranks(entries, leader)

    return assign


def _seen(entry: Entry) -> RankNode:
    record = entry.record
    number = None if record.node_number < 0 else record.node_number
    return RankNode(entry.node, record.addr, entry.rank, entry.ticket, record.labels, number)
