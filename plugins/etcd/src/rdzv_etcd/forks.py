"""What a fork of the process means to gRPC, whose threads a child does not have."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import EtcdClient

__all__ = ["CLIENTS", "GATE", "PARENTS"]


class Gate:
    """Keeps threads out of gRPC while this process forks.

    A child that is forked while one is inside may crash at its next call, or hang, for gRPC
    then leaves it as it is (and says so on the standard error).
    """

    _PATIENCE = 2.0
    """Seconds that a fork waits for calls that do not end."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forks = 0

    @property
    def closed(self) -> bool:
        return self._forks > 0

    def enter(self) -> None:
        with self._changed:
            while self._forks:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._forks:
                self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._forks += 1
        for client in list(CLIENTS):
            client.before_fork()
        with self._changed:
            self._changed.wait_for(lambda: not self._inside, self._PATIENCE)

    def after_fork_in_parent(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        self.__init__()  # type: ignore[misc]
        for client in list(CLIENTS):
            client.after_fork()


CLIENTS: weakref.WeakSet[EtcdClient] = weakref.WeakSet()

PARENTS: list[object] = []
"""What a forked child has of its parent's: never to be closed here, not even by forgetting it."""

GATE = Gate()
os.register_at_fork(
    before=GATE.before_fork,
    after_in_parent=GATE.after_fork_in_parent,
    after_in_child=GATE.after_fork_in_child,
)
