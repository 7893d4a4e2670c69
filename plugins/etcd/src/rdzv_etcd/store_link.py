"""The way from stores to etcd: what is lost is asked again, and nothing takes effect twice."""

from __future__ import annotations

import contextlib
import math
import os
import random
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from torch.distributed import DistNetworkError, DistStoreError

from . import seam
from .seam import Compare, Get, Op, Put, Range, Txn
from .store_keys import END, FENCE, NONCE, StoreKeys

__all__ = ["Memory", "Outage", "Parts", "StoreLink", "Written", "store_error"]

_TOUCHES = 8
"""How often within the time to live a store that is used extends it."""

_FRESH = 30.0
"""Seconds after which the last revision that was seen is too old to look for a change from there:
etcd may soon have compacted it."""

_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds until the first repetition, and the most."""

_REMEMBERED = 4096
"""How many keys a link remembers the state of."""

_T = TypeVar("_T")
_Seen = TypeVar("_Seen", Range, Txn)

Parts: TypeAlias = "tuple[Sequence[Compare], Sequence[Op], Sequence[Get]]"
"""The conditions and both branches of a transaction."""

Written: TypeAlias = Callable[[bytes], Parts]
"""Makes a change's transaction, of the 8 bytes that name the change."""


def store_error(exc: seam.EtcdError) -> Exception:
    """The error of torch for one of the seam's: the one place where they are translated."""
    if isinstance(exc, seam.UnavailableError):
        return DistNetworkError(str(exc))
    return DistStoreError(str(exc))


class Outage:
    """How long one operation has met an etcd that cannot be reached.

    Args:
        client: The client.
        limit: Seconds after which it gives up.
        what: What is then unknown to have taken effect, if anything; for the error.
    """

    def __init__(self, client: seam.Client, limit: float, what: str = "") -> None:
        self._client = client
        self._limit = limit
        self._what = what
        self._since: float | None = None
        self._pause = _PAUSE
        self.unknown = False

    def began(self) -> None:
        """There was an attempt, now: it counts from here, if this is the first."""
        if self._since is None:
            self._since = time.monotonic()

    def over(self) -> None:
        """There was an answer."""
        self._since, self._pause = None, _PAUSE

    def pause(self, exc: seam.UnavailableError) -> None:
        """Sleep until the next attempt.

        Raises:
            DistNetworkError: There was no answer for too long.
        """
        self.began()
        assert self._since is not None  # noqa: S101 - for mypy
        left = self._limit - (time.monotonic() - self._since)
        if left <= 0 or getattr(self._client, "closed", False):
            raise self.error(exc) from exc
        time.sleep(min(left, self._pause * random.uniform(0.5, 1.0)))  # noqa: S311
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)

    def error(self, exc: seam.EtcdError) -> Exception:
        if self._since is None or getattr(self._client, "closed", False):
            return store_error(exc)
        seconds = time.monotonic() - self._since
        text = f"{exc} This was so for {seconds:.1f} seconds."
        if self.unknown:
            text += f" Whether {self._what} took effect is unknown."
        return DistNetworkError(text)


@dataclass
class _Remembered:
    """What is known of one key; one thread at a time changes it."""

    lock: Any = field(default_factory=threading.Lock)
    state: Any = None


class Memory:
    """What is known of the keys that were changed: with luck it spares a read.

    It may be out of date: whoever uses it has etcd compare the revision. Threads that change
    one key take turns, instead of spoiling each other's attempts.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, _Remembered] = {}
        _memories.add(self)

    def forget(self) -> None:
        self._of = {}

    @contextlib.contextmanager
    def alone(self, key: bytes, limit: float) -> Iterator[_Remembered]:
        """What is known of a key, for this thread alone.

        Raises:
            DistNetworkError: Other threads change it for ``limit`` seconds.
        """
        known = self._of.get(key)
        if known is None:
            if len(self._of) >= _REMEMBERED:
                self._of = {}
            known = self._of.setdefault(key, _Remembered())
        if not known.lock.acquire(timeout=limit):
            raise DistNetworkError(
                f"Other threads of this process have waited {limit:.1f} seconds for etcd with a "
                "change of the same key."
            )
        try:
            yield known
        finally:
            known.lock.release()


class StoreLink:
    """What the stores of one client and prefix share: the client, the lease, and what is known.

    Args:
        client: The client.
        base: What all keys begin with.
        ttl: Seconds that the data outlives its last use.
    """

    def __init__(self, client: seam.Client, base: bytes, ttl: float) -> None:
        self.client = client
        self.keys = StoreKeys(base)
        self.memory = Memory()
        self._ttl = ttl
        # All who use the prefix come to the same number, and nobody has to tell it.
        self.lease = seam.lease_number(b"rdzv store\0" + base)
        self._touch_at = time.monotonic() + ttl / _TOUCHES
        self._revision = 0
        self._seen_at = -math.inf

    @classmethod
    def shared(cls, client: seam.Client, base: bytes, ttl: float) -> StoreLink:
        """The link that stores of that client, prefix and time to live have, or a new one."""
        links = _links.setdefault(client, weakref.WeakValueDictionary())
        link = links.get((base, ttl))
        if link is None:
            link = links.setdefault((base, ttl), cls(client, base, ttl))
        return link

    # ------------------------------------------------------------ the lease

    def touch(self) -> float:
        """Extend the data's life, if it is time; returns the seconds until it is again."""
        now = time.monotonic()
        if now >= self._touch_at:
            every = self._ttl / _TOUCHES
            self._touch_at = now + every
            try:
                # Where it has gone there is nothing to extend: who writes makes it anew.
                self.client.lease_keepalive(self.lease)
            except seam.UnavailableError:
                # What is done now will say so; this is tried again soon.
                self._touch_at = now + every / _TOUCHES
            except seam.EtcdError as exc:
                raise store_error(exc) from exc
        return max(0.001, self._touch_at - now)

    def _grant(self) -> None:
        self.client.lease_grant(max(1, math.ceil(self._ttl)), self.lease)

    # ------------------------------------------------------------ reading

    def range(self, get: Get, limit: float) -> Range:
        """Read keys; an unreachable etcd is asked again for ``limit`` seconds.

        Raises:
            DistNetworkError: It cannot be reached for so long.
            DistStoreError: It has refused.
        """
        return self._read(lambda: self.client.range(get), limit)

    def read(self, gets: Sequence[Get], limit: float) -> Txn:
        """Read several ranges at one revision, else like ``range``."""
        return self._read(lambda: self.client.txn((), gets), limit)

    def _read(self, call: Callable[[], _Seen], limit: float) -> _Seen:
        self.touch()
        answer = self._persist(call, Outage(self.client, limit))
        self._saw(answer.revision)
        return answer

    def _persist(self, call: Callable[[], _T], outage: Outage) -> _T:
        """Do what may be done twice until it is answered."""
        outage.began()
        without_lease = False
        while True:
            try:
                if without_lease:
                    self._grant()
                return call()
            except seam.LeaseGoneError:  # noqa: PERF203 - each is an exception
                without_lease = True
            except seam.UnavailableError as exc:
                outage.pause(exc)
            except seam.EtcdError as exc:
                raise store_error(exc) from exc

    def _saw(self, revision: int) -> None:
        self._revision, self._seen_at = revision, time.monotonic()

    # ------------------------------------------------------------ writing

    def change(self, root: bytes, write: Written, limit: float, what: str) -> Txn:
        """Carry out a transaction that changes something, once.

        Its answer may be lost, and it may then still be on its way. A fence keeps it from taking
        effect from then on; the history of the keys tells whether it did before; else it is
        done again under another name.

        Args:
            root: A key; in the range of what is of its name the success branch puts something
                that ends with the change's 8 bytes.
            write: What makes the transaction.
            limit: Seconds that an unreachable etcd is asked again.
            what: What is done, for errors.

        Returns:
            The transaction's answer; without results where it was lost.

        Raises:
            DistNetworkError: etcd cannot be reached for so long.
            seam.TooLargeError: It is larger than etcd takes. The caller knows why.
            DistStoreError: etcd has refused.
        """
        self.touch()
        outage = Outage(self.client, limit, what)
        if time.monotonic() - self._seen_at > _FRESH:
            probe = Get(self.keys.deleted, count_only=True)
            self._saw(self._persist(lambda: self.client.range(probe), outage).revision)
        while True:
            since = self._revision
            nonce = secrets.token_bytes(NONCE)
            compare, success, failure = write(nonce)
            fence = root + FENCE + nonce
            outage.began()
            try:
                txn = self.client.txn((Compare(fence, "create", 0), *compare), success, failure)
            except seam.LeaseGoneError:
                self._persist(self._grant, outage)
            except seam.UnavailableError as exc:
                if exc.sent:
                    outage.unknown = True
                    revision = self._revision_of(root, fence, nonce, since, outage)
                    outage.unknown = False
                    if revision:
                        self._saw(revision)
                        return Txn(True, revision, ())
                outage.pause(exc)
            except seam.TooLargeError:
                raise
            except seam.EtcdError as exc:
                raise store_error(exc) from exc
            else:
                self._saw(txn.revision)
                return txn

    def _revision_of(
        self, root: bytes, fence: bytes, nonce: bytes, since: int, outage: Outage
    ) -> int:
        """The revision at which a change took effect after ``since``; 0 if it never will."""
        puts = [Put(fence, b"", self.lease)]
        if self.keys.is_counted(root):
            puts.append(Put(self.keys.mirror(fence), b"", self.lease))
        until = self._persist(lambda: self.client.txn((), puts), outage).revision
        if until <= since:
            return 0  # etcd has lost its data meanwhile, or was replaced.
        outage.over()
        outage.began()
        whole = True
        with contextlib.closing(self.client.watch(root, root + END, since + 1)) as watch:
            while True:
                try:
                    events = watch.next(_LONGEST_PAUSE)
                except seam.UnavailableError as exc:
                    outage.pause(exc)
                    continue
                except seam.EtcdError as exc:
                    raise store_error(exc) from exc
                if events is None:
                    whole = False
                    continue
                if not events:
                    outage.pause(self._lost("does not tell its history"))
                for event in events:
                    if event.kv.key == fence:
                        if whole:
                            return 0
                        raise outage.error(self._lost("has compacted its history"))
                    if not event.deleted and event.kv.value.endswith(nonce):
                        return event.kv.mod_revision

    def _lost(self, why: str) -> seam.UnavailableError:
        text = f"An answer of etcd at {self.client.where} was lost, and it {why}."
        return seam.UnavailableError(text)


_links: weakref.WeakKeyDictionary[
    seam.Client, weakref.WeakValueDictionary[tuple[bytes, float], StoreLink]
] = weakref.WeakKeyDictionary()

_memories: weakref.WeakSet[Memory] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child: a thread that is not there may have held a lock."""
    for memory in list(_memories):
        memory.forget()


os.register_at_fork(after_in_child=_after_fork)
