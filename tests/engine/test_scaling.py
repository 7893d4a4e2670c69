"""A run whose limits an operator changes, and one that begins anew, as its nodes see it."""

from __future__ import annotations

import functools
import math

import msgspec
import pytest

from rdzv import RendezvousStateError
from rdzv.dynamic_rendezvous.document import Change, Document, decode, encode
from rdzv.dynamic_rendezvous.leader import Settings, amend
from rdzv.dynamic_rendezvous.leadership import Hold, Waiting, decide
from rdzv.dynamic_rendezvous.messages import Join, Latched, Leave
from rdzv.dynamic_rendezvous.phases import Phase

from .world import DETECTION, World, formed, members, rejoin


def scale(world: World, low: int, high: int) -> None:
    """What an operator does."""
    document = world.document
    world.document = amend(
        document, "operator", min_nodes=low, max_nodes=high, scaled=document.scaled + 1
    )
    world.settle()


def test_a_spare_is_let_in_at_once_where_the_run_is_scaled_up():
    world = formed(2, 2, 2)
    spare = world.add()
    world.join(spare)
    phases = [spare.phase]
    scale(world, 2, 3)
    assert [*phases, spare.phase] == [Phase.SPARE, Phase.WAITING]
    assert world.document.change == Change(arrived=1)
    rejoin(world)
    assert members(world) == [0, 1, 2]


def test_a_run_that_is_scaled_down_goes_on_with_its_first_ranks():
    world = formed(4, 1, 4)
    scale(world, 1, 2)
    assert world.document.change == Change(surplus=2)
    told = "2 nodes too many since the run was scaled down"
    assert [node.told(Latched)[-1].reason for node in world.nodes] == [told] * 4
    # Whoever comes back first.
    rejoin(world, *reversed(world.nodes))
    assert members(world) == [0, 1]
    assert [node.phase for node in world.nodes[2:]] == [Phase.SPARE, Phase.SPARE]


@pytest.mark.parametrize("death", [False, True], ids=["leaves", "dies"])
def test_a_node_that_had_to_go_takes_the_place_of_one_that_is_missing(death):
    world = formed(3, 2, 3)
    scale(world, 2, 2)
    rejoin(world)
    assert members(world) == [0, 1]
    if death:
        world.nodes[1].kill()
        world.advance(DETECTION)
    else:
        world.nodes[1].tell(Leave())
        world.settle()
    rejoin(world)
    assert members(world) == [0, 2]


def test_a_leader_that_has_to_go_leads_on_until_another_has_to():
    world = formed(3, 1, 3)
    first = world.leader
    first.tell(Leave())
    world.settle()
    rejoin(world)
    back = world.add()
    world.join(back)
    rejoin(world)
    # The leader is not rank 0 any more.
    world.leader.kill()
    world.advance(2 * DETECTION)
    rejoin(world)
    world.advance(world.settings.last_call + 0.1)
    size = world.document.size
    scale(world, 1, 1)
    rejoin(world)
    assert (size, world.document.size) == (2, 1)
    assert world.leader is not None
    world.advance(3 * DETECTION)
    assert len(members(world)) == 1, "nobody takes the other for dead"


def test_a_higher_minimum_leaves_the_round_alone_until_it_breaks():
    world = formed(2, 1, 2)
    scale(world, 3, 4)
    world.advance(3 * DETECTION)
    assert world.document.change is None
    new = world.add()
    world.join(new)
    rejoin(world)
    world.advance(world.settings.last_call + 0.1)
    assert members(world) == [0, 1, 2]
    world.nodes[0].tell(Leave())
    world.settle()
    rejoin(world)
    world.advance(world.settings.last_call + 0.1)
    assert world.document.round == 2, "two are too few now"


def test_limits_that_change_while_nodes_gather_hold_for_the_round_that_comes():
    world = World(2, 3, 3)
    world.join()
    assert world.document.round == 0
    scale(world, 1, 2)
    assert members(world) == [0, 1]


@pytest.mark.parametrize("scaled", [0, 1])
def test_numbers_of_their_own_are_refused_to_nodes_unless_an_operator_has_changed_them(scaled):
    world = formed(2, 2, 2)
    world.document = amend(world.document, "operator", max_nodes=3, scaled=scaled)
    world.settle()
    late = world.add(Settings(1, 9, 5.0, 1.0, 3))
    if scaled:
        world.join(late)
        rejoin(world)
        assert members(world) == [0, 1, 2]
    else:
        with pytest.raises(RendezvousStateError, match="min_nodes=1 and max_nodes=9"):
            late.tell(Join())


def test_a_document_may_have_a_larger_round_than_is_allowed_only_where_it_was_scaled():
    world = formed(3, 1, 3)
    smaller = amend(world.document, "x", max_nodes=2)
    with pytest.raises(RendezvousStateError, match="contradicts itself"):
        decode(Document, encode(smaller), "It")
    scaled = msgspec.structs.replace(smaller, scaled=1)
    assert decode(Document, encode(scaled), "It") == scaled


# ---------------------------------------------------------------- another life


def reset(world: World) -> None:
    document = world.document
    world.document = Document(
        schema=1,
        epoch="another",
        version=document.version + 1,
        write="operator",
        min_nodes=document.min_nodes,
        max_nodes=document.max_nodes,
        after=max(document.round, document.after),
    )


def test_a_node_of_a_life_that_is_over_is_told_so_and_is_in_no_other():
    world = formed(2, 2, 2)
    reset(world)
    for node in world.nodes:
        with pytest.raises(RendezvousStateError, match="the run was reset"):
            world.settle()
        node.kill()
    world.settle()
    assert world.document.leader is None


def test_the_first_to_come_leads_a_life_that_nobody_is_in_and_rounds_go_on():
    world = formed(2, 2, 2)
    for node in world.nodes:
        node.kill()
    reset(world)
    world.log.clear()
    world.tail = 0
    new = [world.add(), world.add()]
    world.join(*new)
    assert members(world) == [2, 3]
    assert world.document.round == 2
    assert world.leader in new


# ---------------------------------------------------------------- for people


def test_what_wall_clocks_say_is_passed_on_within_bounds():
    world = World(2, 2, 2)
    for node, wall in zip(world.nodes, (-5.0, math.inf), strict=True):
        node.machine._wall = functools.partial(float, wall)
    world.join()
    assert members(world) == [0, 1]
    told = [record.since for record in world.log.values() if record]
    assert set(told) <= {0.0, 2.0**37}
    assert decode(Document, encode(world.document), "It") == world.document


def test_a_last_call_of_days_is_told_as_one_of_a_day():
    world = World(1, 1, 2, last_call=1e6)
    world.join()
    assert world.document.leader.last_call == 86400.0
    assert decode(Document, encode(world.document), "It") == world.document
    roster = world.leader.machine.leading.roster
    held = decide(roster, world.document, 0.0, 0.0, math.inf)
    assert isinstance(held, Hold)
    assert held.reason is Waiting.LAST_CALL
