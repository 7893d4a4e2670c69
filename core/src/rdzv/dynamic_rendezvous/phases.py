"""The life of a node: its phases, and every step from one to another.

``TRANSITIONS`` is the whole of it. A step that is not in it is a bug, and raises
:class:`IllegalTransition` with the steps that led there.
"""

from __future__ import annotations

import enum

__all__ = ["IN_ROSTER", "IN_ROUND", "TRANSITIONS", "IllegalTransition", "Phase"]


class Phase(enum.Enum):
    """Where a node is in its life."""

    IDLE = "not in the run"
    ATTACHING = "asks for the run's document"
    ENTERING = "asks for a ticket"
    WAITING = "has a ticket, waits for a round to complete"
    SPARE = "has a ticket, the round is full or lets nobody in before a checkpoint"
    RANKING = "a round has completed, asks for its rank"
    BOOTSTRAPPING = "has a rank, waits for the address of the workers' store"
    MEMBER = "participant of a completed round"
    LEFT = "has left the run"


IN_ROSTER = frozenset(
    {Phase.WAITING, Phase.SPARE, Phase.RANKING, Phase.BOOTSTRAPPING, Phase.MEMBER}
)

IN_ROUND = frozenset({Phase.RANKING, Phase.BOOTSTRAPPING, Phase.MEMBER})
"""A round has completed, and this node may well be in it."""

TRANSITIONS: dict[tuple[Phase, Phase], str] = {
    (Phase.IDLE, Phase.ATTACHING): "joins, the run is not known yet",
    (Phase.IDLE, Phase.ENTERING): "joins again",
    (Phase.ATTACHING, Phase.ENTERING): "the run is known",
    (Phase.ATTACHING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.ENTERING, Phase.WAITING): "has its ticket",
    (Phase.ENTERING, Phase.ENTERING): "the connection was lost, takes another ticket",
    (Phase.ENTERING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.WAITING, Phase.SPARE): "is not let in",
    (Phase.SPARE, Phase.WAITING): "can be let in",
    (Phase.WAITING, Phase.RANKING): "a round has completed",
    (Phase.SPARE, Phase.RANKING): "a round has completed",
    (Phase.RANKING, Phase.WAITING): "without this node",
    (Phase.RANKING, Phase.BOOTSTRAPPING): "with this node",
    (Phase.BOOTSTRAPPING, Phase.MEMBER): "the workers' store is known",
    (Phase.WAITING, Phase.ENTERING): "may have been taken for dead, takes another ticket",
    (Phase.SPARE, Phase.ENTERING): "may have been taken for dead, takes another ticket",
    (Phase.RANKING, Phase.ENTERING): "the round was superseded",
    (Phase.BOOTSTRAPPING, Phase.ENTERING): "the round was abandoned before its store was known",
    (Phase.MEMBER, Phase.ENTERING): "comes back for the next round",
    (Phase.MEMBER, Phase.IDLE): "time is up",
    (Phase.WAITING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.SPARE, Phase.IDLE): "the run is closed, or time is up",
    (Phase.RANKING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.BOOTSTRAPPING, Phase.IDLE): "the run is closed, or time is up",
} | {(phase, Phase.LEFT): "leaves the run" for phase in Phase if phase is not Phase.LEFT}


class IllegalTransition(AssertionError):  # noqa: N818 - what it is called in the field
    """The machine was led where it cannot go: a bug, told with its history."""
