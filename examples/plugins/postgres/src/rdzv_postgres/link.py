"""Link: a connection for one caller at a time, and psycopg's errors as the core's."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from rdzv import RendezvousConnectionError, RendezvousError, RendezvousStateError
from rdzv.endpoint import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Link"]

T = TypeVar("T")

Connection = psycopg.Connection[tuple[Any, ...]]


class Link:
    """A connection that is opened when it is first used.

    Args:
        options: What libpq is told.
        where: Which server it is, for errors.
        lasting: Whether a broken connection is followed by another. A session's is not: the
            engine has to know of it, since something may have been lost.
    """

    def __init__(self, options: Mapping[str, Any], where: str, *, lasting: bool = True) -> None:
        self._options = options
        self.where = where
        self._lasting = lasting
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._used_up = False

    def another(self, *, lasting: bool = False) -> Link:
        """A connection of its own to the same server."""
        return Link(self._options, self.where, lasting=lasting)

    def query(self, text: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows that one statement gives; each statement is a transaction."""
        return self.call(lambda db: db.execute(text.encode(), values).fetchall())

    def call(self, work: Callable[[Connection], T]) -> T:
        """Do something on the connection.

        Raises:
            RendezvousConnectionError: The server cannot be reached, or refuses.
            RendezvousStateError: It holds what cannot be.
        """
        try:
            with self._lock:
                if self._used_up:
                    raise psycopg.OperationalError("the connection was closed")
                if self._connection is None:
                    self._connection = psycopg.connect(
                        autocommit=True, application_name="rdzv", **self._options
                    )
                try:
                    return work(self._connection)
                finally:
                    # Also where close() has taken it from under this thread.
                    if self._used_up or self._connection.broken:
                        self._connection.close()
                        self._connection, self._used_up = None, not self._lasting or self._used_up
        except psycopg.Error as exc:
            raise self._translated(exc) from exc

    def _translated(self, exc: psycopg.Error) -> RendezvousError:
        said = redact(" ".join(str(exc).split()) or type(exc).__name__)
        if isinstance(exc, psycopg.errors.UndefinedTable | psycopg.DataError):
            return RendezvousStateError(
                f"The PostgreSQL server at {self.where} does not hold what rdzv has written: {said}"
            )
        if isinstance(exc, psycopg.errors.InsufficientPrivilege):
            return RendezvousConnectionError(
                f"The PostgreSQL server at {self.where} does not permit this role what rdzv needs: "
                f"{said}. Grant it CREATE on the schema, or make the tables with another role and "
                "grant SELECT, INSERT, UPDATE and DELETE on them."
            )
        return RendezvousConnectionError(
            f"The PostgreSQL server at {self.where} cannot be used: {said}"
        )

    def close(self) -> None:
        """Close it, from any thread: a call that is under way ends with an error."""
        self._used_up = True
        if self._lock.acquire(blocking=False):
            try:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            finally:
                self._lock.release()
            return
        # Whoever waits for the socket would not notice that it was closed.
        with contextlib.suppress(psycopg.Error, OSError):
            if connection := self._connection:
                with socket.socket(fileno=os.dup(connection.fileno())) as handle:
                    handle.shutdown(socket.SHUT_RDWR)

    def __del__(self) -> None:
        self.close()
