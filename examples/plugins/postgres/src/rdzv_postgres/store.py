"""PostgresStore: what the agents of a run exchange, in the same database."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch.distributed import DistNetworkError

from rdzv import RendezvousError
from rdzv.simple_store import SimpleStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from rdzv.simple_store import Change, Values
    from rdzv_postgres.link import Connection, Link

__all__ = ["PostgresStore"]

T = TypeVar("T")


class PostgresStore(SimpleStore):
    """A ``torch.distributed.Store`` in the rows of one run."""

    def __init__(self, link: Link, run_id: str, timeout: timedelta) -> None:
        super().__init__(timeout)
        self._link = link
        self._run = run_id

    def clone(self) -> PostgresStore:
        return PostgresStore(self._link, self._run, self.timeout)

    def look(self, keys: Sequence[bytes]) -> Values:
        return self._call(lambda db: self._values(db, keys))

    def update(self, keys: Sequence[bytes], change: Change) -> None:
        def write(db: Connection) -> None:
            with db.transaction():
                # Rows that are not there yet cannot be locked.
                db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (self._run,))
                values = dict(zip(keys, change(self._values(db, keys)), strict=True))
                gone = [key for key, value in values.items() if value is None]
                kept = {key: value for key, value in values.items() if value is not None}
                db.execute(
                    "DELETE FROM rdzv_items WHERE run = %s AND key = ANY(%s)", (self._run, gone)
                )
                db.execute(
                    """INSERT INTO rdzv_items (run, key, value)
                    SELECT %s, key, value FROM unnest(%s::bytea[], %s::bytea[]) AS i (key, value)
                    ON CONFLICT (run, key) DO UPDATE SET value = EXCLUDED.value, at = now()""",
                    (self._run, list(kept), list(kept.values())),
                )

        self._call(write)

    def keys(self) -> list[bytes]:
        query = "SELECT key FROM rdzv_items WHERE run = %s"
        return self._call(lambda db: [row[0] for row in db.execute(query, (self._run,))])

    def _values(self, db: Connection, keys: Sequence[bytes]) -> Values:
        query = "SELECT key, value FROM rdzv_items WHERE run = %s AND key = ANY(%s)"
        rows = db.execute(query, (self._run, list(keys)))
        found: dict[bytes, bytes] = dict(rows.fetchall())
        return [found.get(key) for key in keys]

    def _call(self, work: Callable[[Connection], T]) -> T:
        try:
            return self._link.call(work)
        except RendezvousError as exc:
            raise DistNetworkError(str(exc)) from exc
