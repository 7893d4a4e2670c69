"""What etcd takes in one transaction, and dividing more than that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["OPERATIONS", "parts"]

OPERATIONS = 128
"""Operations in one transaction: what etcd takes (its --max-txn-ops)."""

_BYTES = 1024 * 1024
"""Bytes in one transaction of several operations: less than what etcd takes."""

_OVERHEAD = 64
"""Bytes of an operation beside its key and value, and some more."""

T = TypeVar("T")


def parts(
    things: Iterable[T], size: Callable[[T], int], most: int = OPERATIONS
) -> Iterator[list[T]]:
    """Divide into parts for one transaction each.

    Args:
        things: Each is one operation.
        size: The bytes of its key and value.
        most: How many operations a part may have.
    """
    part: list[T] = []
    total = 0
    for thing in things:
        more = size(thing) + _OVERHEAD
        if part and (len(part) == most or total + more > _BYTES):
            yield part
            part, total = [], 0
        part.append(thing)
        total += more
    if part:
        yield part
