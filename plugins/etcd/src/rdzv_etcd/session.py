"""A session on etcd: each thing a key of its own, a node's sign of life a lease."""

from __future__ import annotations

import math
import secrets
import threading
import time
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from rdzv.dynamic_rendezvous.backend import (
    HELD,
    MAX_RECORDS,
    MAX_STATE_BYTES,
    MAX_TICKETS,
    Session,
    Swap,
    Token,
)
from rdzv.dynamic_rendezvous.runtime import REAL
from rdzv.errors import RendezvousConnectionError, RendezvousStateError, torch_compatible

from .errors import call
from .parts import OPERATIONS, parts
from .seam import Compare, Delete, Get, LeaseGoneError, Put, Range, lease_number, prefix_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .seam import Client, Event, KeyValue, Op, Txn, Watch

__all__ = ["Document", "EtcdSession", "Run"]

T = TypeVar("T")

_FEW = 4
"""So many beats are read one by one, more as a whole."""

_RENEWALS = 8
"""How often a time to live is renewed before it is over."""

_FORGOTTEN = b"-"


class Beats:
    """The leases of the slots where the sessions of one backend beat.

    All threads of a node beat when they have connected anew. If each put the slot under a lease of
    its own, one that nobody renews would take it along when it ends. So they agree on a number
    before they ask etcd for it, and what is still under way somewhere puts it under the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[bytes, int] = {}
        self.written: set[int] = set()
        """Leases under which a slot was put."""

    def lease_of(self, key: bytes) -> int:
        """The number of the lease of a slot, whether it has been made or not."""
        with self._lock:
            return self._leases.setdefault(key, secrets.randbits(63) | 1)

    def lease_after(self, key: bytes, ended: int) -> int:
        """The number of the one that follows a lease that has ended: none is used again."""
        with self._lock:
            if self._leases[key] == ended:
                self._leases[key] = secrets.randbits(63) | 1
                self.written.discard(ended)
            return self._leases[key]


class Run:
    """A run on an etcd cluster: the names of its keys, and the lease that all of them share.

    Args:
        client: Reaches etcd.
        run_id: The run.
        prefix: What all keys begin with.
        ttl: How long keys live that nobody renews (seconds).
    """

    def __init__(
        self, client: Client, run_id: str, *, prefix: str = "/rdzv", ttl: float = 7200.0
    ) -> None:
        self.client = client
        self.root = self.names(run_id, prefix)
        self.ttl = max(1, math.ceil(ttl))
        self._renewed = time.monotonic()
        # All nodes know its number without asking: whoever comes first makes it.
        self.lease = lease_number(self.root().encode())
        self.beats = Beats()

    @staticmethod
    def names(run_id: str, prefix: str) -> Callable[..., str]:
        """What makes the key of a name in the run."""
        root = f"{prefix.rstrip('/')}/{quote(run_id, safe='')}"
        return lambda *names: "/".join((root, *names))

    def key(self, *names: str) -> bytes:
        """The key of a name in the run."""
        return self.root(*names).encode()

    def put(self, key: bytes, value: bytes) -> Put:
        """The operation that writes a key of the run."""
        return Put(key, value, self.lease)

    def writing(self, operation: Callable[[], T]) -> T:
        """Do something that writes keys of the run; their lease is made where there is none."""

        def write() -> T:
            try:
                return operation()
            except LeaseGoneError:
                self.client.lease_grant(self.ttl, self.lease)
                return operation()

        return call(write)

    def renew(self) -> None:
        """Have the keys live for their time from now on."""
        call(lambda: self.client.lease_keepalive(self.lease))

    def renew_in_time(self) -> None:
        """Do so now and then, if this is called again and again."""
        now = time.monotonic()
        if now - self._renewed > self.ttl / _RENEWALS:
            self.renew()
            self._renewed = now

    def probe(self) -> None:
        """See whether the user may do all that a run needs; raises where it may not."""
        # Who may write a key may delete it, and who may read it may watch it.
        key = self.key("probe")
        self.writing(lambda: self.client.txn([], [self.put(key, b""), Get(key)]))


class Document:
    """A value with compare-and-set, and its revision as the token, which never returns."""

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self.key = run.key(name)

    def read(self) -> tuple[bytes, int] | None:
        """The value and its token."""
        return found_in(call(lambda: self._run.client.range(Get(self.key))).kvs)

    def swap(self, value: bytes, token: Token | None) -> tuple[bool, bytes, int] | None:
        """Replace it; whether it was this call, and what is stored now, if anything is."""
        run = self._run
        if len(value) > MAX_STATE_BYTES:
            raise torch_compatible(RendezvousStateError)(
                f"A state of {len(value)} bytes is more than the {MAX_STATE_BYTES} that are read."
            )
        if token is None:
            # Where many come at once all but one find it there: a read takes no vote of members.
            found = self.read()
            if found is not None:
                return False, *found
        # A token that is none of ours names nothing that is stored.
        expected = 0 if token is None else token if type(token) is int and token > 0 else -1
        done = run.writing(
            lambda: run.client.txn(
                [Compare(self.key, "mod", expected)], [run.put(self.key, value)], [Get(self.key)]
            )
        )
        if done.succeeded:
            return True, value, done.revision
        found = found_in(_range_of(done.results[0]).kvs)
        return None if found is None else (False, *found)


class EtcdSession(Session):
    """One node's way to a run on etcd, over the client that its sessions share.

    Args:
        run: The run.
        lease_ttl: How long a node's lease lives after its last beat (seconds).
    """

    def __init__(self, run: Run, lease_ttl: int) -> None:
        self._run = run
        self._client = run.client
        self._lease_ttl = lease_ttl
        self._document = Document(run, "document")
        self._epoch = ""
        self._closed = False
        self._watching = threading.Lock()
        self._watches: dict[bytes, Watch] = {}
        self._told: tuple[bytes, int] | None = None
        """The newest document of which it was told."""
        self._looked_at = 0
        """The revision up to which it has looked for newer ones itself."""
        self._seen = (0, 0)
        """The last ticket that it has read, and the revision at which that was taken."""
        self._arrived: tuple[int, int] | None = None
        """The newest ticket of which it knows, and as of which revision."""
        self._read_at = 0
        """The newest version of the document that it has read or written."""

    def _key(self, *names: str) -> bytes:
        return self._run.key(self._epoch, *names)

    def _call(self, operation: Callable[[], T]) -> T:
        self._check_open()
        return call(operation)

    def _read(self, *gets: Get) -> Txn:
        """Read several ranges at one revision."""
        return self._call(lambda: self._client.txn([], gets))

    def _write(self, operations: Sequence[Op], compare: Sequence[Compare] = ()) -> Txn:
        """Write keys of the run."""
        self._check_open()
        return self._run.writing(lambda: self._client.txn(compare, operations))

    def _check_open(self) -> None:
        if self._closed:
            raise torch_compatible(RendezvousConnectionError)("The session was closed.")

    # ------------------------------------------------------------ the document

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:  # noqa: ARG002 - linearizable
        self._check_open()
        found = self._document.read()
        if found is not None:
            self._read_at = found[1]
        return found

    def swap(self, document: bytes, token: Token | None) -> Swap:
        self._check_open()
        found = self._document.swap(document, token)
        if found is None:
            raise self._vanished()
        self._read_at = found[2]
        return Swap(*found)

    def _vanished(self) -> RendezvousStateError:
        return torch_compatible(RendezvousStateError)(
            f"The document of the run has vanished from etcd at {self._client.where}: the run's "
            "time to live was over, somebody has deleted it, or etcd has come back without its "
            "data. Start the job again on all nodes."
        )

    def _check_memory(self) -> None:
        """See whether etcd still has the version of the document that this session knows."""
        found = self._document.read() if self._read_at else None
        if self._read_at and (found is None or found[1] < self._read_at):
            raise self._vanished()

    def listen(self, known: Token | None) -> None:  # noqa: ARG002 - wait() looks for what is newer
        self._watch(self._document.key)

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        watch = self._watch(self._document.key)
        if max(token, self._looked_at) + 1 < watch.since:
            # What was written after this version and before the watch began is told by nobody.
            found = self.read(token)
            self._looked_at = watch.since
            if found is None:
                return None
            self._told = found
        for event in self._events(watch, timeout, until=lambda: self._is_news(token)):
            if event is None or event[1]:
                return None  # It has vanished, or something was missed.
            self._told = found_in([event[0]])
        return self._told if self._is_news(token) else None

    def _is_news(self, token: Token) -> bool:
        # Versions of which this node has learnt by another way may still be under way here.
        return self._told is not None and self._told[1] > token

    def _watch(self, key: bytes, end: bytes = b"") -> Watch:
        watch = self._watches.get(key)
        if watch is None:
            # It may take a while, for which no close waits.
            watch = self._call(lambda: self._client.watch(key, end))
            with self._watching:
                self._watches[key] = watch
                closed = self._closed
            if closed:
                watch.close()
        return watch

    def _events(
        self, watch: Watch, timeout: float, until: Callable[[], bool]
    ) -> Iterator[tuple[KeyValue, bool] | None]:
        """What a watch tells until something has come about; ``None`` where it has missed some."""
        deadline = time.monotonic() + timeout
        while not until():
            left = deadline - time.monotonic()
            events = self._next(watch, max(0.0, left))
            if events is None:
                yield None
            elif events:
                yield from ((event.kv, event.deleted) for event in events)
            elif left <= 0:
                return

    def _next(self, watch: Watch, timeout: float) -> list[Event] | None:
        return self._call(lambda: watch.next(timeout))

    def attach(self, epoch: str) -> None:
        if epoch == self._epoch:
            return
        with self._watching:
            log = self._watches.pop(self._key("log", ""), None)
        if log is not None:
            log.close()
        self._epoch = epoch
        self._seen, self._arrived = (0, 0), None

    # ------------------------------------------------------------ the roster

    # A ticket is the place of a record in the order in which records were created: a
    # transaction that writes one and counts them takes it, and contends with nobody.

    def enter(self, record: bytes) -> int:
        done = self._write([self._run.put(self._key("log", REAL.new_id()), record), *self._tail()])
        return _ticket(*map(_range_of, done.results[1:]))

    def _tail(self) -> list[Get]:
        """What is to be read to know the newest ticket: how many records there are and were."""
        log = self._key("log", "")
        return [Get(log, prefix_end(log), count_only=True), Get(self._key("freed"))]

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        freed, kvs, revision = self._read_log(after)
        first = max(after, freed) + 1
        lines: list[tuple[int, bytes | None]] = [
            (ticket, _FORGOTTEN) for ticket in range(after + 1, first)[:MAX_RECORDS]
        ]
        lines += [(first + n, kv.value) for n, kv in enumerate(kvs)][: MAX_RECORDS - len(lines)]
        if len(lines) < MAX_RECORDS:
            self._arrived = (lines[-1][0] if lines else max(after, freed), revision)
        if kvs:
            self._seen = first + len(kvs) - 1, kvs[-1].create_revision
        return lines

    def _read_log(self, after: int) -> tuple[int, Sequence[KeyValue], int]:
        """How many tickets are freed, the records of those above ``after``, and the revision."""
        ticket, revision = self._seen
        log = self._key("log", "")
        known = ticket == after
        get = Get(
            log,
            prefix_end(log),
            limit=MAX_RECORDS if known else 0,
            by_creation=True,
            created_after=revision if known else 0,
        )
        done = self._read(Get(self._key("freed")), get)
        freed = _number(_range_of(done.results[0]).kvs)
        kvs = _range_of(done.results[1]).kvs
        if not known:
            kvs = kvs[max(0, after - freed) :][:MAX_RECORDS]
        return freed, kvs, done.revision

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        log = self._key("log", "")
        watch = self._watch(log, prefix_end(log))
        if self._arrived is None or self._arrived[1] + 1 < watch.since:
            self._arrived = self._count()

        def come() -> bool:
            return self._arrived is not None and self._arrived[0] >= after + count

        for event in self._events(watch, timeout, until=come):
            if event is None:
                self._arrived = self._count()
                continue
            kv, deleted = event
            ticket, revision = self._arrived
            new = not deleted and kv.create_revision == kv.mod_revision > revision
            self._arrived = ticket + new, max(revision, kv.mod_revision)

    def _count(self) -> tuple[int, int]:
        done = self._read(*self._tail())
        return _ticket(*map(_range_of, done.results)), done.revision

    def bury(self, ticket: int) -> None:
        # A ticket and its record are one write here: there are no holes.
        pass

    # ------------------------------------------------------------ beats

    def beat(self, slot: int) -> Mapping[int, int]:
        self._call(lambda: self._keep_alive(slot))
        self._run.renew_in_time()
        return {}

    def _keep_alive(self, slot: int) -> None:
        client, beats, key = self._client, self._run.beats, self._slot(slot)
        lease = beats.lease_of(key)
        if lease in beats.written:
            if client.lease_keepalive(lease):
                return
            # Perhaps it was etcd that forgot it, and more.
            self._check_memory()
            lease = beats.lease_after(key, lease)
        client.lease_grant(self._lease_ttl, lease)
        if client.put(key, b"", lease) <= self._read_at:
            # Revisions only grow, unless they have begun anew.
            raise self._vanished()
        beats.written.add(lease)

    def _slot(self, slot: int) -> bytes:
        return self._key("beats", str(slot))

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        if not slots:
            return {}
        if len(slots) == 1:
            get = Get(self._slot(slots[0]), keys_only=True)
            return {slots[0]: HELD if self._call(lambda: self._client.range(get)).kvs else 0}
        if len(slots) <= _FEW:
            found = self._read(*(Get(self._slot(slot), keys_only=True) for slot in slots)).results
            held = {kv.key for result in found for kv in _range_of(result).kvs}
        else:
            start = self._key("beats", "")
            every = Get(start, prefix_end(start), keys_only=True)
            held = {kv.key for kv in self._call(lambda: self._client.range(every)).kvs}
        return {slot: HELD if self._slot(slot) in held else 0 for slot in slots}

    # ------------------------------------------------------------ pieces

    def _piece(self, nonce: str, name: str) -> bytes:
        return self._key("pieces", nonce, name)

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        puts = [self._run.put(self._piece(nonce, name), pieces[name]) for name in pieces]
        for some in parts(puts, lambda put: len(put.key) + len(put.value)):
            self._write(some)

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        gets = [Get(self._piece(nonce, name)) for name in names]
        if len(gets) == 1:
            kvs = self._call(lambda: self._client.range(gets[0])).kvs
            return [kvs[0].value if kvs else None]
        pieces: list[bytes | None] = []
        for start in range(0, len(gets), OPERATIONS):
            done = self._read(*gets[start : start + OPERATIONS])
            found = [_range_of(result).kvs for result in done.results]
            pieces += [kvs[0].value if kvs else None for kvs in found]
        return pieces

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        while upto > after and not self._forget_records(after, upto):
            pass
        deletes = [Delete(self._piece(nonce, name)) for name in names]
        for start in range(0, len(deletes), OPERATIONS):
            self._write(deletes[start : start + OPERATIONS])

    def _forget_records(self, after: int, upto: int) -> bool:
        """Free the records in ``(after, upto]``; ``False`` where another leader was at it as well.

        Those at the beginning of the log are deleted, and counted in its place. One behind
        others that are still needed only loses its text: its place has to stay.
        """
        log, freed_key = self._key("log", ""), self._key("freed")
        done = self._read(Get(freed_key), Get(log, prefix_end(log), by_creation=True))
        kvs = _range_of(done.results[0]).kvs
        freed = first = _number(kvs)
        changed = kvs[0].mod_revision if kvs else 0
        changes: list[Op] = []
        for ticket, kv in enumerate(_range_of(done.results[1]).kvs, start=freed + 1):
            to_go = after < ticket <= upto
            gone = kv.value == _FORGOTTEN
            if ticket == first + 1 and (to_go or gone):
                first = ticket
                changes.append(Delete(kv.key))
            elif to_go and not gone:
                changes.append(self._run.put(kv.key, _FORGOTTEN))
        for start in range(0, len(changes), OPERATIONS - 1):
            some = changes[start : start + OPERATIONS - 1]
            freed += sum(isinstance(change, Delete) for change in some)
            count = self._run.put(freed_key, b"%d" % freed)
            done = self._write([*some, count], [Compare(freed_key, "mod", changed)])
            if not done.succeeded:
                return False
            changed = done.revision
        return True

    def close(self) -> None:
        self._closed = True
        with self._watching:
            watches, self._watches = list(self._watches.values()), {}
        for watch in watches:
            watch.close()


def found_in(kvs: Sequence[KeyValue]) -> tuple[bytes, int] | None:
    """The value and the token of a key that was read."""
    if not kvs:
        return None
    if len(kvs[0].value) > MAX_STATE_BYTES:
        raise torch_compatible(RendezvousStateError)(
            f"The key {kvs[0].key.decode(errors='replace')!r} of etcd holds {len(kvs[0].value)} "
            f"bytes, more than the {MAX_STATE_BYTES} of any state. Use another run id or another "
            "prefix."
        )
    return kvs[0].value, kvs[0].mod_revision


def _range_of(result: object) -> Range:
    if not isinstance(result, Range):
        raise AssertionError(f"etcd has answered a read with {result!r}")
    return result


def _ticket(log: Range, freed: Range) -> int:
    return _number(freed.kvs) + log.count


def _number(kvs: Sequence[KeyValue]) -> int:
    """How many tickets are freed, as the store says."""
    if not kvs:
        return 0
    text = kvs[0].value
    number = int(text) if text.isdigit() and len(text) < 19 else -1
    if not 0 <= number <= MAX_TICKETS:
        raise torch_compatible(RendezvousStateError)(
            f"The key {kvs[0].key.decode(errors='replace')!r} of etcd holds no number. Use another "
            "run id or another prefix."
        )
    return number
