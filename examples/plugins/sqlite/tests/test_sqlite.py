"""The conformance kit on sqlite, and what is special to a database file."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from rdzv import RendezvousConnectionError, RendezvousParameters, RendezvousStateError
from rdzv.testing.contract import BackendContract, Deployment
from rdzv_sqlite.backend import create_backend


class File:
    """A database file behind the backend's back, and trouble with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._away = path.parent.with_name("away")
        self._holder: Any = None

    def sql(self, statement: str, *values: object) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            return [row[0] for row in db.execute(statement, values)]

    def read_raw(self, run_id: str) -> bytes | None:
        return next(iter(self.sql("SELECT state FROM states WHERE run = ?", run_id)), None)

    def write_raw(self, run_id: str, data: bytes) -> None:
        # The tables are the backend's to make.
        create_backend(RendezvousParameters("sqlite", str(self.path), run_id, 1, 1))
        row = (run_id, secrets.token_hex(8), data)
        self.sql("INSERT OR REPLACE INTO states VALUES (?, ?, ?, unixepoch() + 1000)", *row)

    def leftovers(self, run_id: str) -> list[str]:
        # Items go with the state of their run.
        return [
            *self.sql("SELECT run FROM states WHERE run = ? AND expires IS NULL", run_id),
            *self.sql(
                "SELECT run FROM items WHERE run = ? AND run NOT IN (SELECT run FROM states)",
                run_id,
            ),
        ]

    # The folder is gone, as a disk that is not mounted.

    def stop(self) -> None:
        self.path.parent.rename(self._away)

    def start(self) -> None:
        self._away.rename(self.path.parent)

    cut, mend = stop, start

    # Somebody keeps the database for himself.

    def freeze(self) -> None:
        self._holder = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._holder.execute("BEGIN EXCLUSIVE")

    def thaw(self) -> None:
        self._holder.close()

    @property
    def connections(self) -> int:
        open_files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return open_files.count(str(self.path))


@pytest.fixture
def file(tmp_path: Path) -> File:
    (tmp_path / "shared").mkdir()
    return File(tmp_path / "shared" / "rdzv.db")


class TestSqlite(BackendContract):
    @pytest.fixture
    def deployment(self, file: File) -> Deployment:
        return Deployment(
            "sqlite",
            str(file.path),
            {"busy_timeout": 20},
            read_raw=file.read_raw,
            write_raw=file.write_raw,
            leftovers=file.leftovers,
            atomic_enter=True,
            faults=file,
        )


def create(endpoint: object, run_id: str = "run", **settings: Any) -> Any:
    params = RendezvousParameters("sqlite", str(endpoint), run_id, 1, 1, **settings)
    return create_backend(params)[0]


def test_without_an_endpoint_it_says_what_one_looks_like() -> None:
    with pytest.raises(ValueError, match=r"--rdzv-endpoint=/shared/rdzv\.db"):
        create(" ")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RendezvousConnectionError, match=r"missing/rdzv\.db.*folder must exist"):
        create(tmp_path / "missing" / "rdzv.db")


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database" * 100)
    with pytest.raises(RendezvousStateError, match="not the database of a run"):
        create(path)
    assert path.read_text().startswith("no database")


def test_a_file_that_was_removed_is_no_empty_run(file: File) -> None:
    backend = create(file.path)
    backend.set_state(b"state")
    file.path.unlink()
    with pytest.raises(RendezvousStateError):
        backend.get_state()


def test_a_value_of_another_type_is_a_state_error(file: File) -> None:
    backend = create(file.path)
    backend.set_state(b"state")
    file.sql("UPDATE states SET state = 7")
    with pytest.raises(RendezvousStateError, match="another program"):
        backend.get_state()


def test_a_later_run_removes_what_is_long_over_and_nothing_else(file: File) -> None:
    create(file.path, "old", ttl=0).set_state(b"over")
    create(file.path, "young").set_state(b"alive")
    create(file.path, "new")
    assert file.sql("SELECT run FROM states") == ["young"]
