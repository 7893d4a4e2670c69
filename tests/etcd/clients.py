"""The clients behind the seam for tests, what they see, and what they do not offer."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from rdzv_etcd import seam
from rdzv_etcd.client import CHANNEL_OPTIONS, HAS_LEADER, EtcdClient, Tls
from rdzv_etcd.etcd3_adapter import Etcd3Client

from .. import local_servers
from ..local_servers import LIMIT

CLIENTS = ("own", "etcd3")
"""Every client behind the seam."""

REQUIRE_ETCD3 = "RDZV_TEST_ETCD3"
"""Where this is set the real etcd3 is tested; otherwise what stands for it."""


def make(
    kind: str,
    endpoint: str,
    *,
    tls: Tls | None = None,
    username: str | None = None,
    password: str | None = None,
    timeout: float = 10.0,
) -> EtcdClient:
    """A client of one server."""
    if kind == "own":
        return EtcdClient(endpoint, tls=tls, username=username, password=password, timeout=timeout)
    host, _, port = endpoint.rpartition(":")
    options: dict[str, Any] = {"host": host, "port": int(port), "timeout": timeout}
    if tls is not None:
        options |= {"ca_cert": tls.ca, "cert_cert": tls.cert, "cert_key": tls.key}
    if username:
        options |= {"user": username, "password": password}
    return Etcd3Client(etcd3_client(**options, grpc_options=CHANNEL_OPTIONS))


def etcd3_client(**options: Any) -> Any:
    """An ``etcd3.Etcd3Client``, or what looks like one.

    etcd3 0.12 does not import beside today's protobuf; nox has a session that tests it.
    """
    if os.environ.get(REQUIRE_ETCD3):
        return importlib.import_module("etcd3").Etcd3Client(**options)
    url = f"{options['host']}:{options['port']}"
    if "ca_cert" in options:
        tls = Tls(options["ca_cert"], options["cert_cert"], options["cert_key"])
        channel = grpc.secure_channel(url, tls.credentials(), options["grpc_options"])
    else:
        channel = grpc.insecure_channel(url, options["grpc_options"])
    metadata = None
    if "user" in options:
        # etcd3 logs in once, when it is made, and keeps the token.
        user = EtcdClient(url, username=options["user"], password=options["password"])
        user.status()
        assert user._connection is not None
        metadata = user._connection.metadata[len(HAS_LEADER) :]
        user.close()
    return SimpleNamespace(
        _url=url,
        channel=channel,
        metadata=metadata,
        timeout=options["timeout"],
        call_credentials=None,
    )


def lacks(kind: str, what: str) -> None:
    """Expect a test to fail with the adapter of etcd3, which does not do that."""
    if kind == "etcd3":
        pytest.xfail(what)


# ---------------------------------------------------------------- watches


def seen(
    watch: seam.Watch, until: Callable[[list[seam.Event | None]], object]
) -> list[seam.Event | None]:
    """What a watch sees until the condition holds; None where events were missed.

    While no member can be reached it is asked again.
    """
    found: list[seam.Event | None] = []
    deadline = time.monotonic() + 2 * LIMIT
    while not until(found):
        assert time.monotonic() < deadline, f"The watch has seen no more than {found[-5:]}."
        try:
            events = watch.next(1.0)
        except seam.UnavailableError:
            continue
        found += [None] if events is None else events
    return found


def ends_with(value: bytes) -> Callable[[list[seam.Event | None]], bool]:
    """The condition that the last event has this value."""

    def holds(found: list[seam.Event | None]) -> bool:
        last = found[-1] if found else None
        return last is not None and last.kv.value == value

    return holds


def reader_of(watch: seam.Watch) -> Any:
    """The part of a watch that reads."""
    return cast("Any", watch)._reader


def values(watch: seam.Watch, count: int) -> list[bytes]:
    """The values of the next so many events."""
    found = seen(watch, lambda found: len(found) >= count)
    assert None not in found
    return [event.kv.value for event in found if event is not None]


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


eventually = partial(local_servers.eventually, limit=2 * LIMIT, unknown=(seam.UnavailableError,))
"""Wait until a condition holds; where no member can be reached it is asked again."""


def threads() -> set[threading.Thread]:
    """The threads of watches that run in this process."""
    return {thread for thread in threading.enumerate() if thread.name == "rdzv-etcd-watch"}
