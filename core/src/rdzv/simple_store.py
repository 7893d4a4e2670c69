"""SimpleStore: a ``torch.distributed`` Store out of three methods. Importing it imports torch.

A backend has to hand the agents of a run a Store that all of them reach. Where its server is one
that torch knows nothing of, this makes one on it.
"""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import msgspec
from torch.distributed import DistStoreError, QueueEmptyError, Store

from .stores import (
    DEFAULT_TIMEOUT,
    LARGEST,
    SMALLEST,
    Data,
    Wait,
    amount_of,
    keep_alive,
    let_go,
    list_of,
    name_of,
    names_of,
    value_of,
)

__all__ = ["Change", "SimpleStore", "Values"]

Values = list[bytes | None]
"""A value for each of several keys, ``None`` for one that is not there."""

Change = Callable[[Values], Values]
"""Makes new values of those that are there; ``None`` removes a key."""

_VALUE, _QUEUE = b"v", b"q"
"""What keys begin with: a value and a queue of one name are two things."""

_NUMBER = re.compile(rb"-?[0-9]{1,19}")

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.1
"""Seconds between two looks of one who waits: from the first to the second."""

T = TypeVar("T")


class SimpleStore(Store):
    """A Store for the agents of a run, on anything that keeps bytes under keys.

    A subclass says how to look at values and how to change some of them as one step; all that
    torch asks of a Store is made of that, and behaves as TCPStore does. It is meant for what agents
    exchange: a few small values a round. Who waits looks again and again, every tenth of a
    second in the end, and a queue is one value, so workers that exchange much are not its users.
    (The store of the workers is another, which rank 0 opens in each round.)

    Threads share a store: the three methods may be called by several at once. They raise
    ``DistNetworkError`` where the server cannot be reached and ``DistStoreError`` where it
    answers with an error. torch's bindings do not keep a Python store alive that a PrefixStore
    uses, so each keeps itself alive until ``close``.

    Args:
        timeout: How long to wait where no other time is said.

    Example::

        class InMemory(SimpleStore):
            def __init__(self, values, lock):
                super().__init__()
                self.values, self.lock = values, lock

            def look(self, keys):
                return [self.values.get(key) for key in keys]

            def update(self, keys, change):
                with self.lock:
                    for key, value in zip(keys, change(self.look(keys)), strict=True):
                        if value is None:
                            self.values.pop(key, None)
                        else:
                            self.values[key] = value

            def keys(self):
                return list(self.values)

            def clone(self):
                return InMemory(self.values, self.lock)
    """

    timeout: timedelta  # A property of torch's, which its stubs do not have.

    def __init__(self, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
        super().__init__()
        self.set_timeout(timeout)
        keep_alive(self)

    # What a subclass says.

    @abstractmethod
    def look(self, keys: Sequence[bytes]) -> Values:
        """The values of some keys."""

    @abstractmethod
    def update(self, keys: Sequence[bytes], change: Change) -> None:
        """Replace the values of some keys by what ``change`` makes of them, as one step.

        Nobody comes between the look and the write. ``change`` may be called several times;
        what it raises leaves everything as it was and is raised to the caller. No key is
        there twice.
        """

    @abstractmethod
    def keys(self) -> list[bytes]:
        """All keys."""

    # ------------------------------------------------------------ values

    def _look(self, kind: bytes, names: Sequence[bytes]) -> Values:
        return self.look([kind + name for name in names]) if names else []

    def _change(self, key: bytes, change: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        """Change one value; returns what ``change`` says beside it."""
        answers: list[T] = []

        def apply(values: Values) -> Values:
            value, answer = change(values[0])
            answers.append(answer)
            return [value]

        self.update([key], apply)
        return answers[-1]

    def set(self, key: Data, value: Data) -> None:
        self.multi_set([key], [value])

    def get(self, key: Data) -> bytes:
        return self.multi_get([key])[0]

    def add(self, key: Data, amount: int) -> int:
        by = amount_of(amount)

        def change(value: bytes | None) -> tuple[bytes, int]:
            if value is not None and not _NUMBER.fullmatch(value):
                raise DistStoreError("What is to be added to is no number.")
            number = int(value or 0) + by
            if not SMALLEST <= number <= LARGEST:
                raise DistStoreError("The sum does not fit into 64 bits.")
            return b"%d" % number, number

        return self._change(_VALUE + name_of(key), change)

    def compare_set(self, key: Data, expected_value: Data, desired_value: Data) -> bytes:
        expected, desired = value_of(expected_value), value_of(desired_value)

        def change(value: bytes | None) -> tuple[bytes | None, bytes]:
            if value == expected or (value is None and not expected):
                return desired, desired
            return value, expected if value is None else value

        return self._change(_VALUE + name_of(key), change)

    def append(self, key: Data, value: Data) -> None:
        more = value_of(value)
        self._change(_VALUE + name_of(key), lambda value: ((value or b"") + more, None))

    def delete_key(self, key: Data) -> bool:
        return self._change(_VALUE + name_of(key), lambda value: (None, value is not None))

    def num_keys(self) -> int:
        return len(self.list_keys())

    def list_keys(self) -> list[str]:
        return [key[1:].decode() for key in self.keys() if key.startswith(_VALUE)]

    def multi_get(self, keys: Iterable[Data]) -> list[bytes]:
        names = names_of(keys)
        wait = None
        while True:
            found = self._look(_VALUE, names)
            if None in found:
                # As in TCPStore, the value of a key that has only a queue is empty.
                found = [
                    b"" if value is None and queue is not None else value
                    for value, queue in zip(found, self._look(_QUEUE, names), strict=True)
                ]
            values = [value for value in found if value is not None]
            if len(values) == len(names):
                return values
            wait = wait or _Waiting(self.timeout, names)
            wait.pause()

    def multi_set(self, keys: Iterable[Data], values: Iterable[Data]) -> None:
        names = names_of(keys)
        given = [value_of(value) for value in list_of(values)]
        if len(names) != len(given):
            raise DistStoreError("multiSet keys and values vectors must be of same size")
        pairs = {_VALUE + name: value for name, value in zip(names, given, strict=True)}
        if pairs:
            self.update(list(pairs), lambda _: list(pairs.values()))

    def has_extended_api(self) -> bool:
        return True

    def close(self) -> None:
        """Let the store be freed. Neither a PrefixStore nor a process group may use it any more."""
        let_go(self)

    # ------------------------------------------------------------ queues

    def queue_push(self, key: Data, value: Data) -> None:
        item = value_of(value)
        self._change(_QUEUE + name_of(key), lambda queue: (_packed([*_items(queue), item]), None))

    def queue_pop(self, key: Data, block: bool = True) -> bytes:
        name = name_of(key)

        def change(queue: bytes | None) -> tuple[bytes | None, bytes | None]:
            items = _items(queue)
            return (_packed(items[1:]), items[0]) if items else (queue, None)

        wait = _Waiting(self.timeout, [name]) if block else None
        while True:
            item = self._change(_QUEUE + name, change)
            if item is not None:
                return item
            if wait is None:
                raise QueueEmptyError("queue is empty")
            wait.pause()

    def queue_len(self, key: Data) -> int:
        return len(_items(self._look(_QUEUE, [name_of(key)])[0]))

    # ------------------------------------------------------------ waiting

    def check(self, keys: Iterable[Data]) -> bool:
        return self._all_there(names_of(keys))

    def wait(self, keys: Iterable[Data], timeout: timedelta | float | None = None) -> None:
        names = names_of(keys)
        wait = _Waiting(self.timeout if timeout is None else timeout, names)
        while not self._all_there(names):
            wait.pause()

    def _all_there(self, names: list[bytes]) -> bool:
        values = self._look(_VALUE, names)
        missing = [name for name, value in zip(names, values, strict=True) if value is None]
        return None not in self._look(_QUEUE, missing)


class _Waiting(Wait):
    """A wait that looks less often the longer it lasts."""

    _next = _FIRST_PAUSE

    def pause(self) -> None:
        time.sleep(min(self._next, self.left()))
        self._next = min(1.5 * self._next, _LONGEST_PAUSE)


def _items(queue: bytes | None) -> list[bytes]:
    try:
        return [] if queue is None else msgspec.msgpack.decode(queue, type=list[bytes])
    except msgspec.DecodeError as exc:
        raise DistStoreError(f"What the store holds is no queue: {exc}") from exc


def _packed(items: list[bytes]) -> bytes | None:
    return msgspec.msgpack.encode(items) if items else None
