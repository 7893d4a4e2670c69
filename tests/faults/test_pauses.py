"""Processes that stop for a while and go on: nodes, leaders, and the store's own process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.conftest import Cluster, Process

SLACK = 8.0
"""Seconds by which a call may miss its deadline: two are promised, a busy machine adds more."""


def test_node_that_was_taken_for_dead_is_fenced(anywhere: Cluster) -> None:
    first, second, sleeper = anywhere.live(3, 2, 3)
    round_ = anywhere.joined(sleeper)["round"]
    anywhere.pause(sleeper)
    without = anywhere.settle([first, second], above=round_)
    sleeper.wake()
    # It finds that others have gone on, gives up its round, and comes back as one that waits.
    sleeper.logged("has to form a new round")
    together = anywhere.settle([first, second, sleeper], above=without)
    assert together > without
    assert anywhere.joined(sleeper)["rank"] == 2


def test_fenced_node_keeps_its_latch_until_it_joins_again(cluster: Cluster) -> None:
    first, second = cluster.open(2, 1, 3)
    (sleeper,) = cluster.open(1, 1, 3)
    for node in (first, second):
        cluster.enter(node)
    cluster.settle([first, second])
    sleeper.tell("join")
    round_ = cluster.settle([first, second, sleeper])
    sleeper.pause()
    cluster.settle([first, second], above=round_)
    sleeper.wake()
    sleeper.ask("latch", "latch")
    # What others do meanwhile takes nothing back.
    second.kill()
    again = cluster.settle([first], above=round_ + 1)
    assert sleeper.ask("waiting", "waiting")["count"] >= 1
    sleeper.tell("live")
    cluster.settle([first, sleeper], above=again)


def test_leader_that_wakes_evicts_nobody(anywhere: Cluster) -> None:
    leader, second, third = anywhere.live(3, 2, 3)
    round_ = anywhere.joined(leader)["round"]
    anywhere.pause(leader)
    without = anywhere.settle([second, third], above=round_)
    anywhere.new_leader([second, third])
    leader.wake()
    anywhere.settle([leader, second, third], above=without)
    assert not leader.has_logged("was lost"), leader.story()
    assert anywhere.joined(leader)["rank"] != 0


def test_leader_that_wakes_in_time_goes_on_as_a_member(cluster: Cluster) -> None:
    # Three nodes are needed, so that none is lost for good before it wakes.
    leader, second, third = cluster.live(3, 3, 3)
    round_ = cluster.joined(leader)["round"]
    leader.pause()
    successor = cluster.new_leader([second, third])
    leader.wake()
    assert leader.ask("waiting", "waiting")["count"] == 0
    # The new leader watches: the next death is noticed, and the round formed anew.
    other = third if successor is second else second
    other.kill()
    successor.logged("was lost", other.node)
    (new,) = cluster.open(1, 3, 3)
    new.tell("live")
    cluster.settle([leader, successor, new], above=round_)
    assert not leader.has_logged("was lost"), leader.story()


# With an outage of ten seconds: detection would take two and a half.
PATIENT = {"keep_alive_interval": 0.5, "keep_alive_max_attempt": 5}


def _stop_for_ten_seconds(store: Process) -> None:
    store.pause()
    # The outage itself: nothing is synchronised by it.
    threading.Event().wait(10)
    store.wake()


def test_stopped_store_evicts_no_healthy_node(cluster: Cluster) -> None:
    store = cluster.processes[0]
    nodes = cluster.live(3, 2, 3, **PATIENT)
    round_ = cluster.joined(nodes[0])["round"]
    store.pause()
    for node in nodes:
        # Answered from memory, whatever the store does.
        assert node.ask("waiting", "waiting", limit=5)["count"] == 0
    _stop_for_ten_seconds(store)
    # Everything works on: a newcomer could not come in if somebody were gone.
    assert cluster.settle(nodes) == round_
    nodes[1].kill()
    cluster.settle([nodes[0], nodes[2]], above=round_)
    assert cluster.joined(nodes[0])["round"] == round_ + 1
    assert cluster.joined(nodes[0])["gone"] == 1


def test_stopped_store_loses_no_node_that_waits(cluster: Cluster) -> None:
    store = cluster.processes[0]
    first, second, third = cluster.open(3, 3, 3, **PATIENT)
    first.tell("live")
    second.tell("live")
    first.ask("see_entered", "entered")
    _stop_for_ten_seconds(store)
    third.tell("live")
    cluster.settle([first, second, third])
    for node in (first, second, third):
        assert not node.has_logged("was lost"), node.story()


def test_calls_are_back_by_their_deadline_while_the_store_is_stopped(cluster: Cluster) -> None:
    store = cluster.processes[0]
    short = {"join_timeout": 4, "close_timeout": 3, "heartbeat_timeout": 2}
    waits, comes, looks, leaves = cluster.open(4, 5, 5, **PATIENT, **short)
    (closes,) = cluster.open(1, 5, 5, **PATIENT, **short, run_id="another")
    waits.tell("join")
    waits.ask("see_entered", "entered")
    store.pause()
    comes.tell("join")
    closes.tell("close")
    looks.tell("is_closed")
    leaves.tell("leave")
    error = waits.failed("join")
    assert (error["type"], error["took"] < 4 + SLACK) == ("RendezvousTimeoutError", True)
    error = comes.failed("join")
    assert (error["type"], error["took"] < 4 + SLACK) == ("RendezvousTimeoutError", True)
    assert "store" in error["text"]
    error = closes.failed("close")
    assert (error["type"], error["took"] < 3 + SLACK) == ("RendezvousTimeoutError", True)
    error = looks.failed("is_closed")
    assert (error["type"], error["took"] < 2 + SLACK) == ("RendezvousConnectionError", True)
    assert leaves.expect("ended")["took"] < 3 + SLACK
    store.wake()
    # What was given up has no effect later: nobody of them is in the run.
    (last,) = cluster.open(1, 5, 5, **PATIENT, join_timeout=3)
    assert "4 more are needed" in last.fail("join")["text"]


def test_store_that_is_silent_beyond_the_patience_is_an_error(cluster: Cluster) -> None:
    store = cluster.processes[0]
    node, _ = cluster.live(2, 2, 2, patience=2)
    store.pause()
    error = node.failed("live")
    assert error["type"] == "RendezvousConnectionError"
    assert "not answered" in error["text"]
    store.wake()


def test_node_that_slept_while_it_waited_is_let_in_when_it_wakes(cluster: Cluster) -> None:
    first, sleeper, third = cluster.open(3, 2, 3, last_call_timeout=1)
    cluster.enter(first)
    sleeper.tell("live")
    sleeper.pause()
    third.tell("live")
    without = cluster.settle([first, third])
    sleeper.wake()
    cluster.settle([first, sleeper, third], above=without)
