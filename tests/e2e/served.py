"""The servers that backends have of their own, and what tests of all of them ask of each."""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.request import urlopen

from rdzv.testing.local_server import LocalServer
from rdzv_etcd import seam
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.server import EtcdServer
from rdzv_redis import RedisServer

from ..etcd import servers as etcd
from .agents import QUICK

if TYPE_CHECKING:
    from typing_extensions import Self

SECRET = "n0t-to-be-printed"


class Served(ABC):
    """A backend with a server.

    Args:
        lasting: Whether its data outlives that it is killed.
        guarded: Whether it lets nobody in without :data:`SECRET`.
    """

    backend: ClassVar[str]
    """Its name for torchrun."""
    quick: ClassVar[dict[str, object]] = dict(QUICK)
    """Settings with which a silent node is noticed as soon as the backend can."""
    variables: ClassVar[str]
    """What the environment variables of a login begin with."""
    user: ClassVar[str] = ""
    """Who logs in, where that has to be said."""
    scheme: ClassVar[str]
    refusal: ClassVar[str]
    """What is said of a wrong password."""
    after_restart: ClassVar[int] = 0
    """What the numbers of rounds go on from where a server was away, for it may have lost some."""

    def __init__(self, *, lasting: bool = False, guarded: bool = False) -> None:
        self.server = self.make_server(lasting=lasting, guarded=guarded)

    @staticmethod
    @abstractmethod
    def make_server(*, lasting: bool, guarded: bool) -> LocalServer: ...

    @abstractmethod
    def keys(self, part: str = "") -> list[str]:
        """The keys that hold a text."""

    @abstractmethod
    def asked(self) -> int:
        """How often nodes have given signs of life since the server's start."""

    @abstractmethod
    def forget(self) -> None:
        """Have the server come back without its data."""

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def how(self) -> dict[str, object]:
        """What a job is to be told."""
        return {"backend": self.backend, "endpoint": self.endpoint, "conf": dict(self.quick)}

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()


class ServedByRedis(Served):
    backend = "redis"
    variables = "RDZV_REDIS"
    scheme = "redis"
    refusal = "does not accept the login"
    # Another server, for all that anybody knows.
    after_restart = 1_000_000

    server: RedisServer

    @staticmethod
    def make_server(*, lasting: bool, guarded: bool) -> RedisServer:
        return RedisServer(persistent=lasting, password=SECRET if guarded else None)

    def keys(self, part: str = "") -> list[str]:
        with self.server.client() as client:
            return [key.decode() for key in client.scan_iter(f"*{part}*")]

    def asked(self) -> int:
        with self.server.client() as client:
            return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))

    def forget(self) -> None:
        self.server.restart()


class ServedByEtcd(Served):
    backend = "rdzv-etcd"
    # It has no leases that are shorter.
    quick: ClassVar[dict[str, object]] = {
        "last_call_timeout": 0.5,
        "keep_alive_interval": 0.4,
        "keep_alive_max_attempt": 5,
    }
    variables = "RDZV_ETCD"
    user = "rdzv"
    scheme = "http"
    refusal = "invalid user ID or password"

    server: EtcdServer

    @staticmethod
    def make_server(*, lasting: bool, guarded: bool) -> EtcdServer:
        # It always writes its data, if not to the disk at once.
        return EtcdServer(binary=etcd.lasting(), durable=False)

    def __init__(self, *, lasting: bool = False, guarded: bool = False) -> None:
        super().__init__(lasting=lasting, guarded=guarded)
        self._guarded = guarded

    def __enter__(self) -> Self:
        super().__enter__()
        if self._guarded:
            guard(self.server)
        return self

    def keys(self, part: str = "") -> list[str]:
        return keys(self.server.get_client(), part)

    def asked(self) -> int:
        return renewals(self.server)

    def forget(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.data_dir / "etcd")
        self.server.restart()


def keys(client: EtcdClient, part: str = "") -> list[str]:
    """The keys of an etcd that hold a text."""
    try:
        found = client.range(seam.Get(b"\0", b"\0", keys_only=True)).kvs
    finally:
        client.close()
    return [kv.key.decode() for kv in found if part in kv.key.decode()]


def renewals(server: EtcdServer) -> int:
    """How many leases a member has renewed since its start, which it does while it leads."""
    with urlopen(f"http://127.0.0.1:{server.ports[1]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    [count] = re.findall(r"^etcd_debugging_lease_renewed_total (\S+)$", text, re.MULTILINE)
    return int(float(count))


def guard(server: EtcdServer, **options: Any) -> None:
    """Let in whom the README says: a user who may do what a job needs, below the prefix alone."""
    users = etcd.Users(server, **options)
    users.add(ServedByEtcd.user, SECRET, "/rdzv/")
    users.enable()


SERVED: tuple[type[Served], ...] = (ServedByRedis, ServedByEtcd)
