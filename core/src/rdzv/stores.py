"""What ``torch.distributed`` stores written in Python have in common. Importing it imports torch.

A plugin whose store is one of its own (``rdzv_etcd.store``) reads arguments as torch's stores
do, and words a timeout as they do, with what stands here.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeAlias

from torch.distributed import DistStoreError, Store

__all__ = [
    "DEFAULT_TIMEOUT",
    "LARGEST",
    "SMALLEST",
    "Data",
    "Wait",
    "amount_of",
    "data_of",
    "keep_alive",
    "let_go",
    "list_of",
    "name_of",
    "names_of",
    "value_of",
]

DEFAULT_TIMEOUT = timedelta(minutes=5)
"""How long a store waits unless it is told otherwise, as in torch."""

SMALLEST, LARGEST = -(2**63), 2**63 - 1
"""The numbers that ``add`` knows: those of 64 bits."""

Data: TypeAlias = "str | bytes | bytearray"
"""What keys and values may be."""


def data_of(data: Data, what: str) -> bytes:
    """The bytes of a key or a value; text in UTF-8.

    Args:
        data: The key or value.
        what: What it is, for the error.

    Raises:
        TypeError: It is neither text nor bytes, or text that UTF-8 cannot write.
    """
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as exc:
            raise TypeError(f"A {what} cannot be written in UTF-8: {exc}") from exc
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray):
        return bytes(data)
    raise TypeError(f"A {what} must be str or bytes, not {type(data).__name__}.")


def name_of(key: Data) -> bytes:
    """The bytes of a key; see ``data_of``."""
    return data_of(key, "key")


def value_of(value: Data) -> bytes:
    """The bytes of a value; see ``data_of``."""
    return data_of(value, "value")


def list_of(data: Iterable[Data]) -> list[Data]:
    """Several keys or values as a list.

    Raises:
        TypeError: It is a single text or bytes, each character of which would be taken for
            one, or cannot be iterated.
    """
    if isinstance(data, str | bytes | bytearray):
        raise TypeError(f"A sequence is needed, not {type(data).__name__}.")
    return list(data)


def names_of(keys: Iterable[Data]) -> list[bytes]:
    """The bytes of several keys; raises what ``list_of`` and ``data_of`` raise."""
    return [name_of(key) for key in list_of(keys)]


def amount_of(amount: int) -> int:
    """What ``add`` is to add.

    Raises:
        TypeError: It is no whole number, or none of 64 bits.
    """
    try:
        number = operator.index(amount)
    except TypeError as exc:
        raise TypeError(f"The amount must be an int, not {type(amount).__name__}.") from exc
    if not SMALLEST <= number <= LARGEST:
        raise TypeError(f"The amount {number} does not fit into 64 bits.")
    return number


class Wait:
    """What one call waits for, and until when.

    Args:
        timeout: How long; a float is seconds, as torch takes it.
        names: The keys.

    Raises:
        TypeError: The timeout is neither (torch takes no int).
        ValueError: It is below zero.
    """

    def __init__(self, timeout: timedelta | float, names: list[bytes]) -> None:
        if not isinstance(timeout, timedelta):
            if not isinstance(timeout, float):
                raise TypeError(f"A timeout is a timedelta, not {type(timeout).__name__}.")
            timeout = timedelta(seconds=timeout)
        seconds = timeout.total_seconds()
        if seconds < 0:
            raise ValueError(f"The timeout is {seconds} seconds; it must not be below zero.")
        self.names = names
        self.milliseconds = int(seconds * 1000)
        self.deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the deadline.

        Raises:
            DistStoreError: It is over, in torch's words.
        """
        left = self.deadline - time.monotonic()
        if left > 0:
            return left
        raise DistStoreError(
            f"wait timeout after {self.milliseconds}ms, keys: "
            + ", ".join("/" + name.decode(errors="replace") for name in self.names)
        )


_alive: set[Store] = set()


def keep_alive(store: Store) -> None:
    """Keep a store from being freed until ``let_go``.

    torch's bindings do not keep a Python store alive that a PrefixStore or a process group
    uses, or that ``PrefixStore.clone`` makes.
    """
    _alive.add(store)


def let_go(store: Store) -> None:
    """Let a store be freed; neither a PrefixStore nor a process group may use it any more."""
    _alive.discard(store)
