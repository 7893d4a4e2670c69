"""The kit on etcd: one member of each version, of the test's own."""

from __future__ import annotations

import contextlib

import pytest

from rdzv.testing.contract import BackendContract, Deployment
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import Get, prefix_end
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.session import Run

from ..etcd.servers import debian, distro


class OutOfBand:
    """The keys of a run, through a client and not through the backend."""

    def __init__(self, server: EtcdServer) -> None:
        self.client: EtcdClient = server.get_client()

    @staticmethod
    def _documents(run_id: str) -> list[bytes]:
        names = Run.names(run_id, "/rdzv")
        return [names("document").encode(), names("state").encode()]

    def read_raw(self, run_id: str) -> bytes | None:
        found = (self.client.range(Get(key)).kvs for key in self._documents(run_id))
        return next((kvs[0].value for kvs in found if kvs), None)

    def write_raw(self, run_id: str, data: bytes) -> None:
        for key in self._documents(run_id):
            self.client.put(key, data)

    def leftovers(self, run_id: str) -> list[str]:
        root = Run.names(run_id, "/rdzv")("").encode()
        found = self.client.range(Get(root, prefix_end(root))).kvs
        return [kv.key.decode() for kv in found if not kv.lease]

    def fields(self):
        names = ("read_raw", "write_raw", "leftovers")
        return {name: getattr(self, name) for name in names}


@contextlib.contextmanager
def deployed(binary: str, title: str):
    with EtcdServer(binary=binary, durable=False) as server:
        out_of_band = OutOfBand(server)
        yield Deployment(
            "etcd",
            server.endpoint,
            title=title,
            atomic_enter=True,
            # Leases are of two seconds at least.
            interval=0.6,
            **out_of_band.fields(),
        )
        out_of_band.client.close()


class TestEtcd34(BackendContract):
    @pytest.fixture
    def deployment(self):
        with deployed(debian(), "etcd (3.4)") as deployment:
            yield deployment


class TestEtcd35(BackendContract):
    @pytest.fixture
    def deployment(self):
        with deployed(distro(), "etcd (3.5)") as deployment:
            yield deployment
