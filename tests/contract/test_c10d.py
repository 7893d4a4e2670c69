"""The kit on c10d: a TCPStore in this process, and a FileStore."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import FileStore, TCPStore

from rdzv.testing import plugin, report
from rdzv.testing.contract import BackendContract, Deployment


class OutOfBand:
    """The keys of a run, through a store of torch and not through the backend."""

    def __init__(self, store) -> None:
        self.store = store

    def _read(self, key: str) -> bytes | None:
        return self.store.get(key) if self.store.check([key]) else None

    def _newest(self, chain: str) -> int:
        return int(self._read(f"{chain}/hint") or 0)

    def read_raw(self, run_id: str) -> bytes | None:
        for chain in (f"rdzv/{run_id}/document", f"rdzv/{run_id}/state"):
            version = self._newest(chain)
            if version:
                return self._read(f"{chain}/{version}")
        return None

    def write_raw(self, run_id: str, data: bytes) -> None:
        for chain in (f"rdzv/{run_id}/document", f"rdzv/{run_id}/state"):
            version = self._newest(chain) + 1
            self.store.set(f"{chain}/{version}", data)
            self.store.set(f"{chain}/hint", str(version))

    def take_ticket(self, run_id: str, epoch: str) -> int:
        return int(self.store.add(f"rdzv/{run_id}/{epoch}/tickets", 1))

    def leftovers(self, run_id: str) -> list[str]:
        return [key for key in self.store.list_keys() if key.startswith(f"rdzv/{run_id}/")]

    def fields(self):
        names = ("read_raw", "write_raw", "take_ticket", "leftovers")
        return {name: getattr(self, name) for name in names}


class TestTCPStore(BackendContract):
    @pytest.fixture
    def deployment(self):
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return Deployment(
            "c10d",
            f"127.0.0.1:{server.port}",
            {"is_host": False},
            title="c10d (TCPStore)",
            **OutOfBand(server).fields(),
        )

    @pytest.mark.xfail(reason="The keys of a run stay until the process that hosts the store ends.")
    def test_nothing_is_left_of_a_run_that_is_over(self, run):
        super().test_nothing_is_left_of_a_run_that_is_over(run)


class TestFileStore(BackendContract):
    @pytest.fixture
    def deployment(self, tmp_path):
        path = str(tmp_path / "store")
        return Deployment(
            "c10d",
            path,
            {"store_type": "file"},
            title="c10d (FileStore)",
            # One that is killed or stopped within a write holds up all others, for ever.
            other_processes=False,
            **OutOfBand(FileStore(path, -1)).fields(),
        )

    @pytest.mark.xfail(reason="The keys of a run stay until its file is removed.")
    def test_nothing_is_left_of_a_run_that_is_over(self, run):
        super().test_nothing_is_left_of_a_run_that_is_over(run)


DOCS = Path(__file__).parents[2] / "docs"


def committed() -> list[report.Report]:
    return [report.load(path) for path in sorted((DOCS / "reports").glob("*.json"))]


def test_the_table_in_the_docs_is_made_from_the_reports():
    assert (DOCS / "backends.md").read_text() == report.page(committed())


def test_the_reports_in_the_docs_are_what_this_session_has_seen(request):
    known = {each.title: {one.promise: one for one in each.results} for each in committed()}
    for seen in plugin.reports(request.config):
        if seen.title in known:
            for result in seen.results:
                assert known[seen.title][result.promise] == result
