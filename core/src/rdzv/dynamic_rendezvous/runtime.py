"""Clocks, threads, chance and sockets: all that a node has of the world besides its store."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import threading
import time
from typing import TYPE_CHECKING

from .. import events
from ..checkpoints import Gate
from .master import open_master

if TYPE_CHECKING:
    from collections.abc import Callable

    from .document import Master

__all__ = ["REAL", "Runtime"]


_HANDLERS = itertools.count()

_NAMES = random.Random(secrets.token_bytes(32))  # noqa: S311 - unique, no secrets
os.register_at_fork(after_in_child=lambda: _NAMES.seed(secrets.token_bytes(32)))


class Runtime:
    """The real world. A simulation hands in another one."""

    def monotonic(self) -> float:
        """The node's monotonic clock (seconds)."""
        return time.monotonic()

    def wall(self) -> float:
        """The machine's wall clock (seconds since 1970), which people are told and nothing else."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Stop the calling thread for a while."""
        time.sleep(seconds)

    def thread(self, run: Callable[[], None], name: str) -> threading.Thread:
        """A thread that has not started yet and holds up no process's end."""
        return threading.Thread(target=run, name=name, daemon=True)

    def current_thread(self) -> threading.Thread:
        """The calling thread."""
        return threading.current_thread()

    def lock(self) -> threading.Lock:
        """A lock."""
        return threading.Lock()

    def condition(self, lock: threading.RLock | None = None) -> threading.Condition:
        """A condition on ``lock``, or on a reentrant lock of its own."""
        return threading.Condition(lock)

    def rlock(self) -> threading.RLock:
        """A lock that its holder can take again."""
        return threading.RLock()

    def event(self) -> threading.Event:
        """A flag to wait for."""
        return threading.Event()

    def handler_number(self) -> tuple[int, int]:
        """The id of this process, and a number for a handler in it, from 0."""
        return os.getpid(), next(_HANDLERS)

    def random(self) -> float:
        """A random number between 0 and 1, for jitter."""
        return random.random()  # noqa: S311 - jitter, no secret

    def new_id(self) -> str:
        """A random name that is never made again."""
        # Asking the system for each would let go of the interpreter each time.
        return f"{_NAMES.getrandbits(64):016x}"

    def open_master(self, host: str, *, shared: bool) -> tuple[Master, object]:
        """See :func:`.master.open_master`."""
        return open_master(host, shared=shared)

    def open_gate(self, master: Master) -> Gate:
        """See :class:`rdzv.checkpoints.Gate`."""
        return Gate(master)

    def observers(self) -> events.Observers:
        """Whom to tell of what happens."""
        return events.Observers.from_extensions()

    @property
    def ends_with_process(self) -> bool:
        """Whether a node has to be taken out of its run when this process ends."""
        return True


REAL = Runtime()
