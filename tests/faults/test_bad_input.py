"""What a user can get wrong: each a clear error, in time, that says what to do."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Cluster

SLACK = 8.0
"""Seconds by which a call may miss its deadline: two are promised, a busy machine adds more."""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("deadline", ["read_timeout", "join_timeout"])
def test_closed_port(bare: Cluster, deadline: str) -> None:
    bare.endpoint = f"127.0.0.1:{_free_port()}"
    error = bare.try_to_open(**{deadline: 2})
    assert error["type"] == "RendezvousConnectionError"
    assert bare.endpoint in error["text"]
    assert "is_host=true" in error["text"]
    assert error["took"] < 2 + SLACK


@pytest.mark.parametrize("deadline", ["read_timeout", "join_timeout"])
def test_port_that_accepts_and_never_answers(bare: Cluster, deadline: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        bare.endpoint = f"127.0.0.1:{deaf.getsockname()[1]}"
        error = bare.try_to_open(**{deadline: 2})
    assert error["type"] == "RendezvousConnectionError"
    assert bare.endpoint in error["text"]
    assert error["took"] < 2 + SLACK


def test_host_that_comes_later(bare: Cluster) -> None:
    bare.endpoint = f"127.0.0.1:{_free_port()}"
    early = bare.start("early")
    bare.nodes.append(early)
    early.tell("open", **bare.parameters(1, 1))
    bare.host_store(bare.port)
    early.expect("opened")
    early.ask("join", "joined")


def test_port_in_use(cluster: Cluster) -> None:
    error = cluster.try_to_open(is_host=True)
    assert error["type"] == "RendezvousConnectionError"
    assert f"port {cluster.port}" in error["text"]
    assert "in use" in error["text"]
    assert "another port" in error["text"]


def test_unresolvable_host(bare: Cluster) -> None:
    bare.endpoint = "no-such-host.invalid:29400"
    error = bare.try_to_open(read_timeout=2)
    assert error["type"] == "RendezvousConnectionError"
    assert "no-such-host.invalid" in error["text"]
    assert "cannot be resolved" in error["text"]


@pytest.mark.parametrize(
    "endpoint",
    [
        ":29400",
        "host:",
        "host:port",
        "host:99999",
        "host:-1",
        "http://host:1",
        "two hosts:1",
        "[::1:29400",
        "a:b:1",
    ],
)
def test_malformed_endpoint(bare: Cluster, endpoint: str) -> None:
    bare.endpoint = endpoint
    error = bare.try_to_open()
    assert error["type"] == "ValueError"
    assert endpoint in error["text"]


def test_secret_in_an_endpoint_is_not_shown(bare: Cluster) -> None:
    bare.endpoint = "user:hunter2@host:29400"
    error = bare.try_to_open()
    assert error["type"] == "ValueError"
    assert "hunter2" not in error["text"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"join_timout": 3}, ["join_timout", "join_timeout"]),
        ({"join_timeout": "30s"}, ["join_timeout", "30s", "seconds"]),
        ({"join_timeout": 0}, ["join timeout"]),
        ({"last_call_timeout": -1}, ["last_call"]),
        ({"keep_alive_interval": "fast"}, ["keep_alive_interval", "fast"]),
        ({"keep_alive_interval": 0}, ["keep_alive_interval"]),
        ({"keep_alive_max_attempt": 1}, ["keep_alive_max_attempt", "2 or more"]),
        ({"keep_alive_max_attempt": "2.5"}, ["keep_alive_max_attempt", "2.5"]),
        ({"patience": 0}, ["patience"]),
        ({"read_timeout": 0}, ["read_timeout"]),
        ({"is_host": "perhaps"}, ["is_host", "perhaps"]),
        ({"store_type": "cloud"}, ["store_type", "cloud", "tcp", "file"]),
        ({"min_nodes": 3, "max_nodes": 2}, ["maximum number of nodes (2)", "minimum (3)"]),
        ({"min_nodes": 0}, ["min_nodes"]),
        ({"run_id": ""}, ["run"]),
        ({"backend": "c10"}, ["c10", "c10d"]),
    ],
    ids=lambda value: (
        "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_bad_setting(cluster: Cluster, settings: dict[str, Any], words: list[str]) -> None:
    error = cluster.try_to_open(**settings)
    assert error["type"] in ("ValueError", "UnknownBackendError")
    for word in words:
        assert word in error["text"]


def test_timeout_that_torchrun_adds_is_accepted(cluster: Cluster) -> None:
    (node,) = cluster.open(1, 1, 1, timeout=900, join_timeout=None)
    node.ask("join", "joined")


def test_port_0_is_for_the_host_alone(bare: Cluster) -> None:
    bare.endpoint = "127.0.0.1:0"
    error = bare.try_to_open(is_host=False)
    assert error["type"] == "ValueError"
    assert "port 0" in error["text"]
    (node,) = bare.open(1, 1, 1, is_host=True)
    assert node.ask("join", "joined")["size"] == 1
    assert node.ask("shutdown", "ended")["done"] is True


def test_file_store_in_a_folder_that_is_not_there(bare: Cluster) -> None:
    bare.endpoint = str(bare.folder / "missing" / "store")
    error = bare.try_to_open(store_type="file")
    assert error["type"] == "RendezvousConnectionError"
    assert str(bare.folder / "missing") in error["text"]


def test_own_address_that_does_not_resolve(cluster: Cluster) -> None:
    (node,) = cluster.open(1, 1, 1, local_addr="no-such-host.invalid")
    error = node.fail("join")
    assert error["type"] == "RendezvousConnectionError"
    assert "no-such-host.invalid" in error["text"]
    assert "--local-addr" in error["text"]


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6_endpoint(bare: Cluster) -> None:
    bare.host_store(host="::1")
    nodes = bare.live(2, 2, 2)
    assert bare.joined(nodes[1])["master"][0] == "::1"


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6_host_among_the_nodes(bare: Cluster) -> None:
    bare.endpoint = f"[::1]:{_free_port()}"
    (host,) = bare.open(1, 2, 2, is_host=True)
    (other,) = bare.open(1, 2, 2)
    host.tell("live")
    other.tell("live")
    bare.settle([host, other])
