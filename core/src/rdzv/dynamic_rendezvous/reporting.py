"""What a run tells people and observers."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from .. import events
from . import messages as msg
from .leadership import Entry, Roster, Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .machine import Machine
    from .messages import Action

__all__ = ["Reporter", "who_is_here"]

log = logging.getLogger(__name__)


class Reporter:
    """Tells logs and observers what the machine reports, in the order in which it happens."""

    def __init__(
        self, run_id: str, node: str, backend: str, machine: Machine, observers: events.Observers
    ) -> None:
        self._run_id = run_id
        self._node = node
        self._backend = backend
        self._machine = machine
        self._observers = observers
        self._joined = 0.0

    def __call__(self, action: Action) -> None:
        if isinstance(action, msg.Latched):
            log.info("Node %s has to form a new round: %s.", self._node, action.reason)
        elif isinstance(action, msg.Lost):
            log.warning("Node %s was lost: silent for %.1f s.", action.node, action.silent)
        elif isinstance(action, msg.TookOver):
            log.info("Node %s leads the run '%s' now.", self._node, self._run_id)
        elif isinstance(action, msg.Deferred):
            log.info(
                "%d waiting to join run '%s' until its workers have reached a checkpoint.",
                action.waiting,
                self._run_id,
            )
        elif isinstance(action, msg.Admitted):
            log.info(
                "%d let into round %d of run '%s': %s.",
                action.arrived,
                self._machine.round,
                self._run_id,
                action.why,
            )
        if self._observers.active:
            self._observe(action)

    def _observe(self, action: Action) -> None:
        if isinstance(action, msg.Latched):
            counts = {} if action.change is None else msgspec.structs.asdict(action.change)
            self.emit(events.Reopened, reason=action.reason, **counts)
        elif isinstance(action, msg.Lost):
            self.emit(events.Lost, lost=(str(action.node),), silent=action.silent)
        elif isinstance(action, msg.TookOver):
            self.emit(events.LeaderChanged, leader=self._node)
        elif isinstance(action, msg.Deferred):
            self.emit(events.Deferred, waiting=action.waiting)
        elif isinstance(action, msg.Admitted):
            self.emit(events.Admitted, arrived=action.arrived, why=action.why)
        elif isinstance(action, msg.Waits):
            self.emit(events.Waiting, spare=action.spare, deferred=action.deferred)
        elif isinstance(action, msg.Called):
            self.emit(events.LastCall, nodes=action.nodes, seconds=action.seconds)
        elif isinstance(action, msg.Ranked):
            self.emit(events.Ranked, rank=action.rank, world_size=action.size)
        elif isinstance(action, msg.Joined):
            took = time.monotonic() - self._joined
            self.emit(events.Completed, rank=action.rank, world_size=action.size, seconds=took)

    def joins(self) -> None:
        """This node begins to join."""
        if self._observers.active:
            self._joined = time.monotonic()
            self.emit(events.Joined)

    def left(self) -> None:
        """This node has left; there is nothing more to be told."""
        self.emit(events.Left)
        self._observers.close()

    def emit(self, kind: type[events.Event], **fields: Any) -> None:
        """Tell the observers, if there are any."""
        if self._observers.active:
            event = kind(
                run_id=self._run_id,
                node=self._node,
                round=self._machine.round,
                at=time.monotonic(),
                backend=self._backend,
                **fields,
            )
            self._observers.emit(event)


_MOST_NAMES = 20


def _names(entries: Sequence[Entry]) -> str:
    shown = ", ".join(str(entry.record) for entry in entries[:_MOST_NAMES])
    more = len(entries) - _MOST_NAMES
    return f"{shown} and {more} others" if more > 0 else shown


def who_is_here(roster: Roster, min_nodes: int, me: str) -> str:
    """Say who came for a round that did not complete, and who is missing."""
    here = roster.those(Standing.BACK, Standing.NEW)
    others = [entry for entry in here if str(entry.record) != me]
    missing = min_nodes - len({str(e.record) for e in here} | {me})
    if others:
        parts = [f"this node ({me}) was here, and so were {_names(others)}"]
    else:
        parts = [f"only this node ({me}) was here"]
    absent = roster.those(Standing.HERE)
    if absent:
        parts.append("still to come back: " + _names(absent))
    lost = roster.gone()
    if lost:
        parts.append("gone: " + _names(lost))
    if missing > 0:
        parts.append(
            f"{missing} more {'is' if missing == 1 else 'are'} needed for "
            f"min_nodes={min_nodes}. Check that all nodes were started with this run id "
            "and endpoint, or raise join_timeout"
        )
    return "; ".join(parts) + "."
