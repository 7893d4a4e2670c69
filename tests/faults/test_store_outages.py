"""Stores that end, come back empty, or hold what rdzv did not write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Cluster


def test_killed_store_is_a_clear_error_at_once(cluster: Cluster) -> None:
    store = cluster.processes[0]
    healthy, also = cluster.live(2, 2, 3)
    store.kill()
    for node in (healthy, also):
        error = node.failed("live", limit=20)
        assert error["type"] in ("StoreGoneError", "RendezvousConnectionError")
        assert f"127.0.0.1:{cluster.port}" in error["text"]
        assert "Start the job again" in error["text"]
        assert node.ask("shutdown", "ended", limit=20)["done"] is False


def test_killed_store_ends_who_waits(cluster: Cluster) -> None:
    store = cluster.processes[0]
    nodes = cluster.open(2, 3, 3)
    for node in nodes:
        node.tell("join")
    nodes[0].ask("see_entered", "entered")
    store.kill()
    for node in nodes:
        error = node.failed("join", limit=20)
        assert error["type"] in ("StoreGoneError", "RendezvousConnectionError")
        assert "Start the job again" in error["text"]


def test_killed_store_is_noticed_by_a_handler_that_did_nothing_yet(cluster: Cluster) -> None:
    store = cluster.processes[0]
    (node,) = cluster.open(1, 1, 1)
    node.ask("is_closed", "is_closed")
    store.kill()
    # An attempt to connect that was under way takes half a minute to fail.
    error = node.fail("join")
    assert error["type"] in ("StoreGoneError", "RendezvousConnectionError")


def test_store_that_lost_its_memory_is_never_mixed_up_with_the_old_one(cluster: Cluster) -> None:
    store = cluster.processes[0]
    old = cluster.live(2, 2, 3)
    rounds = [dict(cluster.joined(node)) for node in old]
    store.kill()
    cluster.host_store(cluster.port)
    new = cluster.open(2, 2, 3)
    for node in new:
        node.tell("live")
    for node in old:
        error = node.failed("live")
        assert error["type"] in (
            "StoreGoneError",
            "RendezvousConnectionError",
            "RendezvousStateError",
        )
        assert "Start the job again" in error["text"]
    cluster.settle(new)
    # The old ones took no part: what they had joined is all that they ever joined.
    assert [cluster.joined(node) for node in old] == rounds
    # The new run is another one, and its rounds begin again.
    cluster.nodes = new


def _corrupt(cluster: Cluster, **keys: str) -> None:
    store = cluster.processes[0]
    for key, value in keys.items():
        name = f"rdzv/{cluster.run_id}/document/{key.lstrip('_')}"
        store.ask("set", "set", key=name, value=value)


def test_document_of_a_newer_version(cluster: Cluster) -> None:
    document = {"schema": 99, "epoch": "e", "version": "another type", "more": [1]}
    _corrupt(cluster, hint="1", _1=f"{'0' * 16}:{json.dumps(document)}")
    (node,) = cluster.open(1, 1, 1)
    error = node.fail("join")
    assert error["type"] == "RendezvousStateError"
    assert "newer rdzv (schema 99" in error["text"]
    assert "version 1" in error["text"]


@pytest.mark.parametrize(
    "keys",
    [
        {"hint": "somewhere", "_1": "-"},
        {"hint": "9" * 30, "_1": "-"},
        {"hint": "1", "_1": "what torch wrote"},
        {"hint": "1", "_1": "0" * 16 + ":"},
        {"hint": "1", "_1": "0" * 16 + ":{}"},
        {"hint": "1", "_1": "0" * 16 + ":" + "[" * 100_000},
        {"hint": "1", "_1": "0" * 16 + ':{"schema": 1, "epoch": "../../etc"}'},
        {"hint": "1", "_1": "0" * 16 + ":\\ud83d"},
    ],
    ids=["hint", "long-hint", "torch", "empty", "object", "deep", "epoch", "surrogate"],
)
def test_garbage_instead_of_the_document(cluster: Cluster, keys: dict[str, str]) -> None:
    _corrupt(cluster, **keys)
    (node,) = cluster.open(1, 1, 1)
    error = node.fail("join")
    assert error["type"] == "RendezvousStateError"
    assert "run id" in error["text"]
    assert "document" in error["text"]


def test_garbage_that_comes_while_the_run_lives(cluster: Cluster) -> None:
    store = cluster.processes[0]
    nodes = cluster.live(2, 2, 2)
    key = f"rdzv/{cluster.run_id}/document/hint"
    version = int(store.ask("get", "got", key=key)["value"])
    _corrupt(cluster, **{f"_{version + 1}": "nonsense"})
    for node in nodes:
        error = node.failed("live")
        assert error["type"] == "RendezvousStateError"
        assert f"document/{version + 1}" in error["text"]


def test_garbage_in_the_roster(cluster: Cluster) -> None:
    store = cluster.processes[0]
    nodes = cluster.live(2, 2, 3)
    round_ = cluster.joined(nodes[0])["round"]
    epoch = cluster.document(store, above=round_ - 1)["epoch"]
    tickets = f"rdzv/{cluster.run_id}/{epoch}/tickets"
    following = int(store.ask("get", "got", key=tickets)["value"]) + 1
    record = f"rdzv/{cluster.run_id}/{epoch}/record/{following}"
    store.ask("set", "set", key=tickets, value=str(following))
    store.ask("set", "set", key=record, value="{}")
    # Only the leader reads it: it fails loudly, rather than doing something else.
    error = nodes[0].failed("live")
    assert error["type"] == "RendezvousStateError"
    assert f"record {following}" in error["text"]
    # The other notices that nobody leads, takes over, and finds the same.
    error = nodes[1].failed("live")
    assert error["type"] == "RendezvousStateError"
