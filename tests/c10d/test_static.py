"""The static handler: fixed nodes, given ranks."""

from __future__ import annotations

import socket
import threading

import pytest

from rdzv.api import RendezvousInfo, RendezvousParameters
from rdzv.endpoint import free_port
from rdzv.errors import RendezvousConnectionError, RendezvousTimeoutError
from rdzv_c10d import static
from rdzv_c10d.static import StaticTCPRendezvous, create_rdzv_handler

LONG = 60.0  # seconds; reached only where a test fails


def make(endpoint: str, nodes: int = 1, **config) -> StaticTCPRendezvous:
    params = RendezvousParameters("static", endpoint, "run", nodes, nodes, **config)
    return create_rdzv_handler(params)


def rendezvous(*handlers: StaticTCPRendezvous) -> list[RendezvousInfo]:
    """Let handlers meet, each in a thread of its own as in a process of its own."""
    results: dict[int, RendezvousInfo] = {}

    def meet(handler: StaticTCPRendezvous) -> None:
        results[handler.rank] = handler.next_rendezvous()

    threads = [threading.Thread(target=meet, args=(each,), daemon=True) for each in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    return [results[rank] for rank in sorted(results)]


def test_the_nodes_meet_at_rank_0_and_share_its_store():
    endpoint = f"127.0.0.1:{free_port()}"
    first, second = rendezvous(
        make(endpoint, 2, rank=0, timeout=LONG), make(endpoint, 2, rank="1", timeout=LONG)
    )
    assert (first.rank, first.world_size) == (0, 2)
    assert (second.rank, second.world_size) == (1, 2)
    first.store.set("key", "value")
    assert second.store.get("key") == b"value"
    for info in (first, second):
        assert info.bootstrap_store_info is not None
        assert info.bootstrap_store_info.master_addr == "127.0.0.1"
        assert info.bootstrap_store_info.master_port == int(endpoint.rpartition(":")[2])


def test_a_single_node_can_take_any_free_port_and_meets_itself_again():
    handler = make("localhost:0", rank=0)
    first = handler.next_rendezvous()
    again = handler.next_rendezvous()
    assert first.bootstrap_store_info is not None
    assert first.bootstrap_store_info.master_port > 0
    assert again.bootstrap_store_info == first.bootstrap_store_info
    first.store.set("key", "value")
    assert again.store.get("key") == b"value"


def test_it_is_a_handler_that_never_changes():
    handler = make("localhost:1", rank=0)
    assert handler.get_backend() == "static"
    assert handler.get_run_id() == "run"
    assert handler.use_agent_store is True
    assert handler.num_nodes_waiting() == 0
    handler.set_closed()
    assert handler.is_closed() is False
    assert handler.shutdown() is True


def test_the_timeout_is_torchs_unless_it_is_given():
    assert make("localhost:1", rank=0).timeout.total_seconds() == 600
    assert make("localhost:1", rank=0, timeout="0.5").timeout.total_seconds() == 0.5


@pytest.mark.parametrize(
    ("endpoint", "nodes", "config", "message"),
    [
        ("host:1", 1, {}, "needs this node's rank: give rank=N"),
        ("host:1", 2, {"rank": 2}, "rank 2 is out of range: with 2 nodes it must be from 0 to 1"),
        ("host:1", 2, {"rank": -1}, "rank -1 is out of range"),
        ("host:1", 2, {"rank": "first"}, "'rank' .* 'first'; it must be a whole number"),
        ("", 1, {"rank": 0}, "needs an endpoint.*give endpoint='HOST:PORT'"),
        ("  ", 1, {"rank": 0}, "needs an endpoint"),
        ("host", 1, {"rank": 0}, "'host' .* names no port.*endpoint='host:PORT'"),
        ("host:0", 2, {"rank": 0}, "port 0, a free port that the other 1 nodes could not know"),
        ("host:x", 1, {"rank": 0}, "the port 'x' is no whole number"),
        ("host:1", 1, {"rank": 0, "timeout": "5m"}, "'timeout' .* '5m'"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(endpoint, nodes, config, message):
    with pytest.raises(ValueError, match=message):
        make(endpoint, nodes, **config)


def test_a_range_of_nodes_is_refused():
    params = RendezvousParameters("static", "host:1", "run", 1, 2, rank=0)
    with pytest.raises(ValueError, match="fixed number of nodes, and 1 to 2 were asked for"):
        create_rdzv_handler(params)


def test_a_port_in_use_is_said_to_be_so():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        handler = make(f"127.0.0.1:{port}", rank=0, timeout=5)
        with pytest.raises(RendezvousConnectionError, match=f"port {port}: the port is in use"):
            handler.next_rendezvous()


def test_a_missing_node_is_waited_for_until_the_timeout_only():
    handler = make(f"127.0.0.1:{free_port()}", 2, rank=0, timeout=1)
    with pytest.raises(RendezvousTimeoutError, match=r"Not all 2 nodes came .*1/2 clients joined"):
        handler.next_rendezvous()


def test_a_rank_0_that_is_not_there_is_waited_for_until_the_timeout_only():
    handler = make(f"127.0.0.1:{free_port()}", 2, rank=1, timeout=0.2)
    with pytest.raises(RendezvousConnectionError, match="no way to the store .*rank 0 running"):
        handler.next_rendezvous()


def test_a_host_that_does_not_resolve_is_named():
    handler = make("no-such-host.invalid:29400", 2, rank=1, timeout=0.2)
    with pytest.raises(RendezvousConnectionError, match="'no-such-host.invalid' .* not resolve"):
        handler.next_rendezvous()


def test_a_listener_that_never_answers_is_left_behind(monkeypatch):
    monkeypatch.setattr(static, "_GRACE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        handler = make(f"127.0.0.1:{port}", 2, rank=1, timeout=0.2)
        with pytest.raises(RendezvousConnectionError, match="has not answered.*no TCPStore"):
            handler.next_rendezvous()


def test_its_errors_are_caught_by_torchs_agent():
    theirs = pytest.importorskip("torch.distributed.elastic.rendezvous")
    handler = make(f"127.0.0.1:{free_port()}", 2, rank=1, timeout=0.2)
    with pytest.raises(theirs.RendezvousConnectionError):
        handler.next_rendezvous()
