"""Nodes that come late, that leave, and that cannot agree."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.conftest import Cluster

# Detection would take longer than any of these tests waits.
SLOW = {"keep_alive_interval": 20, "keep_alive_max_attempt": 5}


def test_late_nodes_are_taken_in_and_ranks_stay(anywhere: Cluster) -> None:
    first, second = anywhere.live(2, 2, 4)
    round_ = anywhere.joined(first)["round"]
    before = [anywhere.joined(node)["rank"] for node in (first, second)]
    late = anywhere.open(2, 2, 4)
    for node in late:
        anywhere.enter(node)
    anywhere.settle([first, second, *late], above=round_)
    assert [anywhere.joined(node)["rank"] for node in (first, second)] == before
    assert first.has_logged("has to form a new round", "waiting to join")


def test_node_that_leaves_is_not_waited_for(anywhere: Cluster) -> None:
    nodes = anywhere.live(3, 2, 3, **SLOW)
    round_ = anywhere.joined(nodes[0])["round"]
    # The first one leads, and hands over.
    assert nodes[0].ask("leave", "ended")["done"] is True
    anywhere.settle(nodes[1:], above=round_)
    assert nodes[1].has_logged("has to form a new round", "1 node left")
    assert anywhere.joined(nodes[1])["gone"] == 1


def test_leaving_closes_nothing_and_shutting_down_does(cluster: Cluster) -> None:
    first, second, third = cluster.live(3, 2, 3)
    round_ = cluster.joined(first)["round"]
    third.ask("leave", "ended")
    cluster.settle([first, second], above=round_)
    assert first.ask("is_closed", "is_closed")["closed"] is False
    assert second.ask("shutdown", "ended")["done"] is True
    first.ask("see_closed", "is_closed")
    (late,) = cluster.open(1, 2, 3)
    error = late.fail("join")
    assert error["type"] == "RendezvousClosedError"
    assert "run id" in error["text"]


def test_end_of_a_spare_is_noticed_by_nobody(anywhere: Cluster) -> None:
    first, second = anywhere.live(2, 2, 2)
    spare, third = anywhere.open(2, 2, 2)
    anywhere.enter(spare)
    spare.tell("shutdown")
    # The call that another thread is in ends with it.
    assert spare.failed("live")["type"] == "RendezvousClosedError"
    spare.expect("ended")
    anywhere.enter(third)
    third.signal(signal.SIGTERM)
    assert third.wait() == 143
    for node in (first, second):
        assert node.ask("is_closed", "is_closed")["closed"] is False
        assert node.ask("waiting", "waiting")["count"] == 0


def test_node_terminated_in_next_rendezvous_leaves_at_once(anywhere: Cluster) -> None:
    first, ended, late = anywhere.open(3, 2, 3, last_call_timeout=4, **SLOW)
    anywhere.enter(first)
    anywhere.enter(ended)
    ended.signal(signal.SIGTERM)
    assert ended.wait() == 143
    # Were it still there, the round would be full with it.
    late.tell("live")
    anywhere.settle([first, late])


def test_terminated_participant_is_gone_at_once(anywhere: Cluster) -> None:
    first, second, ended = anywhere.live(3, 2, 3, **SLOW)
    round_ = anywhere.joined(first)["round"]
    ended.signal(signal.SIGTERM)
    assert ended.wait() == 143
    anywhere.settle([first, second], above=round_)
    for node in (first, second):
        assert node.has_logged("has to form a new round", "left") or node.has_logged(
            "has to form a new round", "came back"
        )
        assert not node.has_logged("was lost")


def test_process_that_just_ends_leaves(cluster: Cluster) -> None:
    first, second, ended = cluster.open(3, 2, 3, **SLOW)
    cluster.enter(first)
    cluster.enter(second)
    ended.tell("join")
    ended.expect("joined")
    ended.tell("exit")
    assert ended.wait() == 0
    cluster.settle([first, second], above=cluster.joined(ended)["round"])


def test_nodes_that_disagree_about_the_numbers(anywhere: Cluster) -> None:
    (first,) = anywhere.open(1, 2, 3)
    (other,) = anywhere.open(1, 3, 3)
    anywhere.enter(first)
    error = other.fail("join")
    assert error["type"] == "RendezvousStateError"
    assert "min_nodes=3 and max_nodes=3" in error["text"]
    assert "min_nodes=2 and max_nodes=3" in error["text"]
    # The run goes on without it.
    (second,) = anywhere.open(1, 2, 3)
    second.tell("live")
    anywhere.settle([first, second])


def test_timeout_names_who_was_there_and_how_many_were_not(anywhere: Cluster) -> None:
    (first,) = anywhere.open(1, 4, 4, join_timeout=3)
    # It is there for longer, or might have left just before the first one says who is.
    (second,) = anywhere.open(1, 4, 4)
    first.tell("join")
    first.ask("see_entered", "entered")
    second.tell("join")
    text = first.failed("join")["text"]
    assert first.node in text
    assert second.node in text
    assert "2 more are needed for min_nodes=4" in text
    assert anywhere.run_id in text
    within = re.search(r"within (\d+\.\d) s", text)
    assert within is not None
    assert 3.0 <= float(within[1]) < 10.0


def test_timeout_names_who_did_not_come_back(cluster: Cluster) -> None:
    first, second = cluster.open(2, 2, 2, join_timeout=3)
    first.tell("join")
    second.tell("join")
    first.expect("joined")
    second.expect("joined")
    first.tell("join")
    error = first.failed("join")
    assert error["type"] == "RendezvousTimeoutError"
    assert f"still to come back: {second.node}" in error["text"]


def test_node_may_try_again_after_a_timeout(anywhere: Cluster) -> None:
    (first,) = anywhere.open(1, 2, 2, join_timeout=3)
    assert first.fail("join")["type"] == "RendezvousTimeoutError"
    assert first.fail("join")["type"] == "RendezvousTimeoutError"
    (second,) = anywhere.open(1, 2, 2)
    anywhere.enter(second)
    first.tell("join")
    anywhere.settle([first, second])


def test_address_is_kept_as_it_was_given(cluster: Cluster) -> None:
    _, second = cluster.live(2, 2, 2, local_addr="127.0.0.2")
    assert cluster.joined(second)["master"][0] == "127.0.0.2"


def test_address_of_the_endpoint_is_not_turned_into_a_name(cluster: Cluster) -> None:
    first, second = cluster.live(2, 2, 2)
    assert cluster.joined(first)["master"][0] == "127.0.0.1"
    assert cluster.joined(second)["master"][0] == "127.0.0.1"
