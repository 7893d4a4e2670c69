"""SqliteStore: what the agents of a run exchange, in the same database file."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch.distributed import DistNetworkError

from rdzv import RendezvousError
from rdzv.simple_store import SimpleStore

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from rdzv.simple_store import Change, Values
    from rdzv_sqlite.database import Database

__all__ = ["SqliteStore"]

T = TypeVar("T")


class SqliteStore(SimpleStore):
    """A ``torch.distributed.Store`` in the rows of one run."""

    def __init__(self, database: Database, run_id: str, timeout: timedelta) -> None:
        super().__init__(timeout)
        self._database = database
        self._run = run_id

    def clone(self) -> SqliteStore:
        return SqliteStore(self._database, self._run, self.timeout)

    def look(self, keys: Sequence[bytes]) -> Values:
        return self._transact(lambda db: self._values(db, keys))

    def update(self, keys: Sequence[bytes], change: Change) -> None:
        def write(db: sqlite3.Connection) -> None:
            for key, value in zip(keys, change(self._values(db, keys)), strict=True):
                if value is None:
                    db.execute("DELETE FROM items WHERE run = ? AND key = ?", (self._run, key))
                else:
                    row = (self._run, key, value)
                    db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", row)

        self._transact(write)

    def keys(self) -> list[bytes]:
        query = "SELECT key FROM items WHERE run = ?"
        return self._transact(lambda db: [row[0] for row in db.execute(query, (self._run,))])

    def _values(self, db: sqlite3.Connection, keys: Sequence[bytes]) -> Values:
        query = "SELECT value FROM items WHERE run = ? AND key = ?"
        rows = (db.execute(query, (self._run, key)).fetchone() for key in keys)
        return [None if row is None else row[0] for row in rows]

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._database.transact(work)
        except RendezvousError as exc:
            raise DistNetworkError(str(exc)) from exc
