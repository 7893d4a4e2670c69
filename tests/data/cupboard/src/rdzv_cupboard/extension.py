"""An observer that writes a log, and a rank policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rdzv import RankNode, RankPolicy, hookimpl
from rdzv.events import Completed, Event

rdzv_api = 1


@hookimpl
def rdzv_event(event: Event) -> None:
    """Append the rounds of this node to a file."""
    path = os.environ.get("RDZV_CUPBOARD_LOG")
    if path and isinstance(event, Completed):
        with Path(path).open("a") as log:
            log.write(f"{event.run_id} round {event.round}: {event.rank} of {event.world_size}\n")


def _reversed(nodes: Sequence[RankNode], leader: str) -> Sequence[RankNode]:
    return sorted(nodes, key=lambda node: node.seniority(leader), reverse=True)


@hookimpl
def rdzv_rank_policies() -> Sequence[RankPolicy]:
    """Offer the policy."""
    return [RankPolicy("cupboard-reversed", "who came last is first", _reversed)]
