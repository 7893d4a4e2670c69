"""The postgres backend: the document of a run, and how to reach the server."""

from __future__ import annotations

import hashlib
import math
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from rdzv.dynamic_rendezvous import Session, SessionBackend, Token
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv.options import (
    Login,
    read_file_name,
    read_hosts,
    read_login,
    read_positive,
    written_host,
)
from rdzv_postgres.link import Link
from rdzv_postgres.tables import prepare

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv import RendezvousParameters

__all__ = ["Document", "PostgresBackend", "create_backend", "version"]

_PORT = 5432


class Document:
    """The one value of a run with compare-and-set. A token names one write and never returns."""

    def __init__(self, link: Link, run_id: str) -> None:
        self._link = link
        self._run = run_id
        self.channel = "rdzv_" + hashlib.sha256(run_id.encode()).hexdigest()[:32]
        """Where changes are told of: a name has 63 bytes at most."""

    def read(self) -> tuple[bytes, str] | None:
        """The value and its token."""
        # Not more than tells that it is too much.
        rows = self._link.query(
            "SELECT substring(body FOR %(most)s), token FROM rdzv_documents WHERE run = %(run)s",
            {"run": self._run, "most": MAX_STATE_BYTES + 1},
        )
        return (rows[0][0], rows[0][1]) if rows else None

    def swap(self, body: bytes, token: Token | None) -> tuple[bytes, str, bool] | None:
        """Replace it; what is stored now, if anything is, and whether it is this call's."""
        known = token if isinstance(token, str) else ""
        new = f"{version(known) + 1}-{secrets.token_hex(8)}"
        # A loser waits for the winner's row, and then sees its token.
        write = (
            """INSERT INTO rdzv_documents (run, token, body) VALUES (%(run)s, %(new)s, %(body)s)
            ON CONFLICT DO NOTHING RETURNING token"""
            if token is None
            else """UPDATE rdzv_documents SET token = %(new)s, body = %(body)s, at = now()
            WHERE run = %(run)s AND token = %(known)s RETURNING token"""
        )
        won = self._link.query(
            f"WITH w AS ({write}) SELECT pg_notify(%(channel)s, token) FROM w",
            {
                "run": self._run,
                "new": new,
                "body": body,
                "known": known,
                "channel": self.channel,
            },
        )
        if won:
            return body, new, True
        found = self.read()
        return None if found is None else (*found, False)


def version(token: str) -> int:
    """The number that a token begins with; 0 for one that is none of ours."""
    number = token.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < 19 else 0


class PostgresBackend(SessionBackend):
    """Keeps a run in a PostgreSQL database.

    Args:
        link: Reaches the server.
        run_id: The run.
    """

    def __init__(self, link: Link, run_id: str) -> None:
        self._link = link
        self._run = run_id
        self._state = Document(link, run_id)

    @property
    def name(self) -> str:
        return "postgres"

    def get_state(self) -> tuple[bytes, Token] | None:
        return self._state.read()

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        return self._state.swap(state, token)

    def open_session(self) -> Session:
        from rdzv_postgres.session import PostgresSession

        return PostgresSession(self._link.another(), self._run)


def create_backend(params: RendezvousParameters) -> tuple[PostgresBackend, Store]:
    """Make the backend and the store of a run; see ``rdzv backends postgres``.

    Raises:
        ValueError: A parameter or the endpoint is malformed.
        RendezvousConnectionError: The server cannot be reached, or refuses.
    """
    from rdzv_postgres.store import PostgresStore

    if not params.run_id:
        raise ValueError("The run id must be a non-empty string.")
    link = _link(params)
    ttl = read_positive(params, "ttl", 86400.0)
    link.call(lambda db: prepare(db, ttl))
    timeout = timedelta(seconds=params.get_as_seconds("timeout", 600.0))
    store = PostgresStore(link.another(lasting=True), params.run_id, timeout)
    return PostgresBackend(link, params.run_id), store


def _link(params: RendezvousParameters) -> Link:
    endpoint = params.endpoint.strip()
    options: dict[str, Any] = {}
    if "://" in endpoint:
        try:
            options = conninfo_to_dict(endpoint)
        except psycopg.ProgrammingError:
            # libpq's own words may show a part of a password.
            raise ValueError(
                "The endpoint of the backend 'postgres' is no URL that libpq can read: write "
                "postgresql://host:port/database, and a special character of a login as %XX."
            ) from None
        where = f"{options.get('host', 'localhost')}:{options.get('port', _PORT)}"
    else:
        hosts = read_hosts(endpoint, _PORT)
        options["host"] = ",".join(host for host, _ in hosts)
        options["port"] = ",".join(str(port) for _, port in hosts)
        where = written_host(hosts)
    login = read_login(
        params,
        "RDZV_POSTGRES_",
        in_url=Login(options.pop("user", None), options.pop("password", None)),
    )
    given = {
        "user": login.username,
        "password": login.password,
        "dbname": params.get("dbname"),
        "sslmode": params.get("sslmode"),
        "sslrootcert": read_file_name(params, "sslrootcert"),
        # Of several servers the one that can be written to.
        "target_session_attrs": "read-write",
        "connect_timeout": max(2, math.ceil(read_positive(params, "connect_timeout", 5.0))),
    }
    # Where packets vanish, a call is not to wait for the system's quarter of an hour.
    options.setdefault("tcp_user_timeout", 10_000)
    options |= {name: value for name, value in given.items() if value is not None}
    return Link(options, where)
