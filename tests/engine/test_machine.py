"""The protocol as a pure object: every step of a node's life, and what must never happen."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv import RendezvousStateError
from rdzv.dynamic_rendezvous.document import Change, Leader, Record
from rdzv.dynamic_rendezvous.leader import Settings, amend
from rdzv.dynamic_rendezvous.leadership import Entry, Standing, Waiting, assign_ranks
from rdzv.dynamic_rendezvous.messages import (
    Beat,
    Close,
    Departed,
    DocumentRead,
    Enter,
    Forget,
    Interrupted,
    Join,
    Latched,
    Leave,
    Look,
    Lost,
    PieceRead,
    Read,
    ReadPiece,
    ReadRoster,
    Refusal,
    Refused,
    SwapDocument,
    Swapped,
    Tick,
    TookOver,
    Withdraw,
    Withdrawn,
)
from rdzv.dynamic_rendezvous.phases import TRANSITIONS, IllegalTransition, Phase

from .world import DETECTION, Node, World, formed, members, rejoin

# ---------------------------------------------------------------- a life, step by step


def at(phase: Phase) -> tuple[World, Node]:
    """A world and a node of it in ``phase``."""
    if phase is Phase.SPARE:
        world = formed(2, 2, 2)
        node = world.add()
        world.join(node)
    elif phase is Phase.MEMBER:
        world = formed(2, 2, 2)
        node = world.nodes[1]
    else:
        # Where places are in the document nobody is seen while it looks for its own.
        world = World(2, 2, 2, listed=0 if phase is Phase.RANKING else 64)
        node = world.nodes[1]
        if phase is not Phase.IDLE:
            world.nodes[0].holds_master = phase is Phase.BOOTSTRAPPING
            world.join(world.nodes[0])
            stops = {Phase.ATTACHING: SwapDocument, Phase.ENTERING: Enter, Phase.RANKING: ReadPiece}
            node.breaks_at = stops.get(phase)
            if phase is Phase.WAITING:
                world.nodes[0].kill()
            world.join(node)
    assert node.phase is phase
    return world, node


def join_again(phase: Phase) -> World:
    world, node = at(phase)
    node.tell(Withdraw(accept=False))
    world.join(node)
    return world


def join_a_closed_run() -> World:
    world, _ = at(Phase.IDLE)
    world.nodes[0].tell(Close())
    world.join(world.nodes[1])
    return world


def withdraw(phase: Phase) -> World:
    world, node = at(phase)
    node.tell(Withdraw(accept=False))
    return world


def leave(phase: Phase) -> World:
    world, node = at(phase)
    node.tell(Leave())
    return world


def interrupt(phase: Phase) -> World:
    world, node = at(phase)
    node.reconnect()
    world.settle()
    return world


def a_place_becomes_free() -> World:
    world, _ = at(Phase.SPARE)
    world.nodes[1].tell(Leave())
    world.settle()
    return world


def a_spare_misses_that_a_place_became_free() -> World:
    world, _spare = at(Phase.SPARE)
    late = world.add()
    world.join(late)
    late.paused = True
    world.nodes[1].tell(Leave())
    world.join(world.nodes[0])
    late.resume()
    world.settle()
    return world


def one_too_many() -> World:
    world = World(3, 2, 2)
    world.nodes[1].kill()
    world.nodes[2].kill()
    for node in world.nodes:
        node.tell(Join())
        node.machine.document = world.document
    world.nodes[1].dead = world.nodes[2].dead = False
    world.settle()
    return world


def rank_0_dies_before_its_address() -> World:
    world, node = at(Phase.BOOTSTRAPPING)
    world.nodes[0].kill()
    world.advance(DETECTION)
    assert node.phase is Phase.BOOTSTRAPPING  # Without another node there can be no round.
    world.join(world.add())
    assert node.joined.round == 2
    assert Phase.BOOTSTRAPPING not in {n.phase for n in world.nodes if n.runs}
    return world


def restart() -> World:
    world = formed(2, 2, 2)
    world.join()
    return world


SCENARIOS = {
    (Phase.IDLE, Phase.ATTACHING): lambda: formed(2, 2, 2),
    (Phase.IDLE, Phase.ENTERING): lambda: join_again(Phase.WAITING),
    (Phase.ATTACHING, Phase.ENTERING): lambda: formed(2, 2, 2),
    (Phase.ATTACHING, Phase.IDLE): join_a_closed_run,
    (Phase.ENTERING, Phase.WAITING): lambda: formed(2, 2, 2),
    (Phase.ENTERING, Phase.ENTERING): lambda: interrupt(Phase.ENTERING),
    (Phase.ENTERING, Phase.IDLE): lambda: withdraw(Phase.ENTERING),
    (Phase.WAITING, Phase.SPARE): lambda: at(Phase.SPARE)[0],
    (Phase.SPARE, Phase.WAITING): a_place_becomes_free,
    (Phase.WAITING, Phase.RANKING): lambda: formed(2, 2, 2),
    (Phase.SPARE, Phase.RANKING): a_spare_misses_that_a_place_became_free,
    (Phase.RANKING, Phase.WAITING): one_too_many,
    (Phase.RANKING, Phase.BOOTSTRAPPING): lambda: formed(2, 2, 2),
    (Phase.BOOTSTRAPPING, Phase.MEMBER): lambda: formed(2, 2, 2),
    (Phase.WAITING, Phase.ENTERING): lambda: interrupt(Phase.WAITING),
    (Phase.SPARE, Phase.ENTERING): lambda: interrupt(Phase.SPARE),
    (Phase.RANKING, Phase.ENTERING): lambda: interrupt(Phase.RANKING),
    (Phase.BOOTSTRAPPING, Phase.ENTERING): rank_0_dies_before_its_address,
    (Phase.MEMBER, Phase.ENTERING): restart,
    (Phase.MEMBER, Phase.IDLE): lambda: withdraw(Phase.MEMBER),
    (Phase.WAITING, Phase.IDLE): lambda: withdraw(Phase.WAITING),
    (Phase.SPARE, Phase.IDLE): lambda: withdraw(Phase.SPARE),
    (Phase.RANKING, Phase.IDLE): lambda: withdraw(Phase.RANKING),
    (Phase.BOOTSTRAPPING, Phase.IDLE): lambda: withdraw(Phase.BOOTSTRAPPING),
} | {
    (phase, Phase.LEFT): lambda phase=phase: leave(phase)
    for phase in Phase
    if phase is not Phase.LEFT
}


@pytest.mark.parametrize("step", TRANSITIONS, ids=lambda step: f"{step[0].name}-{step[1].name}")
def test_every_step_of_the_table_is_taken_by_some_history(step):
    world = SCENARIOS[step]()
    assert step in [taken for node in world.nodes for taken in node.steps]


def test_a_step_that_is_not_in_the_table_tells_what_led_there():
    world = formed(2, 2, 2)
    machine = world.nodes[0].machine
    with pytest.raises(IllegalTransition) as caught:
        machine._move(Phase.SPARE)
    text = str(caught.value)
    assert "MEMBER to SPARE" in text
    assert "Join; IDLE->ATTACHING" in text
    assert "BOOTSTRAPPING->MEMBER" in text


def test_nothing_leads_out_of_a_run_that_was_left():
    assert not [step for step in TRANSITIONS if step[0] is Phase.LEFT]
    _world, node = at(Phase.WAITING)
    node.tell(Leave())
    node.tell(Join())
    assert node.told(Refused) == [Refused(Refusal.LEFT)]
    node.tell(Leave())
    assert node.told(Departed) == [Departed(), Departed()]


# ---------------------------------------------------------------- forming


def test_a_full_round_completes_at_once_with_the_same_facts_for_all():
    world = World(4, 2, 4)
    world.join()
    assert [n.joined.rank for n in world.nodes] == [0, 1, 2, 3]
    assert {(n.joined.round, n.joined.size) for n in world.nodes} == {(1, 4)}
    assert {n.joined.master.host for n in world.nodes} == {"host0"}
    assert len(world.rounds[1]) == 4


def test_a_run_of_one_node_needs_nobody():
    world = World(1, 1, 1)
    world.join()
    assert world.nodes[0].joined.size == 1


def test_below_min_nodes_nothing_completes_however_long_it_takes():
    world = World(1, 2, 4)
    world.join()
    world.advance(1000)
    assert world.nodes[0].phase is Phase.WAITING
    assert world.leader.machine.leading.holding is Waiting.MINIMUM


def test_an_elastic_round_waits_for_the_last_call():
    world = World(3, 2, 4)
    world.join()
    world.advance(4.9)
    assert world.rounds == {}
    assert world.leader.machine.leading.holding is Waiting.LAST_CALL
    world.advance(0.2)
    assert len(world.rounds[1]) == 3


def test_arrivals_do_not_prolong_the_last_call():
    world = World(2, 2, 4)
    world.join()
    world.advance(4.0)
    world.join(world.add())
    world.advance(1.1)
    assert len(world.rounds[1]) == 3


def test_the_last_call_starts_anew_when_too_few_are_left_in_between():
    world = World(2, 2, 4)
    world.join()
    world.advance(4.0)
    world.nodes[1].tell(Withdraw(accept=True))
    world.settle()
    world.join(world.nodes[1])
    world.advance(4.5)
    assert world.rounds == {}
    world.advance(1.0)
    assert len(world.rounds[1]) == 2


def test_only_one_of_many_that_come_first_together_creates_the_run():
    world = World(8, 8, 8)
    for node in world.nodes:
        node.pauses_at = SwapDocument
        node.tell(Join())
    for node in world.nodes:
        node.resume()
    world.settle()
    assert len(world.rounds[1]) == 8
    assert sum(len(node.told(TookOver)) for node in world.nodes) == 1


def test_all_that_come_back_form_the_next_round_with_the_same_ranks():
    world = formed(4, 2, 4)
    world.join()
    assert [n.joined.rank for n in world.nodes] == [0, 1, 2, 3]
    assert {n.joined.round for n in world.nodes} == {2}
    assert {n.joined.gone for n in world.nodes} == {0}


def test_every_round_has_a_workers_store_of_its_own():
    world = formed(2, 2, 2)
    for _ in range(3):
        world.join()
    masters = {joined.master for members in world.rounds.values() for joined in members.values()}
    assert len(masters) == len(world.rounds) == 4


def test_one_participant_that_comes_back_brings_all_others_back_by_the_latch():
    world = formed(3, 2, 4)
    world.join(world.nodes[2])
    assert [n.machine.latch is not None for n in world.nodes] == [True, True, False]
    assert world.nodes[0].told(Latched) == [Latched("1 node came back", Change(returned=1))]
    rejoin(world)
    world.advance(6)
    assert len(world.rounds[2]) == 3


def test_no_round_completes_before_every_living_participant_has_come_back():
    world = formed(4, 2, 4)
    world.join(*world.nodes[:3])
    world.advance(60)
    assert set(world.rounds) == {1}
    assert world.leader.machine.leading.holding is Waiting.RETURN


# ---------------------------------------------------------------- newcomers and spares


def test_a_newcomer_that_fits_is_told_to_all_and_taken_in():
    world = formed(2, 2, 3)
    late = world.add()
    world.join(late)
    told = Latched("1 node waiting to join", Change(arrived=1))
    assert [n.told(Latched) for n in world.nodes[:2]] == [[told]] * 2
    assert late.phase is Phase.WAITING
    rejoin(world)
    assert members(world) == [0, 1, 2]


def test_the_latch_stays_even_if_its_cause_has_gone():
    world = formed(2, 2, 3)
    late = world.add()
    world.join(late)
    late.tell(Withdraw(accept=True))
    world.advance(60)
    assert all(n.machine.latch for n in world.nodes[:2])
    rejoin(world)
    world.advance(6)
    assert members(world) == [0, 1]
    assert not any(n.machine.latch for n in world.nodes)


def test_a_spare_restarts_nobody():
    world, spare = at(Phase.SPARE)
    world.advance(100)
    assert spare.phase is Phase.SPARE
    assert not any(n.told(Latched) for n in world.nodes)
    assert set(world.rounds) == {1}


def test_a_spare_takes_the_place_of_a_dead_participant():
    world, spare = at(Phase.SPARE)
    world.nodes[1].kill()
    world.advance(DETECTION)
    rejoin(world)
    assert members(world) == [0, 2]
    assert spare.joined.gone == 1


def test_those_who_come_back_are_admitted_before_those_who_wait():
    world, spare = at(Phase.SPARE)
    world.join(*world.nodes[:2])
    assert members(world) == [0, 1]
    world.settle()
    assert spare.phase is Phase.SPARE


def test_a_participant_that_comes_back_to_a_full_round_is_no_spare():
    world = formed(2, 2, 2)
    world.nodes[0].paused = True
    world.join(world.nodes[1])
    assert world.nodes[1].phase is Phase.WAITING
    world.add().tell(Close())
    world.settle()
    assert world.nodes[1].told(Refused) == [Refused(Refusal.CLOSED)]


def test_a_dead_spare_is_not_missed():
    world, spare = at(Phase.SPARE)
    spare.kill()
    world.advance(DETECTION)
    assert not any(n.told(Latched) for n in world.nodes)
    world.nodes[1].tell(Leave())
    world.settle()
    rejoin(world)
    world.advance(30)
    assert set(world.rounds) == {1}


@pytest.mark.parametrize("attempts", [2, 3, 5])
def test_who_waits_on_time_takes_one_ticket_only(attempts):
    world = formed(2, 2, 2, attempts=attempts)
    spare = world.add()
    world.lag = 0.001
    world.join(spare)
    world.advance(60)
    assert spare.requests["Enter"] == 1


# ---------------------------------------------------------------- losses


def test_a_lost_participant_is_told_to_the_survivors_which_form_the_next_round():
    world = formed(3, 2, 3)
    world.nodes[2].kill()
    world.advance(DETECTION)
    survivors = world.nodes[:2]
    assert [n.told(Latched) for n in survivors] == [[Latched("1 node lost", Change(lost=1))]] * 2
    assert [lost.node.node for lost in world.nodes[0].told(Lost)] == ["node2"]
    assert world.nodes[0].told(Lost)[0].silent >= 3.0
    rejoin(world)
    world.advance(6)
    assert members(world) == [0, 1]
    assert {n.joined.gone for n in survivors} == {1}


def test_where_no_round_is_possible_without_the_lost_the_others_work_on():
    world = formed(2, 2, 2)
    world.nodes[1].kill()
    world.advance(60)
    assert world.nodes[0].machine.latch is None
    assert world.leader.machine.leading.holding is Waiting.SHORT
    world.join(world.add())
    rejoin(world)
    assert members(world) == [0, 2]


def test_a_departed_participant_is_told_even_where_too_few_are_left():
    world = formed(2, 2, 2)
    world.nodes[1].tell(Leave())
    world.settle()
    assert world.nodes[0].told(Latched) == [Latched("1 node left", Change(left=1))]


def test_a_dead_leader_is_replaced_by_exactly_one_and_the_round_re_forms():
    world = formed(6, 2, 6)
    world.nodes[0].kill()
    world.advance(2 * DETECTION)
    took = [n.number for n in world.nodes[1:] if n.told(TookOver)]
    assert len(took) == 1
    assert world.leader.number == took[0]
    assert world.leader.told(TookOver) == [TookOver("node0")]
    rejoin(world)
    world.advance(6)
    assert sorted(members(world)) == [1, 2, 3, 4, 5]


def test_a_leader_that_dies_with_those_nearest_to_it_is_replaced_by_another():
    world = formed(6, 2, 6)
    for node in world.nodes[:3]:
        node.kill()
    world.advance(4 * DETECTION)
    assert sum(len(n.told(TookOver)) for n in world.nodes[3:]) == 1
    rejoin(world)
    world.advance(6)
    assert sorted(members(world)) == [3, 4, 5]


def test_a_leader_that_dies_before_the_first_round_is_replaced():
    world = World(3, 2, 4)
    world.join()
    world.nodes[0].kill()
    world.advance(3 * DETECTION)
    assert sorted(members(world)) == [1, 2]


@pytest.mark.parametrize("came_back", [0, 1, 3, 5])
def test_a_leader_is_missed_within_the_detection_time_whatever_the_others_are_doing(came_back):
    world = formed(6, 2, 6)
    world.join(*world.nodes[1 : 1 + came_back])
    world.nodes[0].kill()
    world.advance(world.settings.interval * (world.settings.attempts + 1))
    assert sum(len(n.told(TookOver)) for n in world.nodes[1:]) == 1
    assert all(n.machine.latch for n in world.nodes[1 + came_back :])


def test_a_leader_that_dies_with_its_first_round_is_missed_within_the_detection_time():
    world = formed(6, 2, 6)
    world.nodes[0].kill()
    world.advance(world.settings.interval * (world.settings.attempts + 1))
    assert sum(len(n.told(TookOver)) for n in world.nodes[1:]) == 1


def test_a_leader_that_leaves_hands_over_in_one_write():
    world = formed(3, 2, 3)
    before = world.version
    world.nodes[0].tell(Leave())
    assert world.version == before + 1
    assert world.leader is world.nodes[1]
    assert world.nodes[0].told(Departed)
    world.settle()
    assert world.nodes[1].told(TookOver) == [TookOver(None)]
    rejoin(world)
    world.advance(6)
    assert members(world) == [1, 2]


def test_a_leader_whose_time_is_up_hands_over_before_the_first_round():
    world = World(2, 3, 3)
    world.join()
    world.advance(2)
    world.nodes[0].tell(Withdraw(accept=True))
    assert world.nodes[0].told(Withdrawn)
    assert world.leader is world.nodes[1]
    world.settle()
    world.join(world.nodes[0], world.add())
    assert sorted(members(world)) == [0, 1, 2]


def test_the_last_to_leave_leaves_the_lead_to_whoever_comes():
    world = World(1, 1, 1)
    world.join()
    world.nodes[0].tell(Leave())
    assert world.leader is None
    late = world.add()
    world.join(late)
    world.advance(DETECTION)
    assert late.joined.round == 2
    assert world.leader is late


def test_a_node_that_leaves_before_the_round_completes_is_not_in_it():
    world = World(2, 3, 3)
    world.join()
    world.nodes[1].tell(Leave())
    world.join(world.add())
    assert world.rounds == {}
    world.join(world.add())
    assert members(world) == [0, 2, 3]


# ---------------------------------------------------------------- pauses and outages


def test_a_participant_that_was_taken_for_dead_finds_the_higher_round_and_joins_again():
    world = formed(3, 2, 3)
    zombie = world.nodes[2]
    zombie.paused = True
    world.advance(DETECTION)
    rejoin(world)
    world.advance(6)
    assert members(world) == [0, 1]
    zombie.resume()
    world.settle()
    assert zombie.told(Latched) == [Latched("round 2 was completed without this node")]
    rejoin(world)
    assert members(world) == [0, 1, 2]
    assert zombie.joined.round == 3


def test_a_participant_that_wakes_before_the_next_round_restarts_with_the_others():
    world = formed(3, 2, 3)
    world.nodes[2].paused = True
    world.advance(DETECTION)
    world.nodes[2].resume()
    world.settle()
    rejoin(world)
    assert members(world) == [0, 1, 2]


def test_a_waiting_node_that_was_forgotten_while_it_slept_takes_another_ticket():
    world, spare = at(Phase.SPARE)
    spare.paused = True
    world.advance(DETECTION)
    spare.resume()
    world.advance(0.0)
    assert spare.requests["Enter"] == 2
    world.nodes[1].kill()
    world.advance(DETECTION)
    rejoin(world)
    assert members(world) == [0, 2]


def test_a_node_that_was_forgotten_while_it_entered_takes_another_ticket():
    world = World(3, 2, 2)
    world.join(world.nodes[0])
    sleeper = world.nodes[1]
    perform = world.perform

    def slow(node, action):
        answer = perform(node, action)
        if node is sleeper and isinstance(action, Enter):
            world.perform = perform
            node.paused = True
            world.advance(DETECTION)
            node.paused = False
        return answer

    world.perform = slow
    world.join(sleeper)
    world.advance(DETECTION)
    assert members(world) == [0, 1]


def test_a_leader_that_wakes_from_a_pause_evicts_nobody():
    world = formed(2, 2, 2)
    leader = world.nodes[0]
    leader.paused = True
    world.nodes[1].paused = True
    world.now += 1000
    leader.resume()
    world.advance(2.5)
    world.nodes[1].resume()
    world.advance(60)
    assert not any(n.told(Lost) or n.told(Latched) for n in world.nodes)


def test_a_leader_that_was_replaced_while_it_slept_follows():
    world = formed(3, 2, 3)
    sleeper = world.nodes[0]
    sleeper.paused = True
    world.advance(2 * DETECTION)
    successor = world.leader
    assert successor is not sleeper
    sleeper.resume()
    world.settle()
    assert sleeper.machine.leading is None
    assert not sleeper.told(Lost)
    rejoin(world)
    world.advance(6)
    assert members(world) == [0, 1, 2]
    assert world.leader is successor


def test_a_new_leader_that_sleeps_before_it_reads_the_roster_is_replaced_and_lives():
    world = formed(4, 2, 4)
    for node in world.nodes[1:]:
        node.pauses_at = ReadRoster
    world.nodes[0].kill()
    while not any(node.paused for node in world.nodes):
        world.advance(0.1)
    (sleeper,) = (node for node in world.nodes if node.paused)
    for node in world.nodes[1:]:
        node.pauses_at = None
    world.advance(3 * DETECTION)
    rejoin(world)
    world.advance(10)
    assert world.document.round == 2
    sleeper.resume()
    world.settle()
    rejoin(world)
    world.advance(6)
    assert sorted(members(world)) == [1, 2, 3]


def test_a_store_that_stands_still_for_long_costs_nobody_the_place():
    world = formed(4, 2, 4)
    for node in world.nodes:
        node.paused = True
    world.now += 500
    for node in world.nodes:
        node.resume()
    world.advance(60)
    assert not any(n.told(Lost) or n.told(Latched) for n in world.nodes)
    assert not any(n.told(TookOver) for n in world.nodes[1:])


def test_an_outage_of_the_store_evicts_nobody():
    world = formed(4, 2, 4)
    world.down = True
    world.advance(500)
    assert all(n.broken for n in world.nodes)
    world.down = False
    for node in world.nodes:
        world.advance(0.3)
        node.reconnect()
    world.advance(60)
    assert not any(n.told(Lost) or n.told(Latched) for n in world.nodes)
    assert len(world.rounds) == 1


def test_a_round_that_was_being_formed_when_the_store_went_away_is_formed_after():
    world = World(3, 3, 3)
    world.join(*world.nodes[:2])
    world.down = True
    world.advance(30)
    world.down = False
    for node in world.nodes[:2]:
        node.reconnect()
    world.join(world.nodes[2])
    assert sorted(members(world)) == [0, 1, 2]


def test_a_swap_whose_outcome_is_unknown_is_looked_up():
    world = formed(2, 2, 3)
    leader = world.nodes[0]
    perform = world.perform

    def lossy(node, action):
        answer = perform(node, action)
        if node is leader and isinstance(action, SwapDocument):
            node.broken = True
            node.left = []
            return None
        return answer

    world.perform = lossy
    world.join(world.add())
    world.perform = perform
    assert leader.broken
    leader.reconnect()
    world.settle()
    rejoin(world)
    world.advance(6)
    assert sorted(members(world)) == [0, 1, 2]


# ---------------------------------------------------------------- holes


def test_a_ticket_without_a_record_stops_nobody():
    world = World(3, 2, 3)
    world.join(world.nodes[0])
    world.tail += 1
    world.join(*world.nodes[1:])
    assert members(world) == [0, 1, 2]


def test_an_old_hole_is_buried_and_forgotten_with_its_neighbours():
    world = World(3, 2, 3)
    world.join(world.nodes[0])
    world.tail += 1
    world.join(*world.nodes[1:])
    world.advance(2 * DETECTION)
    assert world.log[2] is False
    world.join()
    assert members(world) == [0, 1, 2]
    world.advance(DETECTION)
    assert world.document.upto == world.tail
    assert set(world.log.values()) == {False}


def test_a_hole_outlives_a_change_of_leaders_and_moves_nobody():
    world = World(3, 2, 3)
    world.join(world.nodes[0])
    world.tail += 1
    world.join(*world.nodes[1:])
    world.nodes[0].kill()
    world.advance(2 * DETECTION)
    rejoin(world)
    world.advance(30)
    assert members(world) == [1, 2]
    assert len(world.rounds) == 2


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.LEFT])
def test_a_node_in_any_phase_can_close_the_run_and_closed_is_final(phase):
    world, node = at(phase)
    if node.broken:
        node.reconnect()
    node.tell(Close())
    world.settle()
    assert world.document.closed
    version = world.version
    late = world.add()
    world.join(late)
    assert late.told(Refused) == [Refused(Refusal.CLOSED)]
    world.advance(60)
    assert world.document.closed
    assert world.version == version


def test_a_close_that_races_with_a_completion_closes_the_run_all_the_same():
    world = World(3, 2, 2)
    world.join(world.nodes[0])
    world.nodes[0].pauses_at = SwapDocument
    world.nodes[1].tell(Join())
    world.settle()
    assert world.nodes[0].paused
    world.nodes[2].tell(Close())
    world.nodes[0].resume()
    world.settle()
    assert world.rounds == {}
    assert world.document.closed
    assert world.nodes[0].told(Refused) == world.nodes[1].told(Refused)
    assert world.nodes[1].told(Refused) == [Refused(Refusal.CLOSED)]


def test_a_join_that_races_with_a_close_is_refused_or_completes():
    world = World(2, 2, 2)
    world.join(world.nodes[0])
    world.nodes[1].pauses_at = Enter
    world.nodes[1].tell(Join())
    world.nodes[0].tell(Close())
    world.nodes[1].resume()
    world.settle()
    assert world.nodes[1].told(Refused) == [Refused(Refusal.CLOSED)]
    assert world.nodes[1].phase is Phase.IDLE


def test_of_a_closed_run_a_spare_is_told_that_it_was_surplus_and_a_member_nothing():
    world, spare = at(Phase.SPARE)
    world.nodes[0].tell(Close())
    world.settle()
    assert spare.told(Refused) == [Refused(Refusal.SURPLUS)]
    assert not world.nodes[1].told(Refused)
    assert world.nodes[1].machine.closed


def test_a_participant_that_comes_back_to_a_closed_run_is_refused_and_beats_no_more():
    world = formed(2, 2, 2)
    world.nodes[0].tell(Close())
    world.settle()
    member = world.nodes[1]
    world.join(member)
    assert member.told(Refused) == [Refused(Refusal.CLOSED)]
    beats = member.requests["Beat"]
    world.advance(60)
    assert member.requests["Beat"] == beats
    assert world.log[world.tail].kind == "leave"


def test_two_that_close_at_once_both_succeed():
    world = formed(2, 2, 2)
    world.nodes[1].pauses_at = SwapDocument
    world.nodes[1].tell(Close())
    world.nodes[0].tell(Close())
    world.nodes[1].resume()
    assert all(n.machine.closed for n in world.nodes)


def test_a_close_that_the_connection_interrupted_is_carried_out_after():
    world = formed(2, 2, 2)
    world.nodes[1].breaks_at = SwapDocument
    world.nodes[1].tell(Close())
    assert not world.document.closed
    world.nodes[1].reconnect()
    assert world.document.closed


def test_a_run_can_be_closed_before_anybody_has_joined_it():
    world = World(2, 2, 2)
    world.nodes[0].tell(Close())
    assert world.document.closed
    world.join(world.nodes[1])
    assert world.nodes[1].told(Refused) == [Refused(Refusal.CLOSED)]


def test_looking_at_a_run_that_does_not_exist_creates_nothing():
    world = World(1, 1, 1)
    world.nodes[0].tell(Look())
    assert world.document is None
    assert world.nodes[0].phase is Phase.IDLE


# ---------------------------------------------------------------- rank 0 and time


def test_the_death_of_rank_0_before_its_address_moves_the_same_join_to_the_next_round():
    world = World(3, 2, 3)
    for node in world.nodes:
        node.holds_master = True
    world.join()
    assert {n.phase for n in world.nodes} == {Phase.BOOTSTRAPPING}
    world.nodes[0].kill()
    for node in world.nodes[1:]:
        node.holds_master = False
    world.advance(20)
    assert sorted(members(world)) == [1, 2]
    assert [n.joined.round for n in world.nodes[1:]] == [2, 2]
    assert 1 not in world.rounds


def test_a_withdrawal_takes_a_round_that_has_completed_where_it_may():
    world, node = at(Phase.BOOTSTRAPPING)
    node.tell(Withdraw(accept=True))
    assert node.phase is Phase.BOOTSTRAPPING
    world.nodes[0].holds_master = False
    world.settle()
    assert node.joined.round == 1
    assert not node.told(Withdrawn)


def test_a_withdrawal_that_accepts_nothing_takes_a_member_out():
    world, node = at(Phase.MEMBER)
    node.tell(Withdraw(accept=False))
    assert node.told(Withdrawn)
    world.settle()
    assert world.nodes[0].told(Latched) == [Latched("1 node left", Change(left=1))]


def test_a_withdrawal_in_the_middle_of_entering_takes_back_what_may_have_been_written():
    world, node = at(Phase.ENTERING)
    # The record came, its answer did not.
    world.tail += 1
    world.log[world.tail] = msgspec.structs.replace(node.machine._me, kind="enter", id="lost")
    node.broken = False
    node.tell(Withdraw(accept=False))
    world.settle()
    world.advance(0.1)
    assert world.rounds == {}


# ---------------------------------------------------------------- what cannot be


def test_nodes_that_disagree_about_the_limits_of_a_run_are_told_both():
    world = World(1, 2, 4)
    world.join()
    other = world.add(Settings(3, 4, 5.0, 1.0, 3))
    with pytest.raises(RendezvousStateError) as caught:
        other.tell(Join())
    for text in ("min_nodes=3", "max_nodes=4", "min_nodes=2", "run id"):
        assert text in str(caught.value)
    assert world.tail == 1


def test_a_closer_need_not_know_the_limits_of_a_run():
    world = World(1, 2, 4)
    world.join()
    world.add(Settings(1, 1, 5.0, 1.0, 3)).tell(Close())
    assert world.document.closed


def test_another_epoch_is_another_run_and_a_state_error():
    world = formed(2, 2, 2)
    world.document = msgspec.structs.replace(world.document, epoch="another", version=50)
    with pytest.raises(RendezvousStateError, match=r"another one now.*restarted without its data"):
        world.settle()


def test_a_store_that_lost_the_run_is_a_state_error():
    world = formed(2, 2, 2)
    world.document = None
    with pytest.raises(RendezvousStateError, match="no longer knows this run"):
        world.nodes[0].reconnect()


def test_an_assignment_to_somebody_else_is_a_state_error():
    world, node = at(Phase.RANKING)
    other = world.pieces[world.document.nonce][0]
    other[2] = other[1]
    node.machine.phase = Phase.WAITING
    node.machine._entered_round = 0
    with pytest.raises(RendezvousStateError, match="which cannot be"):
        node.do([Read()])


def reads_of_pieces(world: World) -> list[int]:
    """How often each node has read its piece."""
    return [node.requests["ReadPiece"] for node in world.nodes]


def test_nodes_of_a_small_round_find_their_places_in_the_document():
    world = World(4, 4, 4, listed=4)
    world.join()
    assert members(world) == [0, 1, 2, 3]
    spare = world.add()
    world.join(spare)
    assert spare.phase is Phase.SPARE
    assert reads_of_pieces(world) == [0] * 5


def test_nodes_of_a_large_round_read_a_piece_each():
    world = World(4, 4, 4, listed=3)
    world.join()
    assert members(world) == [0, 1, 2, 3]
    assert reads_of_pieces(world) == [0, 1, 1, 1]  # The leader knows.


def test_a_node_that_is_in_no_place_of_the_document_waits_on():
    world = World(3, 2, 2)
    world.join(*world.nodes[:1])
    world.nodes[1].pauses_at = world.nodes[2].pauses_at = Enter
    world.join(*world.nodes[1:])
    for node in world.nodes[1:]:
        node.resume()
    world.settle()
    assert sorted(node.phase.name for node in world.nodes) == ["MEMBER", "MEMBER", "SPARE"]
    assert reads_of_pieces(world) == [0] * 3


def test_who_looks_for_its_place_once_the_round_is_reopened_reads_its_piece():
    world = World(3, 3, 3)
    leader, other, late = world.nodes
    world.join(leader, other)
    perform = world.perform

    def pausing(node, action):
        answer = perform(node, action)
        if node is late and isinstance(action, Enter):
            late.paused = True
        return answer

    world.perform = pausing
    world.join(late)
    assert len(world.document.places.split()) == 3
    other.tell(Leave())
    world.settle()
    assert world.document.change is not None
    assert not world.document.places
    world.perform = perform
    assert reads_of_pieces(world) == [0] * 3
    late.resume()
    world.settle()
    assert reads_of_pieces(world) == [0, 0, 1]
    assert late.machine.rank == 2
    assert late.machine.latch == str(world.document.change)


@pytest.mark.parametrize("listed", [0, 64])
def test_rank_0_that_does_not_lead_tells_of_its_store_once(listed):
    world = formed(3, 3, 3, listed=listed)
    heir = world.nodes[1].machine
    world.document = amend(world.document, "w", leader=Leader(heir.node, 0.5, 1, heir._slot))
    world.settle()
    world.advance(1.0)
    assert world.leader is world.nodes[1]
    first = world.nodes[0]
    first.requests.clear()
    world.join(world.nodes[2])
    world.join(first)  # Its store is ready before its rank.
    world.join(world.nodes[1])
    world.settle()
    assert [node.machine.rank for node in world.nodes] == [0, 1, 2]
    assert first.requests["SwapDocument"] == 1
    assert {node.phase for node in world.nodes} == {Phase.MEMBER}


def test_a_place_in_the_document_of_somebody_else_is_a_state_error():
    world = formed(2, 2, 2)
    node = world.nodes[1]
    first, _ = world.document.places.split()
    world.document = msgspec.structs.replace(world.document, places=f"{first} 2zzzz")
    node.machine.phase = Phase.WAITING
    node.machine._entered_round = 0
    with pytest.raises(RendezvousStateError, match="'zzzz'.*which cannot be"):
        node.machine._follow(world.document, world.now)


def test_a_part_of_an_assignment_that_is_missing_is_a_state_error():
    world = formed(2, 2, 2)
    world.pieces.clear()
    with pytest.raises(RendezvousStateError, match="lost a part of its data"):
        world.nodes[0].tell(Interrupted())


# ---------------------------------------------------------------- ranks


def entry(number: int, rank: int) -> Entry:
    record = Record("enter", f"n{number}", "host", 1, number, 1.0, "")
    standing = Standing.NEW if rank < 0 else Standing.BACK
    return Entry(number + 1, rank, record, standing)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 1, 0], [2, 1, 0]),
        ([-1, 0, 1], [2, 0, 1]),
        ([1, 2, -1], [0, 2, 1]),
        ([0, 2, -1], [0, 2, 1]),
        ([3, -1, -1], [0, 1, 2]),
        ([1, 3, 5], [0, 1, 2]),
        ([-1, -1], [0, 1]),
        ([], []),
    ],
)
def test_who_stays_keeps_its_rank_where_it_can(before, after):
    entries = [entry(number, rank) for number, rank in enumerate(before)]
    ranks = {e.node: rank for rank, e in enumerate(assign_ranks(entries))}
    assert [ranks[e.node] for e in entries] == after


old_ranks = st.lists(st.integers(0, 40), unique=True, max_size=20)


@given(old_ranks, st.integers(0, 20), st.randoms(use_true_random=False))
def test_ranks_are_a_permutation_in_which_survivors_keep_their_order(old, newcomers, random):
    entries = [entry(n, rank) for n, rank in enumerate(old + [-1] * newcomers)]
    shuffled = list(entries)
    random.shuffle(shuffled)
    result = assign_ranks(shuffled)
    assert sorted(e.node for e in result) == sorted(e.node for e in entries)
    staying = [e.rank for e in result if e.rank >= 0]
    assert staying == sorted(old)
    fresh = [e.ticket for e in result if e.rank < 0]
    assert fresh == sorted(fresh)
    if old:
        assert result[0].rank == min(old)


@given(st.sets(st.integers(1, 40), max_size=20), st.data())
def test_gaps_are_filled_and_nobody_else_moves_where_all_gaps_can_be_filled(rest, data):
    old = sorted({0} | rest)
    size = max(old) + 1 + data.draw(st.integers(0, 5))
    newcomers = size - len(old)
    entries = [entry(n, rank) for n, rank in enumerate(old + [-1] * newcomers)]
    result = assign_ranks(entries)
    assert all(e.rank in (-1, rank) for rank, e in enumerate(result))


# ---------------------------------------------------------------- cost


def followers(world: World) -> set[int]:
    leader = world.leader
    return {sum(n.requests.values()) for n in world.nodes if n is not leader}


def test_a_round_costs_a_node_the_same_few_requests_however_many_there_are():
    costs = []
    for count in (4, 64):
        world = World(count, count, count)
        world.join()
        assert len(world.rounds[1]) == count
        first = followers(world) | {sum(world.leader.requests.values())}
        assert max(first) <= 8
        for node in world.nodes:
            node.requests.clear()
        world.nodes[-1].tell(Join())
        world.settle()
        rejoin(world)
        assert len(world.rounds[2]) == count
        second = followers(world) | {sum(world.leader.requests.values())}
        assert max(second) <= 8
        costs.append((first, second))
    assert costs[0] == costs[1]


def test_a_healthy_second_costs_at_most_one_and_a_half_requests_a_follower():
    world = formed(16, 16, 16)
    world.advance(30)
    for node in world.nodes:
        node.requests.clear()
    world.advance(1000)
    costs = [sum(n.requests.values()) / 1000 for n in world.nodes if n is not world.leader]
    near = sorted(costs)[-2:]
    assert max(sorted(costs)[:-2]) <= 1.5
    assert max(near) <= 2.1
    assert not any(n.requests.keys() & {"SwapDocument", "Forget"} for n in world.nodes)


def test_what_a_round_left_behind_is_freed_after_the_next():
    world = formed(3, 3, 3)
    for _ in range(5):
        world.join()
        world.advance(1)
    assert set(world.pieces) == {world.document.nonce}
    assert [t for t, record in world.log.items() if record] == []
    assert Forget.__name__ in world.leader.requests


# ---------------------------------------------------------------- a backend that is wrong


def refuse_swaps(world: World, times: int) -> list[SwapDocument]:
    """Have the store refuse to replace a document that nobody has touched, some times."""
    refused: list[SwapDocument] = []
    perform = world.perform

    def refusing(node, action):
        replaces = isinstance(action, SwapDocument) and action.token is not None
        if replaces and len(refused) < times:
            refused.append(action)
            return Swapped(False, world.document, world.version)
        return perform(node, action)

    world.perform = refusing
    return refused


def test_a_backend_that_never_lets_a_write_win_is_named_and_not_asked_for_ever():
    world = formed(2, 2, 3)
    refused = refuse_swaps(world, 1000)
    newcomer = world.add()
    with pytest.raises(RendezvousStateError, match="its compare-and-set does not work"):
        world.join(newcomer)
    assert len(refused) == 11


def test_a_write_that_was_refused_for_nothing_a_few_times_is_tried_again():
    world = formed(2, 2, 3)
    refused = refuse_swaps(world, 10)
    world.join(world.add())
    rejoin(world)
    assert len(refused) == 10
    assert members(world) == [0, 1, 2]


def test_a_round_after_a_failover_is_numbered_above_all_that_may_have_been_lost():
    world = formed(2, 2, 3)
    perform = world.perform
    told: set[int] = set()

    def failed_over(node, action):
        if isinstance(action, SwapDocument) and action.token is not None:
            known = node.number in told
            told.add(node.number)
            answer = perform(node, action) if known else None
            won, document = (answer.won, answer.document) if answer else (False, world.document)
            return Swapped(won, document, world.version, failovers=3)
        return perform(node, action)

    world.perform = failed_over
    world.join(world.add())
    rejoin(world)
    assert members(world) == [0, 1, 2]
    assert world.document.round == 3_000_001
    world.nodes[2].tell(Leave())
    world.settle()
    rejoin(world)
    world.advance(world.settings.last_call + 0.1)
    assert world.document.round == 3_000_002


# ---------------------------------------------------------------- taken for dead unnoticed


def test_a_node_that_waits_and_was_given_up_unnoticed_enters_again():
    """Its beats took effect early and late in their requests: silent for others, not for itself."""
    world = World(3, 2, 4, last_call=8.0, attempts=5)
    late = world.nodes[2]
    world.join()
    world.advance(2.0)
    while True:
        world.advance(max(0.0, (late.due() or 0.0) - world.now - 1e-6))
        world.now = max(world.now, late.due() or 0.0)
        actions = late.on(Tick())
        if isinstance(actions[0], Beat):
            break
        late.do(actions)
    answer = world.perform(late, actions[0])
    late.paused = True
    world.advance(3.4)
    late.do(late.on(answer))
    late.do(actions[1:])
    actions = late.on(Tick())
    assert isinstance(actions[0], Beat)
    world.advance(2.0)
    late.paused = False
    late.do(actions)
    world.advance(1.0)
    rejoin(world)
    world.advance(20.0)
    rejoin(world)
    assert members(world) == [0, 1, 2]


@pytest.mark.parametrize(("size", "enters"), [(2, True), (3, False)])
def test_a_node_that_finds_no_place_in_a_round_enters_again_where_there_was_room(size, enters):
    world = formed(2, 2, 3)
    late = world.add()
    world.join(late)
    assert late.phase is Phase.WAITING
    document = msgspec.structs.replace(
        world.document, version=9, write="w9", round=2, nonce="n2", size=size, upto=9, change=None
    )
    (read,) = (a for a in late.on(DocumentRead(document, 9)) if isinstance(a, ReadPiece))
    actions = late.on(PieceRead(read.nonce, None))
    assert any(isinstance(action, Enter) for action in actions) == enters


def test_a_withdrawal_that_broke_is_made_again():
    world = formed(2, 2, 3)
    late = world.add()
    world.join(late)
    late.breaks_at = Enter
    late.tell(Withdraw(accept=False))
    assert late.broken
    assert world.log[world.tail].kind == "enter"
    late.reconnect()
    assert world.log[world.tail].kind == "leave"
    assert late.told(Withdrawn)
    asked = len(late.asked)
    late.reconnect()
    assert [type(action) for action in late.asked[asked:]] == [Read]
