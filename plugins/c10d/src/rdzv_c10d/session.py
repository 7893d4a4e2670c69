"""A session on a ``torch.distributed.Store``: document, roster and beats under their own keys."""

from __future__ import annotations

import re
import secrets
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rdzv.dynamic_rendezvous.backend import (
    MAX_RECORDS,
    MAX_STATE_BYTES,
    MAX_TICKETS,
    Session,
    Swap,
    Token,
)
from rdzv.errors import RendezvousConnectionError, RendezvousStateError, torch_compatible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.distributed import Store

__all__ = ["Chain", "StoreSession", "call"]

_NEVER = "?"
"""Expected of a key by a read that must not write: nothing stored is ever equal to it."""

_GONE = "-"
"""Stands where something was that nobody needs any more. Never empty: to TCPStore's
compare_set an empty value is the same as none."""

_MOST = 4 * -(-MAX_STATE_BYTES // 3) + 17
"""The longest value that is looked into (bytes): the largest state in base64, after its mark."""

_COUNTER = re.compile("-?[0-9]{1,19}")

_FEW = 2

_SLOTS = 9
_BITS = 7
_WRAPS = (112, 120)
_IN_FLIGHT = 0.003
"""Seconds that a record may lag behind its ticket before each is looked for by itself."""

_SHORT = 1.0
"""Waits up to this (seconds) look now and then: TCPStore logs a warning where one times out."""

_PAUSES = (0.001, 0.05)
"""Seconds between two looks at a store that cannot push: the first, and the longest."""

T = TypeVar("T")


def call(what: str, operation: Callable[[], T]) -> T:
    """Run a store's operation; its failures become ``RendezvousConnectionError``."""
    try:
        return operation()
    except (RuntimeError, ValueError, IndexError, OSError) as exc:
        # torch's store errors are RuntimeErrors; TimeoutError is an OSError, and a
        # number that is too large an IndexError.
        first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise torch_compatible(RendezvousConnectionError)(
            f"The connection to {what} has failed: {first}"
        ) from exc


class Keys:
    """The few operations that everything here is made of.

    Args:
        store: The store.
        what: What it is, for errors.
        pushes: Whether its ``wait`` is answered by the server and blocks nobody else.
    """

    def __init__(self, store: Store, what: str, *, pushes: bool) -> None:
        self.store: Any = store  # torch's stubs do not know all of its methods.
        self.what = what
        self.pushes = pushes
        self.closed = threading.Event()

    def peek(self, key: str) -> str | None:
        """Read a key in one request that never blocks (``get`` blocks where it is missing)."""
        found = self.swap(key, _NEVER, _NEVER)
        return None if found == _NEVER else found

    def swap(self, key: str, expected: str, value: str) -> str:
        return self._text(
            key, call(self.what, lambda: self.store.compare_set(key, expected, value))
        )

    def _text(self, key: str, value: bytes) -> str:
        if len(value) > _MOST:
            raise torch_compatible(RendezvousStateError)(
                f"The key {key!r} in {self.what} holds {len(value)} bytes, more than rdzv writes. "
                "Something else has written there; use another run id."
            )
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            raise torch_compatible(RendezvousStateError)(
                f"The key {key!r} in {self.what} does not hold text."
            ) from exc

    def create(self, key: str, value: str) -> str:
        """Write a key only where it is missing; returns what stands there now."""
        return self.swap(key, "", value)

    def add(self, key: str, amount: int) -> int:
        try:
            total: int = call(self.what, lambda: self.store.add(key, amount))
        except RendezvousConnectionError:
            # A store complains about a counter that is none as it does about a connection.
            self._check_counter(key)
            raise
        return total

    def _check_counter(self, key: str) -> None:
        text = self.peek(key)
        if text is not None and not _COUNTER.fullmatch(text):
            raise torch_compatible(RendezvousStateError)(
                f"The key {key!r} in {self.what} holds {text[:40]!r}, no counter. Use another run "
                "id."
            )

    def set_all(self, pairs: Mapping[str, str]) -> None:
        """Write without an answer, in effect before whatever this connection does next."""
        keys, values = list(pairs), list(pairs.values())
        call(self.what, lambda: self.store.multi_set(keys, values))

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """Read keys that are known to exist."""
        values: list[bytes] = call(self.what, lambda: self.store.multi_get(list(keys)))
        return values

    def exist(self, keys: Sequence[str]) -> bool:
        there: bool = call(self.what, lambda: self.store.check(list(keys)))
        return there

    def delete(self, key: str) -> None:
        call(self.what, lambda: self.store.delete_key(key))

    def wait(self, keys: Sequence[str], timeout: float) -> bool:
        """Wait until all keys exist; whether they do."""
        if self.pushes and timeout > _SHORT:
            return self._wait_pushed(list(keys), timeout)
        deadline = time.monotonic() + timeout
        pause, longest = _PAUSES
        while not self.exist(keys):
            left = deadline - time.monotonic()
            if left <= 0 or self.closed.wait(min(pause, left)):
                return False
            pause = min(1.5 * pause, longest)
        return True

    def await_value(self, key: str, timeout: float) -> str | None:
        """Wait until a key exists, and read it; ``None`` where it does not come."""
        if self.pushes and timeout > _SHORT:
            # One call for both: the thread has to come back into Python only once.
            self.store.set_timeout(timedelta(seconds=timeout))
            return self._within(lambda: self._text(key, self.store.get(key)))
        return self.peek(key) if self.wait([key], timeout) else None

    def _within(self, operation: Callable[[], T]) -> T | None:
        """Run what waits on the server; ``None`` where its time is up."""
        from torch.distributed import DistNetworkError, DistStoreError

        def run() -> T | None:
            try:
                return operation()
            except DistNetworkError:
                raise
            except DistStoreError:
                return None

        return call(self.what, run)

    def _wait_pushed(self, keys: list[str], timeout: float) -> bool:
        def wait() -> bool:
            self.store.wait(keys, timedelta(seconds=timeout))
            return True

        return self._within(wait) or False


class Chain:
    """A value with compare-and-set, as a chain of keys that are written once, one a version.

    Version v is ``<prefix>/v``. To replace it is to create v + 1, which only one
    writer can; to wait for a change is to wait for that key. A hint says where
    the chain's end is. Old versions become a short mark rather than being
    deleted, or a writer that slept would find its next version free.
    """

    def __init__(self, keys: Keys, prefix: str) -> None:
        self._keys = keys
        self._prefix = prefix

    def _key(self, version: int) -> str:
        return f"{self._prefix}/{version}"

    @property
    def _hint_key(self) -> str:
        return f"{self._prefix}/hint"

    def _hint(self) -> int | None:
        text = self._keys.peek(self._hint_key)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise self._corrupt(self._hint_key, text)
        return int(text)

    def _corrupt(self, key: str, text: str) -> RendezvousStateError:
        return torch_compatible(RendezvousStateError)(
            f"The key {key!r} in {self._keys.what} holds {text[:40]!r}, which rdzv did not write. "
            "Use another run id."
        )

    def read(self, known: int | None) -> tuple[str, int] | None:
        """The value and its version; newer than ``known`` where there is a newer one."""
        # Nobody waits for the answer to a hint: the first of all may have been lost.
        version = (self._hint() or 1) if known is None else self._newer(known)
        while True:
            text = self._keys.peek(self._key(version))
            if text is None:
                return None
            if text != _GONE:
                return self._value(version, text), version
            # The hint may be old: a writer can be slow to move it on.
            version = max(version + 1, self._hint() or 0)

    def newest(self) -> tuple[str, int] | None:
        """The value that nothing has replaced yet, even where the hint is old."""
        found = self.read(None)
        while found is not None:
            newer = self.read(found[1])
            if newer is None or newer[1] <= found[1]:
                break
            found = newer
        return found

    def _newer(self, known: int) -> int:
        # Asked for in a way that wakes nobody: a compare_set of a key that is not
        # there wakes all who wait for it, and each of them would look, and so on.
        return known + 1 if self._keys.exist([self._key(known + 1)]) else known

    def _value(self, version: int, text: str) -> str:
        nonce, mark, value = text.partition(":")
        if not mark or len(nonce) != 16:
            raise self._corrupt(self._key(version), text)
        return value

    def swap(self, value: str, token: int | None) -> tuple[bool, str, int] | None:
        """Replace version ``token``; (won, value, version), or ``None`` where nothing is stored."""
        version = (token or 0) + 1
        # The random part makes success certain where two write the same value.
        text = f"{secrets.token_hex(8)}:{value}"
        if token is None or self._keys.peek(self._key(token)) is not None:
            found = self._keys.create(self._key(version), text)
            if found == text:
                # Only a hint: nothing waits for it, and it may be lost.
                past = {self._key(version - 2): _GONE} if version > 2 else {}
                self._keys.set_all({self._hint_key: str(version), **past})
                return True, value, version
            if found != _GONE:
                return False, self._value(version, found), version
        newest = self.read(None)
        return None if newest is None else (False, *newest)

    def wait(self, version: int, timeout: float) -> tuple[str, int] | None:
        """The next version, if it comes within ``timeout`` seconds and is still there."""
        key = self._key(version + 1)
        text = self._keys.await_value(key, timeout)
        # TCPStore's get may wake up early, and then returns nothing for a missing key.
        if not text or text == _GONE:
            return None
        return self._value(version + 1, text), version + 1


def _unpacked(group: int, value: int) -> dict[int, int]:
    return {
        group * _SLOTS + place: (value >> (_BITS * place)) & (2**_BITS - 1)
        for place in range(_SLOTS)
    }


class StoreSession(Session):
    """One connection to a run on a store.

    Args:
        store: A store that no other session uses, if it ``pushes``.
        run_id: The run.
        what: What the store is, for errors.
        pushes: See :class:`Keys`.
    """

    def __init__(self, store: Store, run_id: str, what: str, *, pushes: bool) -> None:
        self._keys = Keys(store, what, pushes=pushes)
        self._root = f"rdzv/{run_id}"
        self._chain = Chain(self._keys, f"{self._root}/document")
        self._base = ""
        self._known: set[int] = set()

    # ------------------------------------------------------------ the document

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:
        found = self._chain.read(known)
        return None if found is None else (found[0].encode(), found[1])

    def swap(self, document: bytes, token: Token | None) -> Swap:
        found = self._chain.swap(document.decode(), token)
        if found is None:
            raise torch_compatible(RendezvousStateError)(
                f"The document of the run has vanished from {self._keys.what}: it was restarted "
                "without its data. Start the job again on all nodes."
            )
        won, text, version = found
        return Swap(won, text.encode(), version)

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        found = self._chain.wait(token, timeout)
        return None if found is None else (found[0].encode(), found[1])

    def attach(self, epoch: str) -> None:
        base = f"{self._root}/{epoch}"
        if base != self._base:
            self._base = base
            self._known.clear()

    # ------------------------------------------------------------ the roster

    def _record(self, ticket: int) -> str:
        if not self._base:
            raise AssertionError("the session has not been attached to an epoch")
        return f"{self._base}/record/{ticket}"

    def enter(self, record: bytes) -> int:
        text = record.decode()
        while True:
            ticket = self._sound(self._keys.add(f"{self._base}/tickets", 1), 1)
            # Where the leader has buried the ticket meanwhile, take another one.
            if self._keys.create(self._record(ticket), text) == text:
                return ticket

    def _sound(self, ticket: int, least: int) -> int:
        if not least <= ticket <= MAX_TICKETS:
            raise torch_compatible(RendezvousStateError)(
                f"The key '{self._base}/tickets' in {self._keys.what} holds {ticket}, no number of "
                "tickets. Use another run id."
            )
        return ticket

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        tail = self._sound(self._keys.add(f"{self._base}/tickets", 0), 0)
        tickets = range(after + 1, min(tail, after + MAX_RECORDS) + 1)
        keys = [self._record(ticket) for ticket in tickets]
        if len(keys) > _FEW and (self._keys.exist(keys) or self._keys.wait(keys, _IN_FLIGHT)):
            return list(zip(tickets, self._keys.get_all(keys), strict=True))
        found = [self._keys.peek(key) for key in keys]
        return [
            (ticket, None if text is None else text.encode())
            for ticket, text in zip(tickets, found, strict=True)
        ]

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        self._keys.wait([self._record(after + count)], timeout)

    def bury(self, ticket: int) -> None:
        self._keys.create(self._record(ticket), _GONE)

    # ------------------------------------------------------------ beats

    # Nine slots share one number, seven bits each, which only add ever changes: one
    # request gives a beat and brings the counters of eight others along. Slot 0 is
    # that of a run's first leader, so that the first eight nodes are together.

    def _group(self, group: int) -> str:
        return f"{self._base}/beat/{group}"

    def beat(self, slot: int) -> Mapping[int, int]:
        group, place = divmod(slot, _SLOTS)
        counts = _unpacked(group, self._keys.add(self._group(group), 1 << (_BITS * place)))
        if counts[slot] in _WRAPS:
            # Back to where it began, well before it would spill over into the neighbour. Only
            # one of all that beat in a slot is told of a number; the second is for where
            # that one was lost.
            back = -_WRAPS[0] << (_BITS * place)
            counts = _unpacked(group, self._keys.add(self._group(group), back))
        return counts

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        groups = sorted({slot // _SLOTS for slot in slots})
        if len(groups) <= _FEW:
            values = [self._keys.add(self._group(group), 0) for group in groups]
        else:
            self._make_exist([group for group in groups if group not in self._known])
            found = self._keys.get_all([self._group(group) for group in groups])
            values = [self._number(g, value) for g, value in zip(groups, found, strict=True)]
        counts: dict[int, int] = {}
        for group, value in zip(groups, values, strict=True):
            counts |= _unpacked(group, value)
        return {slot: counts[slot] for slot in slots}

    def _make_exist(self, groups: Sequence[int]) -> None:
        # A read of many keys blocks where one is missing: of nodes that have not beaten yet.
        if groups and not self._keys.exist([self._group(group) for group in groups]):
            for group in groups:
                self._keys.add(self._group(group), 0)
        self._known.update(groups)

    def _number(self, group: int, value: bytes) -> int:
        text = value[:40].decode(errors="replace")
        if not _COUNTER.fullmatch(text):
            raise torch_compatible(RendezvousStateError)(
                f"The key {self._group(group)!r} in {self._keys.what} holds {text!r}, no counter. "
                "Use another run id."
            )
        return int(text)

    # ------------------------------------------------------------ pieces

    def _piece(self, nonce: str, name: str) -> str:
        return f"{self._base}/piece/{nonce}/{name}"

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        self._keys.set_all({self._piece(nonce, n): piece.decode() for n, piece in pieces.items()})

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        found = [self._keys.peek(self._piece(nonce, name)) for name in names]
        return [None if text is None else text.encode() for text in found]

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        if upto > after:
            self._keys.set_all({self._record(t): _GONE for t in range(after + 1, upto + 1)})
        for name in names:
            self._keys.delete(self._piece(nonce, name))

    def close(self) -> None:
        # The connection itself goes with the store object, once no call is in it.
        self._keys.closed.set()
