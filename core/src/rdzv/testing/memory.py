"""Backends in the memory of this process, one for each combination of capabilities.

They are what a backend looks like that keeps every promise, and what wrong ones are
made from to test the conformance kit. Any number of threads may use them.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from rdzv.dynamic_rendezvous.backend import (
    RendezvousBackend,
    Session,
    SessionBackend,
    Swap,
    Token,
    WatchingBackend,
)
from rdzv.errors import RendezvousConnectionError, RendezvousStateError
from rdzv.specs import BackendSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.distributed import Store

    from rdzv.api import RendezvousParameters
    from rdzv.testing.contract import Deployment

__all__ = [
    "MemoryBackend",
    "MemoryServer",
    "MemorySession",
    "RosterMemoryBackend",
    "WatchingMemoryBackend",
    "deployment",
    "spec",
]

T = TypeVar("T")

_GONE = b"-"


@dataclass
class Register:
    """Bytes behind a compare-and-set."""

    value: bytes | None = None
    version: int = 0

    def read(self) -> tuple[bytes, Token] | None:
        """What is stored, and its token."""
        return None if self.value is None else (self.value, f"v{self.version}")

    def swap(self, value: bytes, token: Token | None) -> tuple[bytes, Token, bool] | None:
        """Replace what ``token`` names."""
        found = self.read()
        won = token is None if found is None else bool(token == found[1])
        if won:
            self.value, self.version = value, self.version + 1
            found = self.read()
        return None if found is None else (*found, won)


@dataclass
class Epoch:
    """What is below one epoch of a run."""

    tickets: int = 0
    records: dict[int, bytes] = field(default_factory=dict)
    beats: dict[int, int] = field(default_factory=dict)
    pieces: dict[tuple[str, str], bytes] = field(default_factory=dict)


@dataclass
class Stored:
    """All that is kept of one run."""

    state: Register = field(default_factory=Register)
    document: Register = field(default_factory=Register)
    epochs: dict[str, Epoch] = field(default_factory=dict)


class MemoryServer:
    """Keeps any number of runs, each for as long as a client of it exists."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        """Held to look at or change what follows; notified of every change."""
        self.runs: dict[str, Stored] = {}
        self.lives = 0
        """Counted up when all connections break."""
        self._clients: dict[str, int] = {}
        self._reachable = True
        self._pause = 0.0
        self._flowing = threading.Event()
        self._flowing.set()
        self._store: Store | None = None

    # ------------------------------------------------------------ clients

    def enter(self, client: object, run_id: str) -> None:
        """Keep the run for as long as ``client`` exists."""
        with self.changed:
            self._clients[run_id] = self._clients.get(run_id, 0) + 1
        weakref.finalize(client, self._left, run_id).atexit = False

    def _left(self, run_id: str) -> None:
        with self.changed:
            self._clients[run_id] -= 1
            if not self._clients[run_id]:
                del self._clients[run_id]
                self.runs.pop(run_id, None)

    def stored(self, run_id: str) -> Stored:
        """What is kept of a run; call it with ``changed`` held."""
        return self.runs.setdefault(run_id, Stored())

    def hold_up(self) -> None:
        """Take as long as a request takes.

        Raises:
            RendezvousConnectionError: The server cannot be reached.
        """
        self._flowing.wait()
        if self._pause:
            time.sleep(self._pause)
        if not self._reachable:
            raise RendezvousConnectionError("The memory server cannot be reached.")

    @property
    def connections(self) -> int:
        """How many clients and sessions there are."""
        with self.changed:
            return sum(self._clients.values())

    def store(self) -> Store:
        """The store that the agents share."""
        from torch.distributed import HashStore

        with self.changed:
            self._store = self._store or HashStore()
            return self._store

    # ------------------------------------------------------------ out of band

    def read_raw(self, run_id: str) -> bytes | None:
        """What is stored of the run's document, or else of its state."""
        with self.changed:
            stored = self.runs.get(run_id, Stored())
            return stored.state.value if stored.document.value is None else stored.document.value

    def write_raw(self, run_id: str, data: bytes) -> None:
        """Overwrite the run's state and document."""
        with self.changed:
            for register in (self.stored(run_id).state, self.stored(run_id).document):
                register.value, register.version = data, register.version + 1
            self.changed.notify_all()

    def take_ticket(self, run_id: str, epoch: str) -> int:
        """Take a ticket and write no record."""
        with self.changed:
            below = self.stored(run_id).epochs.setdefault(epoch, Epoch())
            below.tickets += 1
            return below.tickets

    def leftovers(self, run_id: str) -> list[str]:
        """The run, where it is still kept."""
        with self.changed:
            return [run_id] if run_id in self.runs else []

    # ------------------------------------------------------------ trouble

    def stop(self) -> None:
        """Be out of reach, with all data kept."""
        self._reachable = False
        self.reset()

    def start(self) -> None:
        """Be reachable again."""
        self._reachable = True

    cut, mend = stop, start

    def reset(self) -> None:
        """Break all connections."""
        with self.changed:
            self.lives += 1
            self.changed.notify_all()

    def delay(self, seconds: float) -> None:
        """Take so long for each request."""
        self._pause = seconds

    def freeze(self) -> None:
        """Answer nobody."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Answer again."""
        self._flowing.set()


class _Connection:
    """A client's way to the server; breaks when the server says so, and is made anew."""

    def __init__(self, server: MemoryServer, run_id: str) -> None:
        self.server = server
        self.run_id = run_id
        self.closed = False
        server.hold_up()
        server.enter(self, run_id)
        self._life = server.lives

    def request(self, operation: Callable[[Stored], T], *, writes: bool = False) -> T:
        server = self.server
        server.hold_up()
        with server.changed:
            answer = operation(server.stored(self.run_id))
            if writes:
                server.changed.notify_all()
            # The worst that a break can do: the request arrived, its answer did not.
            self._check()
            return answer

    def wait(self, happened: Callable[[Stored], bool], timeout: float) -> None:
        server = self.server
        server.hold_up()
        with server.changed:

            def over() -> bool:
                broken = self._life != server.lives
                return broken or self.closed or happened(server.stored(self.run_id))

            server.changed.wait_for(over, timeout)
            self._check()

    def _check(self) -> None:
        if self._life != self.server.lives:
            self._life = self.server.lives
            raise RendezvousConnectionError("The connection to the memory server broke.")


class MemoryBackend(RendezvousBackend):
    """Get and set alone.

    Args:
        server: What all clients share.
        run_id: The run.

    Raises:
        RendezvousConnectionError: The server cannot be reached.
    """

    capabilities: frozenset[str] = frozenset()

    def __init__(self, server: MemoryServer, run_id: str) -> None:
        self.server = server
        self.run_id = run_id
        self.connection = _Connection(server, run_id)

    @property
    def name(self) -> str:
        return "memory"

    def get_state(self) -> tuple[bytes, Token] | None:
        return self.connection.request(lambda stored: stored.state.read())

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        return self.connection.request(lambda stored: stored.state.swap(state, token), writes=True)


class WatchingMemoryBackend(MemoryBackend, WatchingBackend):
    """Get, set, and a wait for the next change."""

    capabilities = frozenset({"watch"})

    def wait_state(self, token: Token, timeout: float) -> None:
        def changed(stored: Stored) -> bool:
            found = stored.state.read()
            return found is None or found[1] != token

        self.connection.wait(changed, timeout)


class RosterMemoryBackend(MemoryBackend, SessionBackend):
    """The roster and the beats kept apart from the document."""

    capabilities = frozenset({"roster", "watch"})

    def open_session(self) -> MemorySession:
        return MemorySession(self.server, self.run_id)


class MemorySession(Session):
    """A connection of its own to one run."""

    def __init__(self, server: MemoryServer, run_id: str) -> None:
        self.connection = _Connection(server, run_id)
        self.epoch = ""

    def request(self, operation: Callable[[Epoch], T], *, writes: bool = False) -> T:
        """Do something below the epoch."""
        return self.connection.request(lambda stored: operation(self.below(stored)), writes=writes)

    def below(self, stored: Stored) -> Epoch:
        """What is below the epoch."""
        return stored.epochs.setdefault(self.epoch, Epoch())

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:  # noqa: ARG002
        return self.connection.request(lambda stored: stored.document.read())

    def swap(self, document: bytes, token: Token | None) -> Swap:
        swapped = self.connection.request(
            lambda stored: stored.document.swap(document, token), writes=True
        )
        if swapped is None:
            raise RendezvousStateError("The document of the run has vanished from memory.")
        return Swap(swapped[2], swapped[0], swapped[1])

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        def changed(stored: Stored) -> bool:
            found = stored.document.read()
            return found is None or found[1] != token

        self.connection.wait(changed, timeout)
        return None

    def attach(self, epoch: str) -> None:
        self.epoch = epoch

    def enter(self, record: bytes) -> int:
        def change(epoch: Epoch) -> int:
            epoch.tickets += 1
            while epoch.tickets in epoch.records:  # Buried already.
                epoch.tickets += 1
            epoch.records[epoch.tickets] = record
            return epoch.tickets

        return self.request(change, writes=True)

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        return self.request(
            lambda epoch: [(t, epoch.records.get(t)) for t in range(after + 1, epoch.tickets + 1)]
        )

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        self.connection.wait(lambda stored: after + count in self.below(stored).records, timeout)

    def bury(self, ticket: int) -> None:
        self.request(lambda epoch: epoch.records.setdefault(ticket, _GONE), writes=True)

    def beat(self, slot: int) -> Mapping[int, int]:
        def change(epoch: Epoch) -> Mapping[int, int]:
            epoch.beats[slot] = epoch.beats.get(slot, 0) + 1
            return dict(epoch.beats)

        return self.request(change, writes=True)

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        return self.request(lambda epoch: {slot: epoch.beats.get(slot, 0) for slot in slots})

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        named = {(nonce, name): piece for name, piece in pieces.items()}
        self.request(lambda epoch: epoch.pieces.update(named), writes=True)

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        return self.request(lambda epoch: [epoch.pieces.get((nonce, name)) for name in names])

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        def change(epoch: Epoch) -> None:
            epoch.records.update(dict.fromkeys(range(after + 1, upto + 1), _GONE))
            for name in names:
                epoch.pieces.pop((nonce, name), None)

        self.request(change, writes=True)

    def close(self) -> None:
        connection = self.connection
        connection.closed = True
        with connection.server.changed:
            connection.server.changed.notify_all()


def spec(
    server: MemoryServer,
    kind: type[MemoryBackend],
    capabilities: frozenset[str] | None = None,
) -> BackendSpec:
    """Describe a backend whose clients share ``server``."""

    def create(params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
        return kind(server, params.run_id), server.store()

    return BackendSpec(
        name="memory",
        summary="the memory of one process, for tests",
        create=create,
        capabilities=kind.capabilities if capabilities is None else capabilities,
    )


def deployment(
    kind: type[MemoryBackend],
    *,
    server: MemoryServer | None = None,
    capabilities: frozenset[str] | None = None,
    limit: float = 30.0,
) -> Deployment:
    """A deployment of a backend in memory, with all out-of-band access.

    Args:
        kind: The class of its clients.
        server: What they share; a new one by default.
        capabilities: What its spec declares; what ``kind`` says by default.
        limit: The deployment's limit (seconds).
    """
    from rdzv.testing.contract import Deployment

    server = server or MemoryServer()
    return Deployment(
        spec(server, kind, capabilities),
        title=f"memory ({', '.join(sorted(kind.capabilities)) or 'get and set alone'})",
        read_raw=server.read_raw,
        write_raw=server.write_raw,
        take_ticket=server.take_ticket if "roster" in kind.capabilities else None,
        leftovers=server.leftovers,
        faults=server,
        limit=limit,
    )
