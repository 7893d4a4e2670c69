"""What a leader knows of holes, of the dead and of the living, across terms and interruptions."""

from __future__ import annotations

import msgspec
import pytest

from rdzv.dynamic_rendezvous.document import Change, Document, Leader, Member, Record
from rdzv.dynamic_rendezvous.leader import Leading, Settings
from rdzv.dynamic_rendezvous.messages import (
    DocumentRead,
    Latched,
    Leave,
    LogRead,
    Lost,
    ReadLog,
    ReadRoster,
    RosterRead,
    SwapDocument,
    TookOver,
)

from .world import DETECTION, World, formed, members, rejoin

INTERVAL = 1.0
"""Of the world's settings (seconds)."""


def record(node: str) -> Record:
    return Record("enter", node, node, 1, 0, INTERVAL, f"{node}-0")


def known(world: World) -> set[str]:
    """Whom the leader knows."""
    return set(world.leader.machine.leading.roster.entries)


# ---------------------------------------------------------------- holes


def test_a_record_that_comes_after_its_ticket_was_seen_is_noticed_within_an_interval():
    world = World(1, 2, 4)
    world.join()
    world.tail += 1
    world.settle()
    world.log[world.tail] = record("late")
    world.advance(INTERVAL + 0.01)
    assert known(world) == {"node0", "late"}


def test_the_records_behind_a_hole_are_noticed_within_an_interval_each_time():
    world = World(1, 2, 4)
    world.join()
    world.tail += 3
    world.settle()
    for ticket in (4, 3):
        world.log[ticket] = record(f"late{ticket}")
        world.advance(INTERVAL + 0.01)
        assert f"late{ticket}" in known(world)


def test_without_a_hole_the_log_is_looked_at_every_fourth_interval_only():
    world = World(1, 2, 4)
    world.join()
    world.nodes[0].requests.clear()
    world.advance(40 * INTERVAL)
    assert world.nodes[0].requests["ReadLog"] == 10


# ---------------------------------------------------------------- who was lost


def test_a_leader_that_was_interrupted_does_not_wait_for_the_dead_a_second_time():
    world = formed(3, 2, 3)
    leader = world.nodes[0]
    world.nodes[2].kill()
    world.advance(DETECTION)
    leader.broken = True
    leader.reconnect()
    rejoin(world)
    world.advance(world.settings.last_call + 0.1)
    assert members(world) == [0, 1]
    assert [lost.node.node for lost in leader.told(Lost)] == ["node2"]


def test_a_leader_that_was_interrupted_goes_on_counting_where_it_was():
    world = formed(3, 2, 3, attempts=5)
    world.nodes[2].kill()
    world.advance(3 * INTERVAL)
    world.nodes[0].broken = True
    world.nodes[0].reconnect()
    world.advance(2.5 * INTERVAL)
    assert [lost.node.node for lost in world.nodes[0].told(Lost)] == ["node2"]


def test_a_lost_node_that_beats_after_its_leader_was_interrupted_is_in_the_next_round():
    world = formed(3, 2, 3)
    world.nodes[2].paused = True
    world.advance(DETECTION)
    world.nodes[0].broken = True
    world.nodes[0].reconnect()
    world.nodes[2].resume()
    world.advance(2 * INTERVAL)
    rejoin(world)
    assert members(world) == [0, 1, 2]


def test_a_leader_that_was_interrupted_takes_nothing_over():
    world = formed(3, 2, 3)
    world.nodes[0].broken = True
    world.nodes[0].reconnect()
    world.advance(DETECTION)
    assert world.leader is world.nodes[0]
    assert len(world.nodes[0].told(TookOver)) == 1


# ---------------------------------------------------------------- handing over


def test_a_leader_that_leaves_names_none_that_has_fallen_silent():
    world = formed(3, 2, 3, attempts=6)
    world.nodes[1].kill()
    world.advance(4 * INTERVAL)
    assert not world.nodes[0].told(Lost)
    world.nodes[0].tell(Leave())
    assert world.leader is world.nodes[2]


def test_a_leader_that_has_seen_no_beat_names_nobody_and_the_nearest_takes_over_soon():
    world = World(2, 3, 3)
    world.join()
    world.nodes[0].tell(Leave())
    assert world.document.leader is None
    world.advance(INTERVAL / 4)
    assert world.leader is world.nodes[1]


def test_a_participant_next_to_an_empty_place_takes_it_soon():
    world = World(4, 4, 4)
    world.join()
    world.nodes[0].tell(Leave())
    assert world.document.leader is None
    world.advance(INTERVAL / 4)
    assert world.leader in world.nodes[1:3]


# ---------------------------------------------------------------- who waits may have died


def test_a_spare_that_died_with_the_leader_is_counted_by_nobody():
    world = formed(2, 2, 2)
    spare = world.add()
    world.join(spare)
    world.nodes[0].kill()
    spare.kill()
    world.advance(6 * DETECTION)
    survivor = world.nodes[1]
    assert survivor.told(TookOver) == [TookOver("node0")]
    assert not survivor.told(Latched)
    world.join(world.add())
    rejoin(world)
    assert members(world) == [1, 3]


def test_a_spare_that_outlives_the_leader_takes_its_place_once_it_was_seen_to_beat():
    world = formed(2, 2, 2)
    spare = world.add()
    world.join(spare)
    world.nodes[0].kill()
    while not world.nodes[1].told(TookOver):
        world.advance(0.1)
    world.advance(2 * INTERVAL)
    change = Change(lost=1, arrived=1)
    assert world.nodes[1].told(Latched) == [Latched("1 node lost, 1 node waiting to join", change)]
    rejoin(world)
    assert members(world) == [1, 2]


def test_a_leader_that_had_entered_behind_a_hole_is_lost_as_soon_as_it_is_replaced():
    world = World(3, 2, 3)
    world.tail += 1
    world.join()
    world.nodes[0].kill()
    while not world.nodes[1].told(TookOver):
        world.advance(0.1)
    assert [lost.node.node for lost in world.nodes[1].told(Lost)] == ["node0"]


@pytest.mark.parametrize("along", [1, 8])
def test_a_new_leader_completes_no_round_without_those_of_whom_it_will_hear_yet(along):
    world = World(0, 3, 6, last_call=0.01, along=along)
    for _ in range(2):
        world.join(world.add())
        world.advance(0.3)
    world.nodes[0].kill()
    for _ in range(3):
        world.join(world.add())
        world.advance(0.3)
    world.advance(2 * DETECTION)
    assert sorted(members(world)) == [1, 2, 3, 4]


def test_a_new_leader_waits_for_the_dead_among_those_who_wait_for_two_intervals_only():
    world = World(0, 2, 6, last_call=0.01)
    world.join(world.add())
    late = [world.add() for _ in range(3)]
    world.nodes[0].paused = True
    world.join(*late)
    late[2].kill()
    while not any(node.told(TookOver) for node in late):
        world.advance(0.1)
    world.advance(2 * INTERVAL)
    assert sorted(members(world)) == [1, 2]


def test_a_leader_that_was_interrupted_in_the_first_round_counts_none_that_died_meanwhile():
    world = World(2, 3, 3)
    world.join()
    world.nodes[1].kill()
    world.nodes[0].broken = True
    world.now += 60
    world.nodes[0].reconnect()
    world.join(world.add())
    world.advance(DETECTION)
    assert not world.rounds


def test_a_participant_that_came_back_and_died_with_the_leader_is_in_no_further_round():
    world = formed(3, 2, 3, last_call=0.1)
    world.join(world.nodes[2], world.nodes[1])
    for node in (world.nodes[0], world.nodes[2]):
        node.kill()
    world.join(world.add())
    world.advance(4 * DETECTION)
    assert {(j.rank, j.size) for j in world.rounds[2].values()} == {(0, 2), (1, 2)}
    assert members(world) == [1, 3]


# ---------------------------------------------------------------- slots


def test_a_node_that_beats_elsewhere_is_not_silent_although_the_counters_are_equal():
    settings = Settings(1, 2, 1.0, INTERVAL, 4)
    leading = Leading(settings, "me", lambda: "id")
    leading.on_log(LogRead([(1, record("other"))]), 0.0)
    for step in range(7):
        assert leading.on_beats({1: 5}, step * 0.5) == []
    moved = record("other")
    leading.on_log(LogRead([(2, moved)]), 3.1)
    for step in range(7):
        assert leading.on_beats({2: 5}, 3.5 + step * 0.5) == []
    assert leading.on_beats({2: 5}, 7.5) == [Lost(moved, 4.0)]


def test_a_leader_that_is_named_again_after_another_led_reads_the_roster_anew():
    world = formed(3, 2, 3)
    node = world.nodes[0]
    known_document = node.machine.document
    assert known_document is not None
    later = msgspec.structs.replace(
        known_document,
        version=known_document.version + 3,
        round=known_document.round + 1,
        write="another",
        nonce="another",
    )
    asked = node.on(DocumentRead(later, later.version))
    assert ReadRoster("another", later.chunks) in asked


# ---------------------------------------------------------------- who was silent, and came back


def term_after(silent: str) -> Leading:
    """A new leader's term: ``silent`` led before it, and has entered again in the log."""
    term = Leading(Settings(1, 2, 1.0, INTERVAL, 3), "me", lambda: "id", {silent: 2.5})
    document = Document(1, "e", 5, "w", 1, 2, Leader("me", 0.5), 1, "n", 2, upto=2, chunks=1)
    term.start(document, 0.0)
    here = [Member(1, 0, record(silent)), Member(2, 1, record("me"))]
    assert term.on_roster(RosterRead("n", here), document) == [ReadLog(2)]
    back = msgspec.structs.replace(record(silent), number=2, slot=1)
    assert term.on_log(LogRead([(3, back)]), 0.0) == []
    return term


@pytest.mark.parametrize("beats", [True, False])
def test_one_that_came_back_while_it_was_replaced_is_lost_only_if_it_does_not_beat(beats):
    term = term_after("old")
    lost = [
        action.node.node
        for look in range(6)
        for action in term.on_beats({1: 7 + (look if beats else 0)}, 0.5 * look)
        if isinstance(action, Lost)
    ]
    assert lost == ([] if beats else ["old"])


# ---------------------------------------------------------------- what nobody needs any more


def test_two_nodes_in_one_slot_are_both_missed():
    settings = Settings(1, 4, 0.5, INTERVAL, 5)
    term = Leading(settings, "me", lambda: "name")
    document = Document(
        1, "e", 5, "w", 1, 4, Leader("me", 0.5), round=1, nonce="x", size=3, upto=3, chunks=1
    )
    term.start(document, 0.0)
    members = [
        Member(ticket, ticket - 1, msgspec.structs.replace(record(name), slot=slot))
        for ticket, name, slot in ((1, "me", 1), (2, "one", 2), (3, "two", 2))
    ]
    term.on_roster(RosterRead("x", members), document)
    term.on_log(LogRead([]), 0.0)
    lost = [action for n in range(1, 20) for action in term.on_beats({1: 1, 2: 1}, n / 2)]
    assert [one.node.node for one in lost if isinstance(one, Lost)] == ["one", "two"]


def test_an_assignment_of_a_round_that_did_not_come_about_is_freed():
    world = formed(2, 2, 3)
    before = set(world.pieces)
    leader = world.leader
    newcomer = world.add()
    perform = world.perform
    touched: list[SwapDocument] = []

    def beaten(node, action):
        completes = isinstance(action, SwapDocument) and action.document.round == 2
        if completes and len(touched) < 2:
            touched.append(action)
            world.document = msgspec.structs.replace(
                world.document, version=world.version + 1, write=f"other-{len(touched)}"
            )
        return perform(node, action)

    world.perform = beaten
    world.join(newcomer)
    rejoin(world)
    world.advance(5 * INTERVAL)
    assert members(world) == [0, 1, 2]
    assert leader.machine.leading
    assert set(world.pieces) == {world.document.nonce}
    assert not before & set(world.pieces)


def test_spares_that_died_one_after_the_other_are_not_watched_for_ever():
    world = formed(1, 1, 1)
    for _ in range(20):
        spare = world.add()
        world.join(spare)
        spare.kill()
        world.advance(2 * DETECTION)
    assert len(world.leader.machine.leading.roster.watched("")) < 5


def test_a_round_completes_on_the_whole_log_and_not_on_a_part_of_it():
    world = World(3, 1, 2)
    world.join(world.nodes[0], world.nodes[1])
    world.nodes[0].kill()
    world.advance(2 * DETECTION)
    perform = world.perform

    def in_parts(node, action):
        answer = perform(node, action)
        if isinstance(answer, LogRead) and len(answer.lines) > 1:
            return LogRead(answer.lines[:1], more=True)
        return answer

    world.perform = in_parts
    world.nodes[1].reconnect()
    world.join(world.nodes[2])
    rejoin(world)
    world.advance(2 * DETECTION)
    rejoin(world)
    assert members(world) == [1, 2]
