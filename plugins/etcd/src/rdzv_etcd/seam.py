"""What a client of etcd's v3 API offers here: plain types, a few calls, five kinds of errors.

No type of a client library crosses it, so that another client can stand behind it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

__all__ = [
    "AuthError",
    "Client",
    "CompactedError",
    "Compare",
    "Delete",
    "Deleted",
    "EtcdError",
    "Event",
    "Get",
    "KeyValue",
    "Lease",
    "LeaseGoneError",
    "NoSpaceError",
    "Op",
    "Put",
    "PutDone",
    "Range",
    "Result",
    "TimeoutError",
    "TooLargeError",
    "Txn",
    "UnavailableError",
    "Watch",
    "lease_number",
    "prefix_end",
]


class EtcdError(Exception):
    """etcd has refused a request: nothing of it took effect, unless a subclass says otherwise."""


class UnavailableError(EtcdError):
    """No member can be reached, or none that has a quorum.

    Attributes:
        sent: Whether a request may have been executed all the same.
    """

    def __init__(self, text: str, *, sent: bool = True) -> None:
        super().__init__(text)
        self.sent = sent


class TimeoutError(UnavailableError):  # noqa: A001 - as the others are called
    """There was no answer in time; a write may have taken effect."""


class AuthError(EtcdError):
    """The login was not accepted, or the user may not do that."""


class CompactedError(EtcdError):
    """The revision that was asked for has been compacted.

    Attributes:
        revision: The oldest that is left, where it is known, else 0.
    """

    def __init__(self, text: str, revision: int = 0) -> None:
        super().__init__(text)
        self.revision = revision


class LeaseGoneError(EtcdError):
    """A lease that was named does not exist (any more)."""


class NoSpaceError(EtcdError):
    """The database is full: etcd refuses all that needs room, until somebody has made some."""


class TooLargeError(EtcdError):
    """The request is larger than etcd takes, or has more operations than it takes at once."""


# These two are tuples, since many are made: that takes half the time.
class KeyValue(NamedTuple):
    """A key, its value, and the revisions at which it was created and last changed.

    Attributes:
        version: How often it was written since it was created.
        lease: The lease that it is deleted with, 0 for none.
    """

    key: bytes
    value: bytes
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


@dataclass(frozen=True)
class Get:
    """Read a key, or those from ``key`` up to ``end`` and without it, at one revision.

    Attributes:
        limit: The most keys to return, 0 for all; ``count`` is of all, ``more`` says so.
        keys_only: Leave the values out.
        count_only: Return no keys, only how many there are.
        by_creation: Order them by when they were created instead of by name.
        created_after: Only those that were created after this revision; ``count`` is of all.
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    keys_only: bool = False
    count_only: bool = False
    by_creation: bool = False
    created_after: int = 0


@dataclass(frozen=True)
class Put:
    """Write a key. It is deleted with the lease, if there is one."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Delete:
    """Delete a key, or those from ``key`` up to ``end`` and without it."""

    key: bytes
    end: bytes = b""


@dataclass(frozen=True)
class Compare:
    """A condition of a transaction: ``what`` of ``key`` is equal to ``value``.

    Attributes:
        what: ``"create"`` or ``"mod"`` (revisions; 0 where there is no such key),
            ``"version"``, ``"value"`` or ``"lease"``.
        sign: ``"="``, ``"!="``, ``">"`` or ``"<"``.
    """

    key: bytes
    what: str
    value: int | bytes
    sign: str = "="


@dataclass(frozen=True)
class Range:
    """What a ``Get`` has found, and the store's revision at that moment."""

    revision: int
    kvs: tuple[KeyValue, ...]
    count: int
    more: bool = False


@dataclass(frozen=True)
class PutDone:
    """A key was written."""


@dataclass(frozen=True)
class Deleted:
    """So many keys were deleted."""

    count: int


Op: TypeAlias = "Get | Put | Delete"
Result: TypeAlias = "Range | PutDone | Deleted"


@dataclass(frozen=True)
class Txn:
    """Which branch of a transaction was executed, at which revision, and what came of it."""

    succeeded: bool
    revision: int
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Lease:
    """A lease and the seconds that it lives without being kept alive."""

    id: int
    ttl: int


class Event(NamedTuple):
    """A key was written, or deleted (then only its name and ``mod_revision`` are known)."""

    kv: KeyValue
    deleted: bool = False


class Watch(ABC):
    """What happens to some keys from one revision on, in order, through breaks of the connection.

    One thread takes events from it; any may close it.
    """

    @property
    @abstractmethod
    def since(self) -> int:
        """The revision from which on it tells what happens."""

    @abstractmethod
    def next(self, timeout: float) -> list[Event] | None:
        """The next events, as many as have come; an empty list after ``timeout`` seconds.

        ``None`` says that some were missed, because etcd has compacted them: read the
        keys afresh. What comes after that begins at the revision that is then the oldest.

        Raises:
            UnavailableError: No member could be reached for the client's ``timeout``. It may
                be asked again.
            EtcdError: The watch has failed for good, or was closed.
        """

    @abstractmethod
    def close(self) -> None:
        """End it, and a ``next`` that waits. Never raises; may be repeated."""


class Client(ABC):
    """A connection to etcd. Threads may share it, processes may not.

    All calls return, or raise, within the client's timeout. All raise:

    Raises:
        UnavailableError: It is unknown whether a write took effect.
        AuthError: See there; as the other errors of this module.
        EtcdError: etcd has refused it for another reason.
    """

    @property
    @abstractmethod
    def where(self) -> str:
        """The endpoints, for people; without secrets."""

    @abstractmethod
    def range(self, get: Get) -> Range:
        """Read keys: what has been written before this call began, by whomever."""

    @abstractmethod
    def put(self, key: bytes, value: bytes, lease: int = 0) -> int:
        """Write a key; returns the revision."""

    @abstractmethod
    def delete(self, key: bytes, end: bytes = b"") -> int:
        """Delete keys as ``Delete`` has it; returns how many."""

    @abstractmethod
    def txn(
        self, compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> Txn:
        """If all of ``compare`` hold do ``success``, else ``failure``, at one revision."""

    @abstractmethod
    def lease_grant(self, ttl: int, lease: int = 0) -> Lease:
        """Make a lease of ``ttl`` seconds, under a number that is given or etcd's to choose.

        Where there is one of that number already, it is left as it is and returned.
        """

    @abstractmethod
    def lease_keepalive(self, lease: int) -> int:
        """Have a lease live for its time from now on; returns that time, 0 if it is gone."""

    @abstractmethod
    def lease_revoke(self, lease: int) -> None:
        """End a lease and delete its keys; one that is gone is no error."""

    @abstractmethod
    def watch(self, key: bytes, end: bytes = b"", start_revision: int = 0) -> Watch:
        """Watch keys from ``start_revision`` on, 0 for now; in effect when this returns.

        One that begins behind what was written last, be it to other keys, is told nothing for up
        to 100 ms: etcd looks for such watches ten times a second (``syncWatchersLoop`` of its
        ``mvcc`` package). Who is not to be late watches from now on, and then looks at what may
        have happened before ``since``.
        """

    @abstractmethod
    def close(self) -> None:
        """End the connection and all watches. Never raises."""


def lease_number(name: bytes) -> int:
    """The number of a lease that many share: all who know its name come to the same."""
    digest = hashlib.sha256(name).digest()
    return int.from_bytes(digest[:8], "big") >> 1 or 1


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    # All keys from some key on: etcd writes that with a zero byte.
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"
