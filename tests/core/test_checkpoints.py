"""What workers and a leader tell one another through the workers' store: a real TCPStore."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from torch.distributed import HashStore, PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import api as torch_api

import rdzv
from rdzv.checkpoints import KEY, REACHED, Gate
from rdzv.dynamic_rendezvous.document import Master
from rdzv.endpoint import hold_port

LOCAL = "127.0.0.1"


@pytest.fixture
def server() -> TCPStore:
    return TCPStore(LOCAL, 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def gate(server: TCPStore) -> Gate:
    return Gate(Master(LOCAL, server.port))


@pytest.fixture
def worker(server: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process look like a worker of torchrun's."""
    monkeypatch.setattr("rdzv.checkpoints._own", {})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("MASTER_ADDR", LOCAL)
    monkeypatch.setenv("MASTER_PORT", str(server.port))


# ---------------------------------------------------------------- what is said


@pytest.mark.usefixtures("worker")
def test_a_worker_is_told_that_a_round_opens_only_where_somebody_waits(gate: Gate) -> None:
    assert rdzv.checkpoint_reached() is False
    assert gate.ask() is False
    assert rdzv.checkpoint_reached() is True
    assert gate.ask() is True


@pytest.mark.usefixtures("worker")
def test_a_checkpoint_of_before_an_arrival_lets_nobody_in(gate: Gate) -> None:
    rdzv.checkpoint_reached()
    assert gate.ask() is False
    assert gate.ask() is False


@pytest.mark.usefixtures("worker")
def test_all_ranks_may_say_so_again_and_again(gate: Gate, server: TCPStore) -> None:
    gate.ask()
    assert [rdzv.checkpoint_reached() for _ in range(3)] == [True] * 3
    assert rdzv.checkpoint_reached(PrefixStore("other rank", server)) is True


@pytest.mark.usefixtures("worker")
def test_of_a_question_taken_back_and_its_answer_only_the_first_counts(gate: Gate) -> None:
    gate.ask()
    assert gate.call_off() is False
    assert rdzv.checkpoint_reached() is False
    gate.ask()
    assert rdzv.checkpoint_reached() is True
    assert gate.call_off() is True


def test_one_question_is_one_request() -> None:
    asked: list[tuple[str, ...]] = []

    class Counting(HashStore):
        def compare_set(self, *arguments: str) -> bytes:
            asked.append(arguments)
            return super().compare_set(*arguments)

    rdzv.checkpoint_reached(Counting())
    assert asked == [(KEY, "waiting", "reached")]


# ---------------------------------------------------------------- which store


def test_prefixes_of_a_store_do_not_matter(gate: Gate, server: TCPStore) -> None:
    gate.ask()
    assert rdzv.checkpoint_reached(PrefixStore("worker/attempt_1", PrefixStore("pg", server)))


GROUP = """
import sys
import torch.distributed as dist
import rdzv
from rdzv import checkpoints

how = {"init_method": f"file://{sys.argv[1]}"} if len(sys.argv) > 1 else {}
dist.init_process_group("gloo", rank=0, world_size=1, **how)
connect, opened = checkpoints._connect, []
checkpoints._connect = lambda *address: opened.append(address) or connect(*address)
print(rdzv.checkpoint_reached(), rdzv.checkpoint_reached(), len(opened))
"""


@pytest.mark.parametrize("own_store", [False, True], ids=["torchrun's store", "a store of its own"])
def test_it_goes_through_the_groups_store_or_one_connection(
    gate: Gate, server: TCPStore, tmp_path: object, *, own_store: bool
) -> None:
    gate.ask()
    environment = {
        **os.environ,
        "TORCHELASTIC_RUN_ID": "run",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": LOCAL,
        "MASTER_PORT": str(server.port),
        "RES_OPTIONS": "timeout:1 attempts:1",
    }
    done = subprocess.run(
        [sys.executable, "-c", GROUP, *([f"{tmp_path}/group"] if own_store else [])],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "True", str(int(own_store))]
    assert gate.ask() is True


# ---------------------------------------------------------------- what is wrong


def test_outside_of_torchrun_it_is_an_error_that_torchs_callers_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(rdzv.RendezvousError, match="outside of a worker") as caught:
        rdzv.checkpoint_reached()
    assert isinstance(caught.value, torch_api.RendezvousError)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("port", ["", "-1", "port", "99999"])
def test_an_address_that_is_none_is_an_error(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(rdzv.RendezvousError):
        rdzv.checkpoint_reached()


def test_where_nobody_listens_it_is_a_connection_error_for_both() -> None:
    with hold_port() as held:
        port = held.getsockname()[1]
        with pytest.raises(rdzv.RendezvousConnectionError, match=f"{LOCAL}:{port}"):
            Gate(Master(LOCAL, port))


def test_a_store_that_has_gone_is_a_connection_error(gate: Gate, capfd: object) -> None:
    server = TCPStore(LOCAL, 0, is_master=True, wait_for_workers=False)
    client = TCPStore(LOCAL, server.port, is_master=False)
    gone = Gate(Master(LOCAL, server.port))
    assert gone.ask() is False
    del server
    with pytest.raises(rdzv.RendezvousConnectionError, match="cannot reach the workers' store"):
        rdzv.checkpoint_reached(client)
    with pytest.raises(rdzv.RendezvousConnectionError, match="has not answered"):
        gone.ask()


def test_what_else_stands_in_the_key_lets_nobody_in(gate: Gate, server: TCPStore) -> None:
    server.set(KEY, REACHED + "\x1b[2J")
    assert gate.ask() is False
    assert rdzv.checkpoint_reached(server) is False
