"""The database file: transactions, tables, and SQLite's errors as the core's."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, TypeVar

from rdzv import RendezvousConnectionError, RendezvousStateError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Database"]

T = TypeVar("T")

_TABLES = (
    "states (run TEXT PRIMARY KEY, token TEXT, state BLOB, expires REAL)",
    "items (run TEXT, key BLOB, value BLOB, PRIMARY KEY (run, key))",
)


class Database:
    """A database file, opened for each transaction.

    Nothing is kept open between two of them: threads and forked children may share it, and a
    file that was moved or removed is noticed.

    Args:
        path: The file; it is created with its tables, its folder is not.
        busy_timeout: How long to wait while another process writes (seconds).

    Raises:
        RendezvousConnectionError: The file cannot be used.
        RendezvousStateError: It is no database.
    """

    def __init__(self, path: str, busy_timeout: float) -> None:
        self.path = path
        self._busy_timeout = busy_timeout

        def prepare(db: sqlite3.Connection) -> None:
            for table in _TABLES:
                db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            # What nobody has renewed for its time to live is of a run whose nodes are all gone.
            db.execute("DELETE FROM states WHERE expires < ?", (time.time(),))
            db.execute("DELETE FROM items WHERE run NOT IN (SELECT run FROM states)")

        self.transact(prepare)

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work`` while nobody else writes; all of it takes effect, or nothing."""
        try:
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=self._busy_timeout, isolation_level=None)
            ) as db:
                # A write-ahead log is shared memory of one machine: never on a shared disk.
                db.execute("PRAGMA journal_mode = DELETE")
                # Closing rolls back what was not committed.
                db.execute("BEGIN IMMEDIATE")
                result = work(db)
                db.execute("COMMIT")
                return result
        except sqlite3.Error as exc:
            lost = "no such table" in str(exc)
            if isinstance(exc, sqlite3.OperationalError) and not lost:
                raise RendezvousConnectionError(
                    f"The database {self.path!r} cannot be used: {exc}. Its folder must exist and "
                    "be writable on every node."
                ) from exc
            raise RendezvousStateError(
                f"{self.path!r} is not the database of a run: {exc}. Remove the file, or name "
                "another one in the endpoint."
            ) from exc
