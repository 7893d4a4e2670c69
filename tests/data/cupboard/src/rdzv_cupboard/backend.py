"""Get and set in a folder, and waiting for a change."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from rdzv import RendezvousConnectionError, RendezvousStateError, Token
from rdzv.dynamic_rendezvous import WatchingBackend


class Cupboard(WatchingBackend):
    """One file a run: the state's version in the first line, then the state."""

    def __init__(self, drawer: Path) -> None:
        self._state = drawer / "state"
        self._lock = drawer / "lock"

    @property
    def name(self) -> str:
        """The name of the backend."""
        return "cupboard"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock.open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise RendezvousConnectionError(f"The cupboard cannot be opened: {error}") from error

    def _read(self) -> tuple[bytes, int] | None:
        if not self._state.exists():
            return None
        version, _, state = self._state.read_bytes().partition(b"\n")
        if not version.isdigit():
            raise RendezvousStateError(f"{self._state} does not hold a state.")
        return state, int(version)

    def get_state(self) -> tuple[bytes, Token] | None:
        """Read the state."""
        with self._locked():
            return self._read()

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """Write it if it is still the one that ``token`` names."""
        with self._locked():
            found = self._read()
            if (None if found is None else found[1]) != token:
                return None if found is None else (*found, False)
            version = 1 if found is None else found[1] + 1
            new = self._state.with_suffix(".new")
            new.write_bytes(b"%d\n%b" % (version, state))
            new.replace(self._state)
            return state, version, True

    def wait_state(self, token: Token, timeout: float) -> None:
        """Look every now and then."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            found = self.get_state()
            if (None if found is None else found[1]) != token:
                return
            time.sleep(0.01)
