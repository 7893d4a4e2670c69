"""Nodes that die: before a round, in one, as leader, between a round and its address."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Cluster


def test_node_killed_before_the_round_holds_up_nobody(anywhere: Cluster) -> None:
    first, second, doomed = anywhere.open(3, 2, 4, last_call_timeout=3)
    anywhere.enter(doomed)  # Even the first, which leads.
    first.tell("live")
    anywhere.kill(doomed)
    second.tell("live")
    anywhere.settle([first, second])


def test_node_killed_before_the_round_does_not_count_for_the_minimum(cluster: Cluster) -> None:
    first, doomed, late = cluster.open(3, 2, 2)
    cluster.enter(doomed)
    doomed.kill()
    cluster.enter(first)
    late.tell("live")
    cluster.settle([first, late])


def test_survivors_of_a_death_form_a_smaller_round(anywhere: Cluster) -> None:
    first, second, doomed = anywhere.live(3, 2, 3)
    before = anywhere.joined(first)
    anywhere.kill(doomed)
    first.logged("was lost")
    anywhere.settle([first, second], above=before["round"])
    assert anywhere.joined(first)["rank"] == 0
    assert anywhere.joined(first)["gone"] == 1
    assert anywhere.joined(first)["master"] != before["master"], "a fresh store every round"
    assert first.has_logged("has to form a new round", "1 node lost")


def test_death_of_the_leader_is_noticed_by_its_successor(anywhere: Cluster) -> None:
    doomed, second, third = anywhere.live(3, 2, 3)
    round_ = anywhere.joined(second)["round"]
    anywhere.kill(doomed)
    anywhere.settle([second, third], above=round_)
    assert anywhere.joined(second)["rank"] == 0


def test_replacement_completes_a_round_that_fell_below_the_minimum(cluster: Cluster) -> None:
    first, doomed = cluster.live(2, 2, 2)
    round_ = cluster.joined(first)["round"]
    doomed.kill()
    first.logged("was lost")
    (new,) = cluster.open(1, 2, 2)
    new.tell("live")
    cluster.settle([first, new], above=round_)
    assert cluster.joined(first)["rank"] == 0


def test_all_but_one_die_at_once(cluster: Cluster) -> None:
    nodes = cluster.live(4, 1, 4)
    round_ = cluster.joined(nodes[3])["round"]
    for node in nodes[:3]:
        node.signal(signal.SIGKILL)
    cluster.settle([nodes[3]], above=round_)
    assert cluster.joined(nodes[3])["gone"] == 3


def test_spare_takes_the_place_of_the_dead(anywhere: Cluster) -> None:
    first, doomed = anywhere.live(2, 2, 2)
    (spare,) = anywhere.open(1, 2, 2)
    spare.tell("join")
    round_ = anywhere.joined(first)["round"]
    # Its presence restarts nobody: the same round stands until one dies.
    assert first.ask("waiting", "waiting")["count"] == 0
    anywhere.kill(doomed)
    assert anywhere.settle([first, spare], above=round_) == round_ + 1


def test_spares_wait_beyond_their_deadline_and_go_in_peace(cluster: Cluster) -> None:
    first, second = cluster.live(2, 2, 2)
    spare, brief = cluster.open(2, 2, 2, join_timeout=3)
    (late,) = cluster.open(1, 2, 2, join_timeout=1)
    spare.tell("join")
    spare.ask("see_entered", "entered")
    brief.tell("join")
    round_ = cluster.joined(first)["round"]
    # One of the spares dies: nobody notices. The other's deadline passes.
    brief.kill()
    time.sleep(3.5)
    first.tell("close")
    first.expect("closed")
    assert spare.failed("join")["type"] == "RendezvousGracefulExitError"
    assert late.fail("join")["type"] == "RendezvousClosedError"
    assert cluster.joined(second)["round"] == round_


@pytest.mark.parametrize("min_nodes", [2, 3])
def test_rank_0_killed_between_the_commit_and_its_address(cluster: Cluster, min_nodes: int) -> None:
    (doomed,) = cluster.open(1, min_nodes, 3, last_call_timeout=5, block_master=1)
    first, second = cluster.open(2, min_nodes, 3, last_call_timeout=2)
    doomed.tell("join")
    doomed.expect("blocked")
    doomed.ask("see_entered", "entered")
    # It leads, and commits a round for whose address all wait.
    first.tell("live")
    second.tell("live")
    document = cluster.document(cluster.processes[0], above=0)
    assert document["size"] == 3
    assert "master" not in document
    doomed.kill()
    nodes = [first, second]
    if min_nodes == 3:
        nodes += cluster.open(1, min_nodes, 3)
        nodes[2].tell("live")
    assert cluster.settle(nodes) > document["round"]
    for node in nodes:
        rounds = [e["round"] for e in node.events if e["event"] == "joined"]
        assert document["round"] not in rounds, "a round without an address was returned"


def test_rank_0_that_does_not_lead_killed_before_its_address(cluster: Cluster) -> None:
    # Rank 0 is stopped for as long as another needs to take the lead; its place is kept,
    # since three nodes are needed.
    (doomed,) = cluster.open(1, 3, 4, block_master=2, last_call_timeout=3)
    first, second, new = cluster.open(3, 3, 4, last_call_timeout=3)
    for node in (doomed, first, second):
        cluster.enter(node)
    round_ = cluster.settle([doomed, first, second])
    doomed.pause()
    cluster.new_leader([first, second])
    doomed.wake()
    new.tell("live")
    doomed.expect("blocked")
    document = cluster.document(cluster.processes[0], above=round_)
    assert document["leader"]["rank"] > 0
    assert "master" not in document
    doomed.kill()
    assert cluster.settle([first, second, new], above=round_) > document["round"]
