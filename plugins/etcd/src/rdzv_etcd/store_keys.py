"""How EtcdStore's data is laid out in etcd.

=============================== ====================================================
``{prefix}v/{name}``            a value, and 8 bytes that name the change that wrote it
``{prefix}v/{name}`` 00 00      the queue of that name: ``head tail``, and such 8 bytes;
                                it is there while the queue has something in it
``{prefix}v/{name}`` 00 00 f N  the fence of change N: it takes effect no more
``{prefix}q/{name}`` 00 00 S    the queue's item of number S, 16 hexadecimal digits
``{prefix}c/…``                 one for each key in ``v/`` that is no value, so that
                                values can be counted without being listed
``{prefix}d``                   the 8 bytes of the last change that left nothing behind
``{prefix}d`` 00 00 f N         a fence there
=============================== ====================================================

A zero byte in a name is followed by ff, so that what begins with a name and 00 00 is of that
name alone. A value, its queue and its fences are neighbours: one watch sees them all.
"""

from __future__ import annotations

from .seam import Get, prefix_end

__all__ = ["END", "FENCE", "NONCE", "QUEUE", "SEEN_END", "StoreKeys"]

NONCE = 8
"""Bytes at the end of a value that name the change that wrote it."""

QUEUE = b"\0\0"
FENCE = b"\0\0f"
SEEN_END = b"\0\0\1"
"""Behind a value's key: where the range of the value and its queue ends."""
END = b"\0\1"
"""Behind a key: where the range of all that is of its name ends."""


class StoreKeys:
    """The keys of the stores of one prefix.

    Args:
        base: What all of them begin with.
    """

    def __init__(self, base: bytes) -> None:
        self.base = base
        self.values = base + b"v/"
        self.values_end = base + b"v0"
        self.uncounted = base + b"c/"
        self.uncounted_end = base + b"c0"
        self.deleted = base + b"d"
        self._items = base + b"q/"

    def value(self, name: bytes) -> bytes:
        return self.values + name.replace(b"\0", b"\0\xff")

    def item(self, queue: bytes, number: int) -> bytes:
        """An item of a queue, by the queue's key."""
        return self._items + queue[len(self.values) :] + b"%016x" % number

    def first_item(self, queue: bytes) -> Get:
        items = self._items + queue[len(self.values) :]
        return Get(items, prefix_end(items), limit=1)

    def mirror(self, key: bytes) -> bytes:
        """Of a key in ``v/`` that is no value: the one in ``c/``."""
        return self.uncounted + key[len(self.values) :]

    def is_counted(self, key: bytes) -> bool:
        return key.startswith(self.values)

    def name(self, key: bytes) -> bytes | None:
        """The name whose value is at a key in ``v/``; None if it is no value."""
        if QUEUE in key[len(self.values) :]:
            return None
        return key[len(self.values) :].replace(b"\0\xff", b"\0")
