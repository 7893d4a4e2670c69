"""A backend in memory that offers no more than torch's interface asks for."""

from __future__ import annotations

import threading

from rdzv import RendezvousBackend


class Memory:
    """What several backends of one run share."""

    def __init__(self, state: bytes | None = None) -> None:
        self.lock = threading.Lock()
        self.state = state
        self.version = 0 if state is None else 1


class MemoryBackend(RendezvousBackend):
    """Get and set over :class:`Memory`.

    Args:
        memory: What is shared.
        compares_bytes: Say that a write won where the bytes stored are equal to
            the ones written, whoever wrote them, as torch's own backend does.
    """

    def __init__(self, memory: Memory, *, compares_bytes: bool = False) -> None:
        self.memory = memory
        self.compares_bytes = compares_bytes
        self.failure: Exception | None = None

    @property
    def name(self) -> str:
        return "memory"

    def get_state(self):
        with self.memory.lock:
            return self._get()

    def _get(self):
        if self.failure is not None:
            raise self.failure
        if self.memory.state is None:
            return None
        return self.memory.state, f"v{self.memory.version}"

    def set_state(self, state, token=None):
        with self.memory.lock:
            found = self._get()
            won = token == (None if found is None else found[1])
            if won:
                self.memory.state = state
                self.memory.version += 1
                found = self._get()
            if found is None:
                return None
            return (*found, found[0] == state if self.compares_bytes else won)
