"""The kit on redis: a Redis and a Valkey server of the test's own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from rdzv.testing.contract import BackendContract, Deployment
from rdzv_redis.server import RedisServer
from rdzv_redis.session import Run

from ..redis.servers import debian, valkey


class OutOfBand:
    """The keys of a run, through a client of redis-py and not through the backend."""

    def __init__(self, server: RedisServer) -> None:
        # What redis-py says of its own types covers text and asynchronous clients as well.
        self.client: Any = server.client()

    @staticmethod
    def _documents(run_id: str) -> list[str]:
        names = Run.names(run_id, "rdzv")
        return [names("document"), names("state")]

    def read_raw(self, run_id: str) -> bytes | None:
        found = (self.client.hget(key, "text") for key in self._documents(run_id))
        return next((text for text in found if text), None)

    def write_raw(self, run_id: str, data: bytes) -> None:
        for key in self._documents(run_id):
            token = self.client.hget(key, "token") or b"0-0"
            version = int(token.split(b"-")[0]) + 1
            new = {"token": b"%d-%s" % (version, b"f" * 16), "text": data}
            self.client.hset(key, mapping=new)

    def leftovers(self, run_id: str) -> list[str]:
        root = Run.names(run_id, "rdzv")().encode()
        keys = [key for key in self.client.scan_iter() if key.startswith(root)]
        return [key.decode() for key in keys if self.client.ttl(key) == -1]

    def fields(self):
        names = ("read_raw", "write_raw", "leftovers")
        return {name: getattr(self, name) for name in names}


@contextlib.contextmanager
def deployed(binary: str, title: str):
    with RedisServer(binary=binary) as server:
        out_of_band = OutOfBand(server)
        yield Deployment(
            "redis", server.endpoint, title=title, atomic_enter=True, **out_of_band.fields()
        )
        out_of_band.client.close()


class TestRedis(BackendContract):
    @pytest.fixture
    def deployment(self):
        with deployed(debian(), "redis (Redis 7)") as deployment:
            yield deployment


class TestValkey(BackendContract):
    @pytest.fixture
    def deployment(self):
        with deployed(valkey(), "redis (Valkey 9)") as deployment:
            yield deployment
