"""Nodes that slept, and nodes whose connection broke: what they do first, and only once."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rdzv import RendezvousStateError
from rdzv.dynamic_rendezvous.document import Change
from rdzv.dynamic_rendezvous.messages import (
    Beat,
    Close,
    Enter,
    Interrupted,
    Join,
    Latched,
    Leave,
    Lost,
    Read,
    TookOver,
    Withdraw,
)
from rdzv.dynamic_rendezvous.phases import Phase

from .world import DETECTION, Node, World, formed, members, rejoin


def sleep(world: World, seconds: float, *nodes: Node) -> None:
    """Stop all nodes, or these, for a time in which nothing else happens."""
    for node in nodes or world.nodes:
        node.paused = True
    world.now += seconds
    for node in nodes or world.nodes:
        node.resume()


def interrupt(node: Node) -> None:
    node.broken = True
    node.reconnect()


def beaten_slots(node: Node) -> set[int]:
    return {action.slot for action in node.asked if isinstance(action, Beat)}


def with_spare() -> tuple[World, Node]:
    world = formed(2, 2, 2)
    spare = world.add()
    world.join(spare)
    assert spare.phase is Phase.SPARE
    return world, spare


# ---------------------------------------------------------------- after a sleep


def test_a_member_that_slept_long_ago_enters_once_at_its_next_join():
    world = formed(2, 2, 2)
    sleep(world, 500)
    world.advance(30)
    node = world.nodes[1]
    node.requests.clear()
    world.join(node)
    world.advance(30)
    assert node.phase is Phase.WAITING
    assert node.requests["Enter"] == 1


def test_a_member_that_joins_on_waking_beats_first_and_enters_once():
    world = formed(2, 2, 2)
    node = world.nodes[1]
    sleep(world, 500)
    node.asked.clear()
    node.requests.clear()
    node.tell(Join())
    assert [type(action) for action in node.asked[:2]] == [Beat, Enter]
    world.advance(30)
    assert node.phase is Phase.WAITING
    assert node.requests["Enter"] == 1


# ---------------------------------------------------------------- after a break


@pytest.mark.parametrize("number", [0, 1], ids=["leader", "follower"])
def test_after_an_interruption_a_beat_goes_before_all_else(number):
    world = formed(3, 3, 3)
    node = world.nodes[number]
    node.asked.clear()
    interrupt(node)
    assert isinstance(node.asked[0], Beat)
    assert isinstance(node.asked[1], Read)


def test_who_has_left_beats_no_more_after_an_interruption():
    world = formed(2, 1, 2)
    node = world.nodes[1]
    node.tell(Leave())
    node.asked.clear()
    interrupt(node)
    assert not beaten_slots(node)


def test_a_single_look_after_a_short_outage_is_no_death():
    world = formed(3, 3, 3, attempts=2)
    follower = world.nodes[2]
    looks = follower.requests["Beat"]
    while follower.requests["Beat"] == looks:
        world.advance(0.01)
    for node in world.nodes:
        node.broken = True
    world.now += 1.7
    for node in reversed(world.nodes):
        node.reconnect()
    world.advance(30)
    assert not any(node.told(Lost) or node.told(Latched) for node in world.nodes)
    assert not any(node.told(TookOver) for node in world.nodes[1:])


def test_who_enters_again_after_an_interruption_beats_where_it_did_as_well_for_a_while():
    world, spare = with_spare()
    interrupt(spare)
    world.settle()
    spare.asked.clear()
    world.advance(2.5)
    assert beaten_slots(spare) == {3, 4}
    world.advance(2 * DETECTION)
    spare.asked.clear()
    world.advance(10)
    assert beaten_slots(spare) == {4}


def test_who_is_interrupted_while_it_enters_again_beats_in_its_own_slots_only():
    world, spare = with_spare()
    spare.asked.clear()
    for _ in range(3):
        spare.breaks_at = Enter
        interrupt(spare)
    assert spare.broken
    assert spare.phase is Phase.ENTERING
    assert beaten_slots(spare) == {3}
    spare.reconnect()
    world.advance(2.5)
    assert beaten_slots(spare) == {3, 4}


def test_who_has_entered_again_since_another_connection_broke_does_not_enter_twice():
    world, spare = with_spare()
    broke = world.now + spare.offset
    world.advance(0.1)
    interrupt(spare)
    spare.tell(Interrupted(broke))
    assert spare.requests["Enter"] == 2
    world.advance(0.1)
    spare.tell(Interrupted(world.now + spare.offset))
    assert spare.requests["Enter"] == 3


def test_a_leader_that_has_not_heard_of_the_new_slot_yet_loses_nobody():
    world, spare = with_spare()
    perform = world.perform

    def late(node, action):
        answer = perform(node, action)
        if node is spare and isinstance(action, Enter):
            # To the leader it is as if nothing had been written yet.
            del world.log[world.tail]
            world.tail -= 1
        return answer

    world.perform = late
    interrupt(spare)
    world.perform = perform
    world.advance(DETECTION)
    assert not world.nodes[0].told(Lost)


def test_two_nodes_that_were_given_one_ticket_by_a_store_that_failed_over_beat_apart():
    world, spare = with_spare()
    spare.broken = True
    world.log.pop(world.tail)
    world.tail -= 1
    other = world.add()
    world.join(other)
    for node in world.nodes[:3]:  # A failover breaks all connections.
        interrupt(node)
    world.settle()
    world.advance(3 * DETECTION)
    slots = world.leader.machine.leading.roster.watched("")
    assert slots.keys() == {"node0", "node1", "node2", "node3"}
    assert len(set(slots.values())) == 4
    other.kill()
    world.advance(DETECTION)
    assert [lost.node.node for lost in world.leader.told(Lost)] == ["node3"]


# ---------------------------------------------------------------- a store that lost writes

LOSSES: dict[str, dict[str, Any]] = {
    "an older version": {"version": 1},
    "another write of the same version": {"write": "other"},
    "a lower round": {"version": 50, "round": 1, "nonce": "old"},
    "no round": {"version": 50, "round": 0, "nonce": "", "size": 0},
    "another nonce": {"version": 50, "nonce": "other"},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_store_that_has_lost_what_it_had_acknowledged_is_a_state_error(loss):
    world = formed(2, 2, 2)
    world.join()
    world.document = msgspec.structs.replace(world.document, **LOSSES[loss])
    for node in world.nodes:
        with pytest.raises(RendezvousStateError, match="has lost what it had acknowledged"):
            node.do([Read()])


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_was_closed_and_is_open_again_is_a_state_error(number):
    world = formed(2, 2, 2)
    world.nodes[0].tell(Close())
    world.settle()
    nonce = world.document.nonce if number == 1 else "later"
    world.document = msgspec.structs.replace(
        world.document, version=50, round=number, nonce=nonce, closed=False
    )
    with pytest.raises(RendezvousStateError, match="has lost what it had acknowledged"):
        world.nodes[0].do([Read()])


def test_a_node_that_only_misses_versions_goes_on():
    world = formed(2, 2, 2)
    world.document = msgspec.structs.replace(
        world.document, version=50, write="later", change=Change(left=1)
    )
    world.settle()
    assert all(node.machine.latch for node in world.nodes)
    rejoin(world)
    assert members(world) == [0, 1]


def test_a_withdrawal_is_not_undone_by_an_interruption():
    world, spare = with_spare()
    spare.tell(Withdraw(accept=False))
    spare.asked.clear()
    interrupt(spare)
    world.advance(10)
    assert spare.phase is Phase.IDLE
    assert not beaten_slots(spare)
