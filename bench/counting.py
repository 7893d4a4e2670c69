"""Counts what a node asks of its store, where rdzv-c10d asks it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import rdzv_c10d.session
from rdzv_c10d import C10dRendezvousBackend
from rdzv_c10d.session import Keys, StoreSession

if TYPE_CHECKING:
    from rdzv.dynamic_rendezvous.backend import Session

__all__ = ["CountingBackend", "Ledger", "install"]


class Ledger:
    """What one node has asked so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.read = 0
        self.kinds: dict[str, int] = {}

    def add(self, kind: str, requests: int, read: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.read += read
            self.kinds[kind] = self.kinds.get(kind, 0) + requests

    def total(self) -> tuple[int, int, dict[str, int]]:
        with self._lock:
            return self.requests, self.read, dict(self.kinds)


class CountingKeys(Keys):
    """Counts requests as TCPStore's protocol has them, and the bytes of the values returned.

    ``get`` and ``multi_get`` wait for the keys first, so they are two; ``wait`` is one, and
    another to call it off where the time is up.
    """

    ledger: Ledger | None = None

    def _count(self, kind: str, requests: int, read: int = 0) -> None:
        if self.ledger is not None:
            self.ledger.add(kind, requests, read)

    def swap(self, key: str, expected: str, value: str) -> str:
        found = super().swap(key, expected, value)
        self._count("compare_set", 1, len(found))
        return found

    def add(self, key: str, amount: int) -> int:
        self._count("add", 1, 8)
        return super().add(key, amount)

    def set_all(self, pairs: Mapping[str, str]) -> None:
        self._count("multi_set", 1)
        super().set_all(pairs)

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        found = super().get_all(keys)
        self._count("multi_get", 2, sum(map(len, found)))
        return found

    def exist(self, keys: Sequence[str]) -> bool:
        self._count("check", 1)
        return super().exist(keys)

    def delete(self, key: str) -> None:
        self._count("delete", 1)
        super().delete(key)

    def await_value(self, key: str, timeout: float) -> str | None:
        # A get is two: it waits for the key, and then asks for it.
        self._count("wait", 1)
        found = super().await_value(key, timeout)
        self._count("get", 1, len(found or ""))
        return found

    def _wait_pushed(self, keys: list[str], timeout: float) -> bool:
        self._count("wait", 1)
        came = super()._wait_pushed(keys, timeout)
        if not came:
            self._count("wait", 1)
        return came


class CountingBackend(C10dRendezvousBackend):
    """A backend whose sessions count into one ledger."""

    @property
    def ledger(self) -> Ledger:
        found: Ledger = self.__dict__.setdefault("_ledger", Ledger())
        return found

    def open_session(self) -> Session:
        session = super().open_session()
        if not isinstance(session, StoreSession) or not isinstance(session._keys, CountingKeys):
            raise TypeError("the session does not count")
        session._keys.ledger = self.ledger
        return session


def install() -> None:
    """Have sessions that are opened from now on made of counting keys."""
    rdzv_c10d.session.Keys = CountingKeys  # type: ignore[misc]
