"""Joining, leaving, dying and closing at the same time; what all nodes report has to fit."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Cluster

MIN, MAX = 2, 4
ENDS = {"member", "RendezvousClosedError", "RendezvousGracefulExitError"}


@pytest.mark.parametrize("seed", range(4))
def test_all_at_once(anywhere: Cluster, seed: int) -> None:
    chance = random.Random(seed)
    nodes = anywhere.open(6, MIN, MAX, last_call_timeout=0.2)
    chance.shuffle(nodes)
    leaver, doomed, *others = nodes
    # Each is told at once; in what order things happen is up to the machine.
    commands = [(node, "live_to_the_end") for node in nodes]
    commands.insert(chance.randrange(3, 7), (leaver, "leave"))
    for node, command in commands:
        node.tell(command)
    anywhere.kill(doomed)
    assert leaver.expect("over")["how"] in ENDS
    # Before another comes, who could take the place of one that is slow.
    for node in others[:2]:
        node.expect("joined")
    (late,) = anywhere.open(1, MIN, MAX, last_call_timeout=0.2)
    late.tell("live_to_the_end")
    # Whoever is in a round by now: two close at the same time.
    for node in others[:2]:
        node.tell("close")
    for node in others[:2]:
        node.expect("closed")
    for node in (*others, late):
        assert node.expect("over")["how"] in ENDS, node.story()
    (after,) = anywhere.open(1, MIN, MAX)
    # Where the round was full it may be told first that it is a spare, and then that it is over.
    assert after.fail("join")["type"] in ENDS
    assert after.ask("is_closed", "is_closed")["closed"] is True
    anywhere.check(MIN, MAX)


@pytest.mark.parametrize("round_", range(3))
def test_joining_races_with_closing(anywhere: Cluster, round_: int) -> None:
    nodes = anywhere.open(4, MIN, MAX, last_call_timeout=0.2)
    for number, node in enumerate(nodes):
        if number == 1 + round_:
            nodes[0].tell("close")
        node.tell("live_to_the_end")
    nodes[0].expect("closed")
    for node in nodes:
        assert node.expect("over")["how"] in ENDS
    anywhere.check(MIN, MAX)


def test_growing_one_by_one_and_shrinking_again(anywhere: Cluster) -> None:
    nodes = anywhere.live(2, 2, 5, last_call_timeout=0.3)
    round_ = anywhere.joined(nodes[0])["round"]
    for _ in range(3):
        (new,) = anywhere.open(1, 2, 5, last_call_timeout=0.3)
        new.tell("live")
        nodes.append(new)
        round_ = anywhere.settle(nodes, above=round_)
    while len(nodes) > 2:
        # By turns the first, which leads, and another.
        gone = nodes.pop(0 if len(nodes) % 2 else -1)
        gone.tell("leave")
        round_ = anywhere.settle(nodes, above=round_)
    anywhere.check(2, 5)


def test_simultaneous_first_nodes_agree_on_one_run(anywhere: Cluster) -> None:
    nodes = anywhere.open(5, 5, 5)
    for node in nodes:
        node.tell("live")
    anywhere.settle(nodes)
    assert sorted(anywhere.joined(node)["rank"] for node in nodes) == [0, 1, 2, 3, 4]
