"""The stores that all cases of this folder run on: one fixture for each kind."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import pytest
from torch.distributed import PrefixStore, Store, TCPStore

from rdzv import simple_store
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.store import EtcdStore
from rdzv_redis.server import RedisServer
from rdzv_redis.store import RedisStore

from ..local_servers import postgres_server

Open: TypeAlias = Callable[..., Store]
"""Open one more store on the same data, with a timeout in seconds."""

QUICK = 2.9
"""Seconds; no store that has to look by itself looks within them."""

_numbers = itertools.count()


@pytest.fixture(scope="session")
def redis_server():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def redis_client(redis_server):
    with redis_server.client() as client:
        yield client


@pytest.fixture
def open_redis(redis_client) -> Open:
    prefix = f"test:{{{next(_numbers)}}}"

    def open_store(timeout: float = 20.0) -> RedisStore:
        return RedisStore(redis_client, prefix, timedelta(seconds=timeout))

    return open_store


@pytest.fixture(scope="session")
def etcd_server():
    # One value of the cases is larger than what etcd takes unless it is told to.
    with EtcdServer(durable=False, settings={"max-request-bytes": 16 << 20}) as server:
        yield server


@pytest.fixture(scope="session")
def etcd_client(etcd_server):
    client = etcd_server.get_client()
    yield client
    client.close()


@pytest.fixture
def open_etcd(etcd_client) -> Open:
    prefix = f"/test/{next(_numbers)}"

    def open_store(timeout: float = 20.0) -> EtcdStore:
        return EtcdStore(etcd_client, prefix, timedelta(seconds=timeout))

    return open_store


@pytest.fixture
def open_tcp() -> Open:
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def open_store(timeout: float = 20.0) -> TCPStore:
        # The default keeps the host alive as long as somebody can open a store on it.
        store = TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False)
        store.set_timeout(timedelta(seconds=timeout))
        return store

    return open_store


class SimplestStore(simple_store.SimpleStore):
    """The example of SimpleStore: values in memory."""

    def __init__(self, values: dict[bytes, bytes], lock: threading.Lock, timeout: timedelta):
        super().__init__(timeout)
        self.values, self.lock = values, lock

    def look(self, keys):
        return [self.values.get(key) for key in keys]

    def update(self, keys, change):
        with self.lock:
            for key, value in zip(keys, change(self.look(keys)), strict=True):
                if value is None:
                    self.values.pop(key, None)
                else:
                    self.values[key] = value

    def keys(self):
        return list(self.values)

    def clone(self):
        return SimplestStore(self.values, self.lock, self.timeout)


@pytest.fixture
def open_simple() -> Open:
    values: dict[bytes, bytes] = {}
    lock = threading.Lock()
    return lambda timeout=20.0: SimplestStore(values, lock, timedelta(seconds=timeout))


@pytest.fixture
def open_sqlite(tmp_path_factory) -> Open:
    pytest.importorskip("rdzv_sqlite")
    from rdzv_sqlite.database import Database
    from rdzv_sqlite.store import SqliteStore

    database = Database(str(tmp_path_factory.mktemp("sqlite") / "rdzv.db"), 10.0)
    return lambda timeout=20.0: SqliteStore(database, "run", timedelta(seconds=timeout))


@pytest.fixture(scope="session")
def postgres_url():
    server = postgres_server()
    with server:
        yield server.url


@pytest.fixture
def open_postgres(postgres_url) -> Open:
    from rdzv import RendezvousParameters
    from rdzv_postgres.backend import create_backend

    name = f"run{next(_numbers)}"

    def open_store(timeout: float = 20.0) -> Store:
        params = RendezvousParameters("postgres", postgres_url, name, 1, 1, timeout=timeout)
        return create_backend(params)[1]

    return open_store


# A further kind of store is a fixture open_<kind> and its name here.
KINDS = ("tcp", "redis", "etcd", "simple", "sqlite", "postgres")


def _prefixed(open_plain: Open) -> Open:
    return lambda timeout=20.0: PrefixStore("prefix", open_plain(timeout))


def _named(request, name: str) -> Open:
    kind, way = name.split("-")
    open_plain: Open = request.getfixturevalue(f"open_{kind}")
    return open_plain if way == "direct" else _prefixed(open_plain)


@pytest.fixture(params=[f"{kind}-{way}" for kind in KINDS for way in ("direct", "prefixed")])
def open_store(request) -> Open:
    return _named(request, request.param)


@pytest.fixture
def store(open_store):
    return open_store()


@pytest.fixture(params=["tcp-direct", "tcp-prefixed", *(f"{k}-direct" for k in KINDS[1:])])
def open_whole(request) -> Open:
    """Open a store with all operations: torch forwards some to C++ alone."""
    return _named(request, request.param)


@pytest.fixture
def whole(open_whole):
    return open_whole()
