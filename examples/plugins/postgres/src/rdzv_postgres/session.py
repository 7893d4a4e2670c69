"""A session on PostgreSQL: rows under the run and its epoch, and a connection that listens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rdzv import RendezvousStateError
from rdzv.dynamic_rendezvous import Session, Swap, Token
from rdzv.dynamic_rendezvous.backend import MAX_RECORDS
from rdzv_postgres.backend import Document, version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rdzv_postgres.link import Connection, Link

__all__ = ["PostgresSession"]

_ALONG = 8
"""Slots on each side whose counters come along with a beat."""


class PostgresSession(Session):
    """One node's way to a run: statements over one connection, what is pushed over another."""

    def __init__(self, link: Link, run_id: str) -> None:
        self._link = link
        self._ears = link.another()
        self._listening = False
        self._document = Document(link, run_id)
        self._place: dict[str, Any] = {"run": run_id, "epoch": ""}
        link.call(lambda _: None)

    def _query(self, text: str, **values: Any) -> list[tuple[Any, ...]]:
        return self._link.query(text, {**self._place, **values})

    # ------------------------------------------------------------ the document

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:  # noqa: ARG002 - one server's
        return self._document.read()

    def swap(self, document: bytes, token: Token | None) -> Swap:
        found = self._document.swap(document, token)
        if found is None:
            raise RendezvousStateError(
                f"The document of the run has vanished from the database at {self._link.where}. "
                "Start the job again on all nodes."
            )
        stored, newest, won = found
        return Swap(won, stored, newest)

    def listen(self, known: Token | None) -> None:  # noqa: ARG002 - wait() looks before it waits
        self._listen()

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        self._wait_for(
            lambda: (self._document.read() or (b"", ""))[1] != token,
            lambda said: version(said) > version(token),
            timeout,
        )
        return None

    # ------------------------------------------------------------ what is pushed

    def _listen(self) -> None:
        if not self._listening:
            self._ears.call(lambda db: db.execute(f'LISTEN "{self._document.channel}"'.encode()))
            self._listening = True

    def _wait_for(
        self, happened: Callable[[], bool], is_news: Callable[[str], bool], timeout: float
    ) -> None:
        """Wait until somebody says what is news, if it has not happened before."""
        until = time.monotonic() + timeout
        # What was said before this session listened is not said again.
        self._listen()
        if happened():
            return

        def hear(db: Connection) -> bool:
            left = max(0.0, until - time.monotonic())
            return any(is_news(note.payload) for note in db.notifies(timeout=left, stop_after=1))

        while not self._ears.call(hear) and time.monotonic() < until:
            pass

    # ------------------------------------------------------------ the roster

    def attach(self, epoch: str) -> None:
        self._place["epoch"] = epoch

    def enter(self, record: bytes) -> int:
        # The counter's row is held until the record is there: no ticket is seen without it.
        [[ticket, _]] = self._query(
            """WITH t AS (
                INSERT INTO rdzv_tickets (run, epoch, tail) VALUES (%(run)s, %(epoch)s, 1)
                ON CONFLICT (run, epoch) DO UPDATE SET tail = rdzv_tickets.tail + 1 RETURNING tail
            ), r AS (
                INSERT INTO rdzv_log (run, epoch, ticket, record)
                SELECT %(run)s, %(epoch)s, tail, %(record)s FROM t RETURNING ticket
            ) SELECT ticket, pg_notify(%(channel)s, 'ticket ' || ticket) FROM r""",
            record=record,
            channel=self._document.channel,
        )
        return int(ticket)

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        return [
            (ticket, record)
            for ticket, record in self._query(
                """SELECT ticket, record FROM rdzv_log WHERE run = %(run)s AND epoch = %(epoch)s
                AND ticket > %(after)s ORDER BY ticket LIMIT %(most)s""",
                after=after,
                most=MAX_RECORDS,
            )
        ]

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        def came() -> bool:
            return bool(
                self._query(
                    """SELECT 1 FROM rdzv_log WHERE run = %(run)s AND epoch = %(epoch)s
                    AND ticket >= %(ticket)s LIMIT 1""",
                    ticket=after + count,
                )
            )

        wanted = f"ticket {after + count}"
        self._wait_for(came, lambda said: said == wanted, timeout)

    def bury(self, ticket: int) -> None:
        pass  # A ticket and its record are one write: there are no holes.

    def beat(self, slot: int) -> Mapping[int, int]:
        # The counters are those of the moment before; its own is not among them.
        found = self._query(
            """WITH b AS (
                INSERT INTO rdzv_beats AS b (run, epoch, slot, count)
                VALUES (%(run)s, %(epoch)s, %(slot)s, 1)
                ON CONFLICT (run, epoch, slot) DO UPDATE SET count = b.count + 1, at = now()
            ) SELECT slot, count FROM rdzv_beats WHERE run = %(run)s AND epoch = %(epoch)s
            AND slot BETWEEN %(slot)s - %(along)s AND %(slot)s + %(along)s AND slot <> %(slot)s""",
            slot=slot,
            along=_ALONG,
        )
        return dict(found)

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        found = dict(
            self._query(
                """SELECT slot, count FROM rdzv_beats WHERE run = %(run)s AND epoch = %(epoch)s
                AND slot = ANY(%(slots)s)""",
                slots=list(slots),
            )
        )
        return {slot: found.get(slot, 0) for slot in slots}

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        self._query(
            """INSERT INTO rdzv_pieces (run, epoch, name, piece)
            SELECT %(run)s, %(epoch)s, name, piece
            FROM unnest(%(names)s::text[], %(pieces)s::bytea[]) AS p (name, piece)
            ON CONFLICT (run, epoch, name) DO UPDATE SET piece = EXCLUDED.piece RETURNING 1""",
            names=[f"{nonce}/{name}" for name in pieces],
            pieces=list(pieces.values()),
        )

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        full = [f"{nonce}/{name}" for name in names]
        found = dict(
            self._query(
                """SELECT name, piece FROM rdzv_pieces WHERE run = %(run)s AND epoch = %(epoch)s
                AND name = ANY(%(names)s)""",
                names=full,
            )
        )
        return [found.get(name) for name in full]

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        self._query(
            """WITH freed AS (
                DELETE FROM rdzv_pieces WHERE run = %(run)s AND epoch = %(epoch)s
                AND name = ANY(%(names)s)
            ) UPDATE rdzv_log SET record = '-' WHERE run = %(run)s AND epoch = %(epoch)s
            AND ticket > %(after)s AND ticket <= %(upto)s RETURNING 1""",
            after=after,
            upto=upto,
            names=[f"{nonce}/{name}" for name in names],
        )

    def close(self) -> None:
        self._ears.close()
        self._link.close()
