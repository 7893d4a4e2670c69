"""What the engine is given to reach the simulated store: native sessions, or get and set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdzv.dynamic_rendezvous.backend import (
    HELD,
    RendezvousBackend,
    Session,
    SessionBackend,
    Swap,
    Token,
    WatchingBackend,
)
from rdzv.errors import RendezvousStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .hub import Process
    from .network import Connection
    from .store import Server

__all__ = ["NativeBackend", "Offer", "PlainBackend", "WatchedBackend"]

_GRAVE = b"-"
_POLLS = (0.005, 0.25)
"""Seconds between two looks where nothing is pushed: from the first to the second."""


@dataclass(frozen=True)
class Offer:
    """What a backend has beyond get and set, and how.

    Attributes:
        roster: It has sessions.
        watch: Changes are pushed.
        carries: A push brings the document along.
        atomic: A ticket and its record are one request, so that there are no holes.
        along: How many slots' counters come along with a beat.
        lease: How long a beat keeps a lease alive (seconds); 0 where beats are counted.
    """

    roster: bool = True
    watch: bool = True
    carries: bool = True
    atomic: bool = False
    along: int = 8
    lease: float = 0.0


class NativeSession(Session):
    """A session with everything in keys of its own, as a good plugin has it."""

    def __init__(self, connection: Connection, server: Server, offer: Offer) -> None:
        self._connection = connection
        self._server = server
        self._offer = offer
        self._process: Process = connection.process
        self._epoch = ""
        self._losses = 0
        """Of which it has told."""

    # ------------------------------------------------------------ the document

    def _ask(self, name: str, execute: Callable[[], Any], sent: int = 0) -> Any:
        return self._connection.ask(name, execute, sent)

    def _received(self, data: bytes | None) -> None:
        if data is not None:
            self._process.counts["received"] += len(data)

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:
        server = self._server

        def look() -> Any:
            found = server.get("document", server.view(self._connection))
            if found is None or (known is not None and found[1] < known):
                # What is older than known will not do.
                self._connection.floor = server.writes
                found = server.get("document")
            return found

        found: tuple[bytes, Token] | None = self._ask("read", look)
        self._received(found and found[0])
        return found

    def swap(self, document: bytes, token: Token | None) -> Swap:
        server, connection = self._server, self._connection
        expected = 0 if token is None else token

        def replace() -> Any:
            found = server.get("document")
            version = 0 if found is None else found[1]
            told = found is None or self._losses == server.losses
            self._losses = server.losses
            if version == expected and told:
                server.writer = connection.process
                server.put("document", (document, version + 1))
                found = server.get("document")
            connection.floor = server.writes
            # Its own bytes are a writer's own, for every write has a name: so one that
            # was sent twice is recognised.
            return found is not None and found[0] == document, found

        won, found = self._ask("swap", replace, len(document))
        if found is None:
            raise RendezvousStateError("The store no longer knows this run.")
        self._received(None if won else found[0])
        return Swap(won, found[0], found[1], self._losses)

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        server = self._server

        def version() -> Token:
            found = server.get("document")
            return 0 if found is None else found[1]

        def has_changed() -> bool:
            if version() == token:
                return False
            self._connection.floor = server.writes  # Who was told of a change also reads it.
            return True

        if not self._offer.watch:
            self._poll(
                lambda: self._ask("poll", has_changed),
                timeout,
            )
            return None
        carried = (lambda: server.get("document")) if self._offer.carries else (lambda: None)
        found: tuple[bytes, Token] | None = self._connection.watch(
            "wait", "document", lambda: version() != token, carried, timeout
        )
        self._received(found and found[0])
        return found

    def _poll(self, happened: Callable[[], bool], timeout: float) -> None:
        pause, longest = _POLLS
        until = self._process.monotonic() + timeout
        while not happened():
            left = until - self._process.monotonic()
            if left <= 0:
                return
            self._process.sleep(min(pause, left))
            pause = min(1.5 * pause, longest)

    def attach(self, epoch: str) -> None:
        self._epoch = epoch

    # ------------------------------------------------------------ the roster

    def enter(self, record: bytes) -> int:
        while True:
            if self._offer.atomic:
                ticket = self._ask("enter", self._entering(record), len(record))
            else:
                ticket = self._ask("ticket", self._next_ticket)
            if self._offer.atomic or self._ask(
                "record", self._writing(ticket, record), len(record)
            ):
                return int(ticket)

    def _next_ticket(self) -> int:
        server, key = self._server, ("tail", self._epoch)
        server.put(key, (server.get(key) or 0) + 1)
        return int(server.get(key))

    def _writing(self, ticket: int, record: bytes) -> Callable[[], bool]:
        server, key = self._server, ("record", self._epoch, ticket)

        def write() -> bool:
            found = server.get(key)
            if found is None:
                server.put(key, record)
                server.wake(("tail", self._epoch))
            return bool(server.get(key) == record)

        return write

    def _entering(self, record: bytes) -> Callable[[], int]:
        given: list[int] = []  # A script knows a record that was sent twice by its id.

        def enter() -> int:
            if not given:
                given.append(self._next_ticket())
                self._writing(given[0], record)()
            return given[0]

        return enter

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        server, epoch = self._server, self._epoch

        def look() -> list[tuple[int, bytes | None]]:
            view = server.view(self._connection)
            tail = server.get(("tail", epoch), view) or 0
            return [(t, server.get(("record", epoch, t), view)) for t in range(after + 1, tail + 1)]

        lines: list[tuple[int, bytes | None]] = self._ask("records", look)
        for _, data in lines:
            self._received(data)
        return lines

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        server, key = self._server, ("record", self._epoch, after + count)

        def come() -> bool:
            return server.get(key) is not None

        if self._offer.watch:
            self._connection.watch(
                "wait_records", ("tail", self._epoch), come, lambda: None, timeout
            )
        else:
            self._poll(lambda: self._ask("poll", come), timeout)

    def bury(self, ticket: int) -> None:
        self._ask("bury", self._writing(ticket, _GRAVE))

    def beat(self, slot: int) -> Mapping[int, int]:
        server, epoch = self._server, self._epoch
        along = self._offer.along

        def renew() -> Mapping[int, int]:
            server.put(("lease", epoch, slot), server.now + self._offer.lease)
            return {}

        def beat() -> Mapping[int, int]:
            key = ("beat", epoch, slot)
            server.put(key, (server.get(key) or 0) + 1)
            first = slot // along * along if along else 0
            return {s: server.get(("beat", epoch, s)) or 0 for s in range(first, first + along)}

        along_with_it: Mapping[int, int] = self._ask("beat", renew if self._offer.lease else beat)
        return along_with_it

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        server, epoch = self._server, self._epoch

        def look() -> Mapping[int, int]:
            view = server.view(self._connection)
            if self._offer.lease:
                return {s: held(server.get(("lease", epoch, s), view)) for s in slots}
            return {s: server.get(("beat", epoch, s), view) or 0 for s in slots}

        def held(until: float | None) -> int:
            if until is None:
                return 0
            # A store that comes back gives all leases that it has their time anew, as etcd does.
            # One that was only frozen does not.
            for gone, back in server.outages:
                if gone < until:
                    until = max(until, back + self._offer.lease)
            return HELD if until > server.now else 0

        counts: Mapping[int, int] = self._ask("beats", look)
        self._process.counts["received"] += 8 * len(counts)
        return counts

    # ------------------------------------------------------------ assignments

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        server, epoch = self._server, self._epoch

        def store() -> None:
            for name, piece in pieces.items():
                server.put(("piece", epoch, nonce, name), piece)

        self._ask("publish", store, sum(map(len, pieces.values())))

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        server, epoch = self._server, self._epoch

        def look() -> list[bytes | None]:
            view = server.view(self._connection)
            return [server.get(("piece", epoch, nonce, name), view) for name in names]

        pieces: list[bytes | None] = self._ask("fetch", look)
        for piece in pieces:
            self._received(piece)
        return pieces

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        server, epoch = self._server, self._epoch

        def free() -> None:
            for ticket in range(after + 1, upto + 1):
                server.put(("record", epoch, ticket), _GRAVE)
            for name in names:
                server.put(("piece", epoch, nonce, name), None)

        self._ask("forget", free)

    def close(self) -> None:
        self._connection.close()


class NativeBackend(SessionBackend):
    """Sessions on the simulated store."""

    def __init__(self, connect: Callable[[], Connection], server: Server, offer: Offer) -> None:
        self._connect = connect
        self._server = server
        self._offer = offer

    @property
    def name(self) -> str:
        return "simulated"

    def open_session(self) -> Session:
        connection = self._connect()
        connection.open()
        return NativeSession(connection, self._server, self._offer)

    def get_state(self) -> tuple[bytes, Token] | None:
        raise NotImplementedError

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        raise NotImplementedError


class PlainBackend(RendezvousBackend):
    """Get and set on the simulated store, over a connection that is made anew when it breaks."""

    def __init__(self, connect: Callable[[], Connection], server: Server) -> None:
        self._connect = connect
        self._server = server
        self._connection: Connection | None = None

    @property
    def name(self) -> str:
        return "simulated"

    def _connected(self) -> Connection:
        if self._connection is None or not self._connection.alive:
            self._connection = self._connect()
            self._connection.open()
        return self._connection

    def get_state(self) -> tuple[bytes, Token] | None:
        server, connection = self._server, self._connected()

        def look() -> Any:
            return server.get("state", server.view(connection))

        found: tuple[bytes, Token] | None = connection.ask("get_state", look)
        if found is not None:
            connection.process.counts["received"] += len(found[0])
        return found

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        server, connection = self._server, self._connected()

        def replace() -> Any:
            found = server.get("state")
            won = token == (None if found is None else found[1])
            if won:
                server.writer = connection.process
                # Where a state was lost, its tokens are not given out again.
                server.put("state", (state, server.next_token()))
                found = server.get("state")
            connection.floor = server.writes
            return None if found is None else (*found, won)

        answer: tuple[bytes, Token, bool] | None = connection.ask("set_state", replace, len(state))
        if answer is not None and not answer[2]:
            connection.process.counts["received"] += len(answer[0])
        return answer


class WatchedBackend(WatchingBackend, PlainBackend):
    """Get and set, and pushes."""

    def wait_state(self, token: Token, timeout: float) -> None:
        server, connection = self._server, self._connect()
        connection.open()
        try:
            connection.watch(
                "wait_state",
                "state",
                lambda: (server.get("state") or (b"", None))[1] != token,
                lambda: None,
                timeout,
            )
        finally:
            connection.close()
