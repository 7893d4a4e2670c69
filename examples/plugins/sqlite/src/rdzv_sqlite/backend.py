"""The sqlite backend: the state of a run is one row."""

from __future__ import annotations

import os.path
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from rdzv import RendezvousBackend, RendezvousStateError
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv_sqlite.database import Database

if TYPE_CHECKING:
    import sqlite3

    from torch.distributed import Store

    from rdzv import RendezvousParameters, Token

__all__ = ["SqliteBackend", "create_backend"]


class SqliteBackend(RendezvousBackend):
    """Keeps a run in a database file.

    Args:
        database: The file.
        run_id: The run.
        ttl: After how many seconds without a write a later run may remove this one.
    """

    def __init__(self, database: Database, run_id: str, ttl: float) -> None:
        self._database = database
        self._run = run_id
        self._ttl = ttl

    @property
    def name(self) -> str:
        return "sqlite"

    def get_state(self) -> tuple[bytes, Token] | None:
        return self._database.transact(self._stored)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        def swap(db: sqlite3.Connection) -> tuple[bytes, Token, bool] | None:
            found = self._stored(db)
            if token != (found and found[1]):
                return found and (*found, False)
            # A token never returns, even where the file was lost and is there again.
            new = secrets.token_hex(8)
            row = (self._run, new, state, time.time() + self._ttl)
            db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", row)
            return state, new, True

        return self._database.transact(swap)

    def _stored(self, db: sqlite3.Connection) -> tuple[bytes, str] | None:
        # Not more than tells that it is too much.
        query = "SELECT substr(state, 1, ?), token FROM states WHERE run = ?"
        row = db.execute(query, (MAX_STATE_BYTES + 1, self._run)).fetchone()
        if row is None:
            return None
        state, token = row
        if not isinstance(state, bytes) or not isinstance(token, str):
            raise RendezvousStateError(
                f"{self._database.path!r} holds no state where the run's is: another program has "
                "written there. Use another run id or another file."
            )
        return state, token


def create_backend(params: RendezvousParameters) -> tuple[SqliteBackend, Store]:
    """Make the backend and the store of a run; see ``rdzv backends sqlite``.

    Raises:
        ValueError: The endpoint or the run id is missing.
        RendezvousConnectionError: The file cannot be used.
        RendezvousStateError: It is no database.
    """
    from rdzv_sqlite.store import SqliteStore

    path = params.endpoint.strip()
    if not path:
        raise ValueError(
            "The backend 'sqlite' needs the path of a database file as its endpoint: "
            "--rdzv-endpoint=/shared/rdzv.db"
        )
    if not params.run_id:
        raise ValueError("The run id must be a non-empty string.")
    # A shell leaves the tilde of --rdzv-endpoint=~/rdzv.db as it is.
    path = os.path.abspath(os.path.expanduser(path))
    database = Database(path, params.get_as_seconds("busy_timeout", 5.0))
    backend = SqliteBackend(database, params.run_id, params.get_as_seconds("ttl", 86400.0))
    timeout = timedelta(seconds=params.get_as_seconds("timeout", 600.0))
    return backend, SqliteStore(database, params.run_id, timeout)
