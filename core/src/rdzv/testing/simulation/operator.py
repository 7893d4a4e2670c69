"""Somebody who changes a run from outside: the real commands, from a process that is no node."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

from rdzv import operating
from rdzv.errors import RendezvousError

from .agents import Recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.dynamic_rendezvous.backend import Session

    from .checks import Checker
    from .hub import Process
    from .scenario import Fault

__all__ = ["Operator", "limits"]


def limits(value: float) -> tuple[int, int]:
    """The limits that a fault's value stands for."""
    chance = random.Random(f"limits {value}")
    low = chance.choice((1, 2, 2, 3))
    return low, low + chance.choice((0, 1, 2))


class Operator:
    """One command on the run.

    Args:
        process: Its process.
        fault: What it does: ``scale``, ``reset`` or ``end``.
        open_session: Its way to the store.
        checker: Is told what it does.
    """

    def __init__(
        self,
        process: Process,
        fault: Fault,
        open_session: Callable[[], Session],
        checker: Checker,
    ) -> None:
        self.process = process
        self.node = process.name
        self.order = {"end": "close"}.get(fault.kind, fault.kind)
        self._fault = fault
        self._open_session = open_session
        self._checker = checker
        process.thread(self._run, "main").start()

    def _run(self) -> None:
        try:
            with contextlib.closing(Recorded(self._open_session(), self, self._checker)) as session:
                self._do(session)
        except RendezvousError as exc:
            self._checker.note(self.node, f"{type(exc).__name__}: {exc}")
        else:
            self._checker.note(self.node, "done")

    def _do(self, session: Session) -> None:
        run, process = "simulated", self.process
        if self._fault.kind == "scale":
            operating.scale(session, run, *limits(self._fault.value), runtime=process)
        elif self._fault.kind == "reset":
            operating.reset(session, run, force=True, runtime=process)
        else:
            operating.close(session, run, runtime=process)
