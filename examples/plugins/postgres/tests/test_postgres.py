"""The conformance kit on postgres, against a private server, and what is special to it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rdzv import RendezvousConnectionError, RendezvousParameters, RendezvousStateError
from rdzv.testing.contract import BackendContract, Deployment
from rdzv_postgres.backend import create_backend
from rdzv_postgres.server import PostgresServer

SECRET = "n0t-to-be-printed"


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(password=SECRET)
    try:
        _ = server.binary
    except FileNotFoundError as exc:
        if os.environ.get("RDZV_TEST_REQUIRE_SERVERS", "0") not in ("", "0"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))
    with server:
        yield server


class OutOfBand:
    """The rows of a run, behind the backend's back."""

    def __init__(self, server: PostgresServer) -> None:
        self._url = f"{server.url}?password={SECRET}"

    def sql(self, statement: str, *values: object) -> list[Any]:
        with psycopg.connect(self._url, autocommit=True) as db:
            found = db.execute(statement.encode(), values)
            return [row[0] for row in found] if found.description else []

    def read_raw(self, run_id: str) -> bytes | None:
        found = self.sql("SELECT body FROM rdzv_documents WHERE run = %s", run_id)
        return found[0] if found else None

    def write_raw(self, run_id: str, data: bytes) -> None:
        self.sql(
            """INSERT INTO rdzv_documents (run, token, body) VALUES (%s, '1-f', %s)
            ON CONFLICT (run) DO UPDATE SET body = EXCLUDED.body,
            token = split_part(rdzv_documents.token, '-', 1)::int + 1 || '-f'""",
            run_id,
            data,
        )

    def leftovers(self, run_id: str) -> list[str]:
        tables = self.sql("SELECT relname FROM pg_class WHERE relname LIKE 'rdzv_%%' AND "
                          "relkind = 'r'")  # fmt: skip
        lasting = "SELECT run FROM {} WHERE run = %s AND at IS NULL"
        return [table for table in tables if self.sql(lasting.format(table), run_id)]


@pytest.fixture
def out_of_band(server: PostgresServer) -> OutOfBand:
    create(server)  # Makes the tables.
    return OutOfBand(server)


class TestPostgres(BackendContract):
    @pytest.fixture
    def deployment(self, server: PostgresServer, out_of_band: OutOfBand) -> Deployment:
        return Deployment(
            "postgres",
            server.endpoint,
            {"username": "rdzv", "password": SECRET, "dbname": "postgres"},
            title="postgres (PostgreSQL 15)",
            read_raw=out_of_band.read_raw,
            write_raw=out_of_band.write_raw,
            leftovers=out_of_band.leftovers,
            atomic_enter=True,
        )


def create(server: PostgresServer, run_id: str = "", endpoint: str = "", **settings: Any) -> Any:
    settings = {"username": "rdzv", "password": SECRET, "dbname": "postgres", **settings}
    given = {name: value for name, value in settings.items() if value is not None}
    run_id = run_id or uuid.uuid4().hex
    params = RendezvousParameters("postgres", endpoint or server.endpoint, run_id, 1, 1, **given)
    return create_backend(params)[0]


def test_a_wrong_password_is_refused_and_not_shown(server: PostgresServer) -> None:
    with pytest.raises(RendezvousConnectionError, match="password authentication") as caught:
        create(server, password="wr0ng-and-secret")
    assert "wr0ng" not in str(caught.value)


def test_a_url_may_hold_the_login_and_the_database(server: PostgresServer) -> None:
    url = f"postgresql://rdzv:{SECRET}@{server.endpoint}/postgres"
    backend = create(server, endpoint=url, username=None, password=None, dbname=None)
    assert backend.set_state(b"state")[2]


def test_a_url_that_cannot_be_read_does_not_show_its_password(server: PostgresServer) -> None:
    with pytest.raises(ValueError, match="no URL that libpq can read") as caught:
        create(server, endpoint=f"postgresql://rdzv:{SECRET}%zz@db", username=None)
    assert SECRET not in str(caught.value)


def test_the_tables_are_made_once_however_many_come_at_once(server: PostgresServer) -> None:
    OutOfBand(server).sql("CREATE DATABASE fresh")
    failed: list[BaseException] = []

    def come() -> None:
        try:
            create(server, dbname="fresh")
        except BaseException as exc:  # noqa: BLE001 - it is what is asserted
            failed.append(exc)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_role_that_may_not_make_tables_is_told_what_to_grant(
    server: PostgresServer, out_of_band: OutOfBand
) -> None:
    out_of_band.sql("CREATE DATABASE bare")
    out_of_band.sql(f"CREATE ROLE guest LOGIN PASSWORD '{SECRET}'")
    with pytest.raises(RendezvousConnectionError, match="Grant it CREATE"):
        create(server, username="guest", dbname="bare")
    # Where the tables are, it needs no more than to use them.
    out_of_band.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest")
    assert create(server, username="guest").set_state(b"state")[2]


def test_a_later_run_removes_what_is_long_over_and_nothing_else(
    server: PostgresServer, out_of_band: OutOfBand
) -> None:
    for run in ("over", "alive", "young"):
        create(server, run).set_state(b"state")
    session = create(server, "alive").open_session()
    session.beat(0)
    session.close()
    out_of_band.sql("UPDATE rdzv_documents SET at = now() - interval '2 days' WHERE run <> 'young'")
    create(server)
    kept = out_of_band.sql("SELECT run FROM rdzv_documents")
    assert {"alive", "young"} <= set(kept)
    assert "over" not in kept


def test_tables_that_are_gone_are_a_state_error(server: PostgresServer) -> None:
    OutOfBand(server).sql("CREATE DATABASE emptied")
    backend = create(server, dbname="emptied")
    with psycopg.connect(f"{server.url}?password={SECRET}&dbname=emptied", autocommit=True) as db:
        db.execute("DROP TABLE rdzv_documents")
    with pytest.raises(RendezvousStateError, match="rdzv_documents"):
        backend.get_state()


_HOLDER = """
import sys
from rdzv_postgres.server import PostgresServer
server = PostgresServer()
server.start()
print(server.url, server.data_dir, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("server")  # Where there is none, this is skipped too.
def test_a_server_is_gone_with_its_data_when_its_process_is_killed() -> None:
    command = [sys.executable, "-c", _HOLDER]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        url, folder = holder.stdout.readline().split()
        with psycopg.connect(url) as db:
            assert db.execute("SELECT 1").fetchall() == [(1,)]
            holder.kill()
            # The connection ends with its server, which nobody has stopped.
            with pytest.raises(psycopg.OperationalError):
                db.execute("SELECT pg_sleep(60)")
    until = time.monotonic() + 20
    while Path(folder).exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(folder).exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
