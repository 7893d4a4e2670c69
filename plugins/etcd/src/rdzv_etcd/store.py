"""EtcdStore: torch's key-value store on etcd v3."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

from torch.distributed import DistStoreError, QueueEmptyError, Store

from rdzv.stores import (
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

from . import seam
from .parts import OPERATIONS, parts
from .seam import Compare, Delete, Get, KeyValue, Op, Put, Range, Result, Txn
from .store_keys import NONCE, QUEUE, SEEN_END
from .store_link import Outage, Parts, StoreLink, Written, store_error

__all__ = ["DEFAULT_RETRY_TIMEOUT", "DEFAULT_TTL", "EtcdStore"]

DEFAULT_TTL = 7200.0
"""Seconds that the data outlives its last use."""

DEFAULT_RETRY_TIMEOUT = timedelta(seconds=30)
"""How long an etcd that cannot be reached is asked again."""

_FEW = 8
"""Keys that are looked at together after the one that was waited for has come."""

_MANY, _DENSE, _PAGE = 256, 1.25, 1024
"""More keys than the first may be read as a range, if there are no more than the second times as
many in it; so many at once."""

_CACHED = 4096
"""Bytes of the largest value that is remembered."""

_REQUESTS, _LONGEST_BACKOFF = 2, 0.5
"""How long one whose attempts others have spoiled holds back at first, in times that a request
takes; and the most, in seconds."""

_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,18}", re.ASCII)

_T = TypeVar("_T")


class _Value(NamedTuple):
    """A value as it was at a revision; without data it was not there, at revision 0."""

    revision: int = 0
    data: bytes | None = None


class _Queue(NamedTuple):
    """A queue as it was at a revision: the numbers of its first and last item."""

    revision: int = 0
    head: int = 1
    tail: int = 0
    first: bytes | None = None


class EtcdStore(Store):
    """A ``torch.distributed.Store`` whose data is in etcd, version 3.4 or later.

    It behaves as TCPStore does. One who waits is told by etcd (a watch on the key that
    it waits for), and asks nothing meanwhile. ``set``, ``get``, ``delete_key``, ``add``
    and ``append`` are one request each where nobody else has changed the key since this
    store did, and ``add`` and ``append`` two where somebody has; while others do, they
    hold back for random times between attempts.

    While etcd cannot be reached every operation, waits included, is tried again for
    ``retry_timeout``, or for the store's timeout where that is shorter. Each change has
    a name of its own that is written with it, and it has etcd refuse it once a fence
    of that name is there. So a change whose answer was lost takes effect once:
    ``add``, ``append``, ``compare_set``, ``delete_key`` and the queues included, and
    what is answered is right. If that cannot be found out, because etcd does not come
    back or has compacted what happened meanwhile, the error says so.

    Threads share a store, and one that waits holds up no other. A forked child may go
    on with it.

    What is different from TCPStore:

    - ``set`` is acknowledged: it returns when etcd has the value, and fails if it has
      not. TCPStore's does not wait.
    - ``add`` to what is no decimal number without spaces, leading zeros or a plus sign,
      or beyond 64 bits, is a DistStoreError that changes nothing. TCPStore takes the
      number at the beginning of the text, wraps around at 64 bits, and drops the
      connection where there is no number.
    - A request is at most 1.5 MiB where etcd's ``--max-request-bytes`` does not say
      otherwise, key and value included; more is a DistStoreError. TCPStore has no
      such limit. ``append`` sends the whole value, and is no means for large ones.
    - ``multi_set`` is atomic as long as it fits into one transaction: 127 keys and 1
      MiB. More is written one after another, in their order, and where it fails some
      may be written. ``multi_get``, ``check`` and ``wait`` read more than 128 keys at
      several moments.
    - ``wait`` with a timeout of zero looks once; TCPStore's always fails. A negative
      one is a ValueError; TCPStore's then waits for ever.
    - ``wait`` takes several keys one after another. One that was set and deleted again
      before its turn is waited for; in TCPStore it has been there.
    - Data nobody uses through a store for ``ttl`` seconds is gone.

    It differs from torch's EtcdStore, which speaks the v2 API: what is not there in time
    is a DistStoreError instead of a LookupError, as in all other stores.

    Through ``PrefixStore`` torch's bindings forward neither ``delete_key`` and
    ``num_keys`` (RuntimeError: a pure virtual function) nor ``list_keys`` and the
    queues (NotImplementedError) to a store written in Python. Call these on the
    store itself.

    torch's bindings do not keep a Python store alive either that a PrefixStore or
    a process group uses, or that ``PrefixStore.clone`` makes. Each store therefore
    keeps itself alive until ``close``; it is small, and the connection is the
    client's.

    All operations raise DistNetworkError where etcd cannot be reached, and DistStoreError
    where it refuses (the login, a full database) or, those that wait, at the timeout.

    Args:
        etcd_client: The client (``rdzv_etcd.client.EtcdClient``), which stays the
            caller's. Its TLS, login and timeout for one request are what the store has.
        etcd_store_prefix: What all keys begin with, the same for all that share the data;
            a slash follows if it does not end with one.
        timeout: How long to wait where no other time is said; 5 minutes if not given.
        ttl: Seconds that the data outlives the last use of any store on it, in whole
            seconds and not below some 2, which is the least that etcd knows. All that
            share the data should say the same: whoever writes first decides.
        retry_timeout: How long an etcd that cannot be reached is asked again.

    Raises:
        TypeError: ``etcd_client`` is no client of rdzv-etcd's.
        ValueError: The prefix is empty, ``ttl`` is not above zero, or ``retry_timeout`` is
            below zero.
    """

    timeout: timedelta  # A property of torch's, which its stubs do not have.

    def __init__(
        self,
        etcd_client: seam.Client,
        etcd_store_prefix: str,
        timeout: timedelta | None = None,
        *,
        ttl: float = DEFAULT_TTL,
        retry_timeout: timedelta = DEFAULT_RETRY_TIMEOUT,
    ) -> None:
        super().__init__()
        if not isinstance(etcd_client, seam.Client):
            raise TypeError(
                "EtcdStore needs an rdzv_etcd.client.EtcdClient (or Etcd3Client), not "
                f"{type(etcd_client).__module__}.{type(etcd_client).__name__}."
            )
        if not etcd_store_prefix:
            raise ValueError("The prefix is empty; the store needs a place of its own in etcd.")
        if not ttl > 0:
            raise ValueError(f"The time to live is {ttl} seconds; it must be above zero.")
        if retry_timeout < timedelta(0):
            raise ValueError(f"retry_timeout is {retry_timeout}; it must not be below zero.")
        self.set_timeout(DEFAULT_TIMEOUT if timeout is None else timeout)
        self._client = etcd_client
        self._prefix = etcd_store_prefix
        self._ttl = ttl
        self._retry_timeout = retry_timeout
        base = etcd_store_prefix if etcd_store_prefix.endswith("/") else f"{etcd_store_prefix}/"
        self._link = StoreLink.shared(etcd_client, base.encode(), ttl)
        self._keys = self._link.keys
        keep_alive(self)

    def close(self) -> None:
        """Let the store be freed. Neither a PrefixStore nor a process group may use it any more."""
        let_go(self)

    def __repr__(self) -> str:
        return f"EtcdStore(etcd at {self._client.where}, prefix={self._prefix!r})"

    # Values.

    def set(self, key: Data, value: Data) -> None:
        self._set({name_of(key): value_of(value)})

    def get(self, key: Data) -> bytes:
        name = name_of(key)
        found = self._link.range(self._look_at(name), self._limit)
        wait = None
        while not found.kvs:
            wait = wait or Wait(self.timeout, [name])
            come = self._sleep(wait, self._keys.value(name), SEEN_END, found.revision)
            if come is not None:
                return self._data(come)
            found = self._link.range(self._look_at(name), self._limit)
        return self._data(found.kvs[0])

    def add(self, key: Data, amount: int) -> int:
        name, more = name_of(key), amount_of(amount)

        def decide(data: bytes | None) -> tuple[int, bytes]:
            number = 0 if data is None else self._number(name, data)
            total = number + more
            if not SMALLEST <= total <= LARGEST:
                raise DistStoreError(f"Adding {more} to key {_shown(name)} would overflow 64 bits.")
            return total, b"%d" % total

        return self._update(name, "add", decide)

    def compare_set(self, key: Data, expected_value: Data, desired_value: Data) -> bytes:
        expected, desired = value_of(expected_value), value_of(desired_value)

        def decide(data: bytes | None) -> tuple[bytes, bytes | None]:
            if data == expected or (data is None and not expected):
                return desired, desired
            return (expected if data is None else data), None

        return self._update(name_of(key), "compare_set", decide)

    def append(self, key: Data, value: Data) -> None:
        more = value_of(value)
        self._update(name_of(key), "append", lambda data: (None, (data or b"") + more))

    def delete_key(self, key: Data) -> bool:
        name = name_of(key)
        value, mark = self._keys.value(name), self._keys.deleted

        def write(nonce: bytes) -> Parts:
            there = Compare(value, "create", 0, ">")
            return (there,), (Delete(value), self._put(mark, b"", nonce)), ()

        return self._change(mark, write, "delete_key", name).succeeded

    def num_keys(self) -> int:
        keys = self._keys
        answer = self._link.read(
            (
                Get(keys.values, keys.values_end, count_only=True),
                Get(keys.uncounted, keys.uncounted_end, count_only=True),
            ),
            self._limit,
        )
        both, others = (cast("Range", result).count for result in answer.results)
        return both - others

    def list_keys(self) -> list[str]:
        keys = self._keys
        found = self._link.range(Get(keys.values, keys.values_end, keys_only=True), self._limit)
        names = (keys.name(kv.key) for kv in found.kvs)
        return [name.decode() for name in names if name is not None]

    def multi_get(self, keys: Iterable[Data]) -> list[bytes]:
        names = names_of(keys)
        found: list[bytes | None] = [None] * len(names)
        missing = list(range(len(names)))
        wait = None
        while True:
            read = self._read_span if len(missing) > _MANY else self._read_each
            kvs, revision = read([names[index] for index in missing])
            for index, kv in zip(missing, kvs, strict=True):
                found[index] = None if kv is None else self._data(kv)
            missing = [index for index in missing if found[index] is None]
            if not missing:
                return cast("list[bytes]", found)
            wait = wait or Wait(self.timeout, names)
            self._wait_for(wait, [names[index] for index in missing], revision)

    def multi_set(self, keys: Iterable[Data], values: Iterable[Data]) -> None:
        names = names_of(keys)
        stored = [value_of(value) for value in list_of(values)]
        if len(names) != len(stored):
            raise DistStoreError("multiSet keys and values vectors must be of same size")
        # etcd refuses to write a key twice at once; the last one counts.
        pairs = dict(zip(names, stored, strict=True))
        for some in parts(pairs, lambda name: len(name) + len(pairs[name]), OPERATIONS - 1):
            self._set({name: pairs[name] for name in some})

    def has_extended_api(self) -> bool:
        return True

    def clone(self) -> EtcdStore:
        return EtcdStore(
            self._client,
            self._prefix,
            self.timeout,
            ttl=self._ttl,
            retry_timeout=self._retry_timeout,
        )

    # Queues.

    def queue_push(self, key: Data, value: Data) -> None:
        name, item = name_of(key), value_of(value)
        queue = self._keys.value(name) + QUEUE
        with self._link.memory.alone(queue, self._limit) as known:
            rivals = _Rivals()
            while True:
                state: _Queue = known.state or _Queue()
                write = self._push(queue, state, item)
                txn = self._change(queue, write, "queue_push", name, len(item))
                if txn.succeeded:
                    first = state.first if state.revision else _small(item)
                    known.state = _Queue(txn.revision, state.head, state.tail + 1, first)
                    return
                known.state = _queue_of(txn.results)
                rivals.won()

    def queue_pop(self, key: Data, block: bool = True) -> bytes:
        name = name_of(key)
        queue = self._keys.value(name) + QUEUE
        wait = Wait(self.timeout, [name]) if block else None
        while True:
            item, revision = self._pop(name, queue)
            if item is not None:
                return item
            if wait is None:
                raise QueueEmptyError("queue is empty")
            self._sleep(wait, queue, b"", revision)

    def queue_len(self, key: Data) -> int:
        queue = self._keys.value(name_of(key)) + QUEUE
        state = _queue_of((self._link.range(Get(queue), self._limit),))
        return state.tail - state.head + 1

    def _push(self, queue: bytes, state: _Queue, item: bytes) -> Written:
        tail = state.tail + 1
        place = self._keys.item(queue, tail)

        def write(nonce: bytes) -> Parts:
            puts = [
                self._put(queue, b"%d %d" % (state.head, tail), nonce),
                self._put(place, item),
            ]
            if not state.revision:
                puts.append(self._put(self._keys.mirror(queue), b""))
            return (Compare(queue, "mod", state.revision),), puts, (Get(queue),)

        return write

    def _pop(self, name: bytes, queue: bytes) -> tuple[bytes | None, int]:
        """Take the first item. Without one: the revision at which there was none."""
        with self._link.memory.alone(queue, self._limit) as known:
            rivals = _Rivals()
            # The item has to be known before it is deleted, for the answer may be lost.
            both = (Get(queue), self._keys.first_item(queue))
            state: _Queue = known.state or _Queue()
            while True:
                if state.first is None:
                    found = self._link.read(both, self._limit)
                    state = _queue_of(found.results)
                    if state.first is None:
                        known.state = None
                        return None, found.revision
                write, last = self._shift(queue, state), state.head == state.tail
                root = self._keys.deleted if last else queue
                txn = self._change(root, write, "queue_pop", name)
                if txn.succeeded:
                    known.state = None
                    if not last and txn.results:
                        first = _first_of(txn.results[-1])
                        known.state = _Queue(txn.revision, state.head + 1, state.tail, first)
                    return state.first, 0
                state = known.state = _queue_of(txn.results)
                rivals.won()

    def _shift(self, queue: bytes, state: _Queue) -> Written:
        item = Delete(self._keys.item(queue, state.head))
        first = self._keys.first_item(queue)
        last = state.head == state.tail

        def write(nonce: bytes) -> Parts:
            if last:
                rest: tuple[Op, ...] = (
                    Delete(queue),
                    Delete(self._keys.mirror(queue)),
                    self._put(self._keys.deleted, b"", nonce),
                )
            else:
                rest = (self._put(queue, b"%d %d" % (state.head + 1, state.tail), nonce), first)
            compare = Compare(queue, "mod", state.revision)
            return (compare,), (item, *rest), (Get(queue), first)

        return write

    # Waiting.

    def check(self, keys: Iterable[Data]) -> bool:
        missing, _ = self._first_missing(names_of(keys), 0, OPERATIONS)
        return missing is None

    def wait(self, keys: Iterable[Data], timeout: timedelta | float | None = None) -> None:
        names = names_of(keys)
        self._wait_for(Wait(self.timeout if timeout is None else timeout, names), names)

    def _wait_for(self, wait: Wait, names: list[bytes], revision: int = 0) -> None:
        """Wait for keys, the first of which was missing at ``revision`` if that is known."""
        start, at_once = 0, _FEW if revision else OPERATIONS
        missing: int | None = 0
        while True:
            if not revision:
                missing, revision = self._first_missing(names, start, at_once)
            if missing is None:
                return
            come = self._sleep(wait, self._keys.value(names[missing]), SEEN_END, revision)
            # It need not be looked for again, and the next one has probably not come either.
            start, at_once, revision = missing + (come is not None), _FEW, 0

    def _first_missing(
        self, names: list[bytes], start: int, at_once: int
    ) -> tuple[int | None, int]:
        """Which key is the first that is missing, and the revision at which it was."""
        while start < len(names):
            some = next(parts(names[start:], lambda name: 2 * len(name), at_once))
            answer = self._link.read(
                [self._look_at(name, count=True) for name in some], self._limit
            )
            for index, result in enumerate(answer.results):
                if not cast("Range", result).count:
                    return start + index, answer.revision
            start += len(some)
            at_once = min(2 * at_once, OPERATIONS)
        return None, 0

    def _sleep(self, wait: Wait, key: bytes, end: bytes, revision: int) -> KeyValue | None:
        """Sleep until a key is written after ``revision``; None if it is better to look again.

        Args:
            wait: Until when.
            key: The key.
            end: Where its range ends, behind it; the key alone if empty.
            revision: When the key was not there.
        """
        wait.left()
        outage = Outage(self._client, self._limit)
        end = end and key + end
        try:
            with contextlib.closing(self._watch(key, end, wait, outage)) as watch:
                if revision + 1 < watch.since:
                    # It may have come before the watch began.
                    found = self._link.range(Get(key, end, limit=1), self._limit)
                    if found.kvs:
                        return found.kvs[0]
                while True:
                    try:
                        # The data is in use as long as somebody waits for it.
                        events = watch.next(min(wait.left(), self._link.touch()))
                    except seam.UnavailableError as exc:
                        outage.pause(exc)
                        continue
                    if events is None:
                        return None
                    outage.over()
                    for event in events:
                        # The watch may begin at a member that is behind the one that was read.
                        if not event.deleted and event.kv.mod_revision > revision:
                            return event.kv
        except seam.UnavailableError as exc:
            raise outage.error(exc) from exc
        except seam.EtcdError as exc:
            raise store_error(exc) from exc

    def _watch(self, key: bytes, end: bytes, wait: Wait, outage: Outage) -> seam.Watch:
        while True:
            try:
                return self._client.watch(key, end)
            except seam.UnavailableError as exc:  # noqa: PERF203 - it is the exception
                wait.left()
                outage.pause(exc)

    # Talking to etcd.

    @property
    def _limit(self) -> float:
        """Seconds that an etcd that cannot be reached is asked again."""
        return min(self._retry_timeout, self.timeout).total_seconds()

    def _look_at(self, name: bytes, *, count: bool = False) -> Get:
        """Read a value, or if there is none the queue of its name."""
        value = self._keys.value(name)
        return Get(value, value + SEEN_END, limit=0 if count else 1, count_only=count)

    def _read_each(self, names: list[bytes]) -> tuple[list[KeyValue | None], int]:
        """Read values key by key, and the revision at which the first one was missing."""
        found: list[KeyValue | None] = []
        revision = 0
        for some in parts(names, lambda name: 2 * len(name)):
            answer = self._link.read([self._look_at(name) for name in some], self._limit)
            for result in answer.results:
                kvs = cast("Range", result).kvs
                found.append(kvs[0] if kvs else None)
                revision = revision or (0 if kvs else answer.revision)
        return found, revision

    def _read_span(self, names: list[bytes]) -> tuple[list[KeyValue | None], int]:
        """Read values with all that are between them, if those are few: it is much quicker."""
        keys = [self._keys.value(name) for name in names]
        start, end = min(keys), max(keys) + SEEN_END
        span = self._link.range(Get(start, end, count_only=True), self._limit)
        if span.count > len(keys) * _DENSE:
            return self._read_each(names)
        found: dict[bytes, KeyValue] = {}
        more = True
        while more:
            page = self._link.range(Get(start, end, limit=_PAGE), self._limit)
            found.update((kv.key, kv) for kv in page.kvs)
            more = page.more
            if more:
                start = page.kvs[-1].key + b"\0"
        # What was missing in a later page has perhaps come since; then a watch tells it again.
        return [found.get(key) or found.get(key + QUEUE) for key in keys], span.revision

    @staticmethod
    def _data(kv: KeyValue) -> bytes:
        # As in TCPStore, the value of a key that has only a queue is empty.
        return b"" if kv.key.endswith(QUEUE) else kv.value[:-NONCE]

    def _put(self, key: bytes, data: bytes, nonce: bytes = b"") -> Put:
        return Put(key, data + nonce, self._link.lease)

    def _set(self, values: dict[bytes, bytes]) -> None:
        """Write some values at once."""
        pairs = [(self._keys.value(name), data) for name, data in values.items()]
        name = max(values, key=lambda name: len(name) + len(values[name]))

        def write(nonce: bytes) -> Parts:
            return (), [self._put(key, data, nonce) for key, data in pairs], ()

        self._change(pairs[0][0], write, "set", name, len(values[name]))

    def _update(
        self, name: bytes, what: str, decide: Callable[[bytes | None], tuple[_T, bytes | None]]
    ) -> _T:
        """Replace a value by what is made of it.

        Args:
            name: Its name.
            what: What is done, for errors.
            decide: Of the value, None if there is none: what to answer, and the new value,
                None to leave it as it is.

        Raises:
            DistError: What ``decide`` raises of the value that is there; see also ``change``.
        """
        key = self._keys.value(name)
        with self._link.memory.alone(key, self._limit) as known:
            # Unless it is known better, nobody has written it yet.
            state, certain = known.state or _Value(), False
            rivals = _Rivals()
            while True:
                try:
                    answer, new = decide(state.data)
                except DistStoreError:
                    if certain:
                        raise
                    new = None
                else:
                    if new is None and certain:
                        return answer
                if new is None:
                    state = _value_of(self._link.range(Get(key), self._limit))
                    certain = True
                    continue
                txn = self._change(key, self._replace(key, state, new), what, name, len(new))
                if txn.succeeded:
                    known.state = None if _small(new) is None else _Value(txn.revision, new)
                    return answer
                state, certain = _value_of(cast("Range", txn.results[0])), True
                rivals.won()

    def _replace(self, key: bytes, state: _Value, new: bytes) -> Written:
        def write(nonce: bytes) -> Parts:
            compare = Compare(key, "mod", state.revision)
            return (compare,), (self._put(key, new, nonce),), (Get(key),)

        return write

    def _change(self, root: bytes, write: Written, what: str, name: bytes, size: int = 0) -> Txn:
        root = root.removesuffix(QUEUE)
        try:
            return self._link.change(root, write, self._limit, f"{what} of key {_shown(name)}")
        except seam.TooLargeError as exc:
            raise DistStoreError(
                f"The {what} of key {_shown(name)} writes {size} bytes. etcd takes no more than "
                "1.5 MiB in one request, key included, where its --max-request-bytes does not "
                f"permit it: divide the value, or start etcd with a higher limit. {exc}"
            ) from exc

    @staticmethod
    def _number(name: bytes, data: bytes) -> int:
        number = int(data) if _NUMBER.fullmatch(data) else LARGEST + 1
        if not SMALLEST <= number <= LARGEST:
            raise DistStoreError(f"The value of key {_shown(name)} is not an integer of 64 bits.")
        return number


class _Rivals:
    """Others who change the same key at the same time, and before whom one holds back.

    One attempt fails because what was known is old, and tells what is true now. The next one,
    made at once, fails only if somebody changed it within one request: then there are several.
    The more there are, the longer etcd takes for each request: so that is the measure.
    """

    def __init__(self) -> None:
        self._wins = 0
        self._longest = 0.0
        self._tried_at = time.monotonic()

    def won(self) -> None:
        """Another one was first; sleep, if it has to be."""
        self._wins += 1
        if self._wins % 2 == 0:
            taken = time.monotonic() - self._tried_at
            self._longest = min(_LONGEST_BACKOFF, max(_REQUESTS * taken, 2 * self._longest))
            time.sleep(random.uniform(0, self._longest))  # noqa: S311
        self._tried_at = time.monotonic()


def _value_of(found: Range) -> _Value:
    if not found.kvs:
        return _Value()
    kv = found.kvs[0]
    return _Value(kv.mod_revision, kv.value[:-NONCE])


def _queue_of(results: Sequence[Result]) -> _Queue:
    """Of what was found at a queue's key, and of its first item where that was asked for."""
    kvs = cast("Range", results[0]).kvs
    if not kvs:
        return _Queue()
    head, tail = map(int, kvs[0].value[:-NONCE].split())
    first = _first_of(results[1]) if len(results) > 1 else None
    return _Queue(kvs[0].mod_revision, head, tail, first)


def _first_of(result: Result) -> bytes | None:
    kvs = cast("Range", result).kvs
    return kvs[0].value if kvs else None


def _small(data: bytes) -> bytes | None:
    """Data that may be remembered."""
    return data if len(data) <= _CACHED else None


def _shown(name: bytes) -> str:
    """A key in an error."""
    text = name.decode(errors="replace")
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
