"""What a run tells people and observers."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from .. import events
from .leadership import Entry, Roster, Standing
from .messages import Action, Latched, Lost, TookOver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .machine import Machine
    from .settings import RendezvousSettings

__all__ = ["Reporter", "who_is_here"]

log = logging.getLogger(__name__)


class Reporter:
    """Tells logs and observers what the machine reports."""

    def __init__(
        self, run_id: str, node: str, machine: Machine, observers: events.Observers
    ) -> None:
        self._run_id = run_id
        self._node = node
        self._machine = machine
        self._observers = observers

    def __call__(self, action: Action) -> None:
        if isinstance(action, Latched):
            log.info("Node %s has to form a new round: %s.", self._node, action.reason)
        elif isinstance(action, Lost):
            log.warning("Node %s was lost: silent for %.1f s.", action.node, action.silent)
            self.emit(events.Lost, lost=(str(action.node),))
        elif isinstance(action, TookOver):
            log.info("Node %s leads the run '%s' now.", self._node, self._run_id)
            self.emit(events.LeaderChanged, leader=self._node)

    def emit(self, kind: type[events.Event], **fields: Any) -> None:
        """Tell the observers, if there are any."""
        if self._observers.active:
            event = kind(
                run_id=self._run_id,
                node=self._node,
                round=self._machine.round,
                at=time.monotonic(),
                **fields,
            )
            self._observers.emit(event)


_MOST_NAMES = 20


def _names(entries: Sequence[Entry]) -> str:
    shown = ", ".join(str(entry.record) for entry in entries[:_MOST_NAMES])
    more = len(entries) - _MOST_NAMES
    return f"{shown} and {more} others" if more > 0 else shown


def who_is_here(roster: Roster, settings: RendezvousSettings, me: str) -> str:
    """Say who came for a round that did not complete, and who is missing."""
    here = roster.those(Standing.BACK, Standing.NEW)
    others = [entry for entry in here if str(entry.record) != me]
    missing = settings.min_nodes - len({str(e.record) for e in here} | {me})
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
            f"min_nodes={settings.min_nodes}. Check that all nodes were started with this run id "
            "and endpoint, or raise join_timeout"
        )
    return "; ".join(parts) + "."
