"""Asks the workers of a round for their next checkpoint, while the leader has newcomers waiting."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import RendezvousConnectionError
from .messages import CheckpointReached

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..checkpoints import Gate
    from .document import Master
    from .machine import Machine
    from .runtime import Runtime

__all__ = ["Gatekeeper"]

log = logging.getLogger(__name__)

_LOOK = 0.25
"""Seconds between two looks at what workers have said."""

_RETRY = 1.0
"""Seconds until a workers' store that could not be reached is tried again."""


class Gatekeeper:
    """A thread's work, of a node of a run with deferred admission.

    While there is nothing to ask it does nothing, and it never asks the rendezvous's backend.

    Args:
        machine: The node's machine.
        block: Waits until something holds, or for some seconds.
        submit: Takes a stimulus to the machine.
        stopped: Whether to end.
        runtime: Opens gates.
    """

    def __init__(
        self,
        machine: Machine,
        block: Callable[[Callable[[], bool], float | None], None],
        submit: Callable[[CheckpointReached], None],
        stopped: Callable[[], bool],
        runtime: Runtime,
    ) -> None:
        self._machine = machine
        self._block = block
        self._submit = submit
        self._stopped = stopped
        self._runtime = runtime
        self._warned = 0

    def run(self) -> None:
        """Keep the gate of one round after the other."""
        while not self._stopped():
            gate, number = self._machine.gate(), self._round()
            if gate is not None and gate[2]:
                self._keep(gate[0], gate[1])
            else:
                self._wait((gate, number), None)

    def _keep(self, number: int, master: Master) -> None:
        """Ask until the round is over. What is asked stays in its store, and goes with it."""
        link: Gate | None = None
        asked = reached = False
        while not self._stopped() and self._round() == number:
            gate, seconds = self._machine.gate(), None
            waiting = gate is not None and gate[2]
            # Where it leads no more, or has to read the roster again, the question stands.
            if gate is not None and not reached and (waiting or asked):
                try:
                    link = link or self._runtime.open_gate(master)
                    reached = link.ask() if waiting else link.call_off()
                    asked, seconds = waiting, _LOOK if waiting else None
                except RendezvousConnectionError as exc:
                    self._warn(number, exc)
                    link, seconds = None, _RETRY
                if reached:
                    self._submit(CheckpointReached(number))
                    seconds = None
            self._wait((gate, number), seconds)

    def _round(self) -> int:
        document = self._machine.document
        return 0 if document is None or document.closed else document.round

    def _wait(self, seen: object, seconds: float | None) -> None:
        """Wait until there is something else than ``seen``, for some seconds at most."""
        self._block(
            lambda: self._stopped() or (self._machine.gate(), self._round()) != seen, seconds
        )

    def _warn(self, number: int, exc: RendezvousConnectionError) -> None:
        if self._warned != number:
            self._warned = number
            log.warning("Nodes wait to join, and workers cannot be asked for a checkpoint: %s", exc)
