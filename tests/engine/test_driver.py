"""Handler and driver on simulated machines, where every moment can be chosen."""

from __future__ import annotations

import random
import threading
import time
import uuid

import pytest

from rdzv import RendezvousConnectionError, RendezvousError, RendezvousTimeoutError
from rdzv.dynamic_rendezvous.document import Record, encode
from rdzv.dynamic_rendezvous.phases import Phase

from .sites import DELAY, Member, Site

MOMENT = 40 * DELAY
"""More than any chain of requests takes here (seconds)."""


@pytest.fixture
def sites():
    """Makes sites, and unwinds them."""
    made: list[Site] = []

    def make(*limits: int, **options) -> Site:
        made.append(Site(*limits, **options))
        return made[-1]

    yield make
    for site in made:
        site.end()


def formed(site: Site, count: int, **options) -> list[Member]:
    """Members of one completed round."""
    members = [site.add(**options) for _ in range(count)]
    calls = [member.join() for member in members]
    site.until(lambda: all(call.ended is not None for call in calls))
    assert sorted(call.result.rank for call in calls) == list(range(count))
    return members


def epoch(member: Member) -> str:
    document = member.machine.document
    assert document is not None
    return document.epoch


def put_record(site: Site, member: Member, ticket: int) -> str:
    """Write the record of a node that exists only in the store; its name."""
    name = f"ghost{ticket}"
    record = Record("enter", name, name, 1, 0, site.interval, f"{name}-0")
    site.server.put(("record", epoch(member), ticket), encode(record))
    site.server.wake(("tail", epoch(member)))
    return name


def take_ticket(site: Site, member: Member) -> int:
    """Take a ticket whose record does not come."""
    key = ("tail", epoch(member))
    site.server.put(key, (site.server.get(key) or 0) + 1)
    return int(site.server.get(key))


def knows(leader: Member) -> set[str]:
    leading = leader.machine.leading
    return set() if leading is None else set(leading.roster.entries)


# ---------------------------------------------------------------- the log


def test_a_record_that_comes_a_moment_after_its_ticket_was_seen_is_noticed_in_a_moment(sites):
    site = sites(3, 4)
    leader = site.add()
    leader.join()
    site.until(lambda: len(knows(leader)) == 1)
    first, second = take_ticket(site, leader), take_ticket(site, leader)
    early = put_record(site, leader, first)
    site.until(lambda: early in knows(leader))
    late = put_record(site, leader, second)
    site.advance(MOMENT)
    assert late in knows(leader)


def test_an_old_hole_is_looked_at_less_and_less_often(sites):
    site = sites(3, 4)
    leader = site.add()
    leader.join()
    site.until(lambda: len(knows(leader)) == 1)
    first, _dead = take_ticket(site, leader), take_ticket(site, leader)
    put_record(site, leader, first)
    site.advance(MOMENT)
    looks = leader.process.counts["records"]
    site.advance(4.0)
    assert leader.process.counts["records"] - looks <= 20


def test_a_new_leader_is_told_at_once_who_arrives_although_the_first_ticket_is_a_hole(sites):
    site = sites(2, 3)
    first = site.add()
    first.join()
    site.until(lambda: first.machine.document is not None)
    take_ticket(site, first)
    second = site.add()
    second.join()
    site.until(lambda: {first.machine.phase, second.machine.phase} == {Phase.MEMBER})
    first.process.kill()
    site.until(lambda: second.machine.leading is not None)
    site.advance(0.1)
    late = site.add()
    late.join()
    site.until(lambda: late.machine.phase is Phase.WAITING)
    site.advance(MOMENT)
    assert second.machine.latch is not None


# ---------------------------------------------------------------- outages


def test_after_an_outage_everybody_is_back_within_a_quarter_of_what_silence_is_borne(sites):
    site = sites(3, 3, interval=0.5, attempts=2)
    members = formed(site, 3)
    site.server.fail(3.0)
    site.advance(3.0)
    beats = [member.process.counts["beat"] for member in members]
    site.advance(members[0].machine.settings.patience / 4 + MOMENT)
    assert all(m.process.counts["beat"] > count for m, count in zip(members, beats, strict=True))
    site.advance(10.0)
    assert not any(member.machine.latch for member in members)


def test_a_store_that_does_not_answer_is_told_once_the_patience_is_over(sites):
    site = sites(1, 1)
    (member,) = formed(site, 1, patience=3.0)
    site.server.frozen_until = site.hub.now + 1000.0
    site.until(lambda: member.driver._busy)
    site.advance(2.9)
    early = member.call(member.handler.num_nodes_waiting)
    site.advance(0.01)
    assert early.result == 0
    site.advance(0.1)
    late = member.call(member.handler.num_nodes_waiting)
    site.advance(1.0)
    assert isinstance(late.result, RendezvousConnectionError)
    assert "has not answered" in str(late.result)


@pytest.mark.parametrize("late", [0.0, 0.3])
def test_a_process_that_slept_in_the_middle_of_a_request_sees_no_error_on_waking(sites, late):
    site = sites(1, 1)
    (member,) = formed(site, 1, patience=3.0)
    site.until(lambda: member.driver._busy)
    # Its answer is on the way back for longer still than the process sleeps.
    member.link.block(10.0 + late, out=False, back=True)
    member.process.pause()
    site.advance(10.0)
    looked = member.call(member.handler.num_nodes_waiting)
    member.process.resume()
    site.advance(1.0)
    assert looked.result == 0
    assert not member.driver.stopped


def test_a_process_that_slept_while_the_store_was_away_tries_again_on_waking(sites):
    site = sites(1, 1)
    (member,) = formed(site, 1, patience=3.0)
    site.server.fail(1.0)
    site.advance(0.3)
    tried = member.process.counts["connect"]
    site.until(lambda: member.process.counts["connect"] > tried)
    member.process.pause()
    site.advance(10.0)
    member.process.resume()
    site.advance(2.0)
    looked = member.call(member.handler.num_nodes_waiting)
    site.advance(1.0)
    assert looked.result == 0


def test_a_store_that_stays_away_is_told_once_the_patience_is_over(sites):
    site = sites(1, 1)
    (member,) = formed(site, 1, patience=3.0)
    site.server.fail(1000.0)
    site.advance(2.5)
    assert not member.driver.stopped
    site.advance(3.0)
    looked = member.call(member.handler.num_nodes_waiting)
    site.advance(1.0)
    assert isinstance(looked.result, RendezvousConnectionError)


# ---------------------------------------------------------------- deadlines


@pytest.mark.parametrize("knows_the_run", [True, False])
@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_a_join_returns_within_its_deadline_and_two_seconds_where_nothing_answers(
    sites, seconds, knows_the_run
):
    site = sites(2, 2)
    member = site.add(join=seconds)
    if knows_the_run:
        member.call(member.handler.is_closed)
        first = site.add()
        first.join()
        site.until(lambda: first.machine.phase is Phase.WAITING)
        site.advance(0.1)
    joined = member.join()
    if knows_the_run:
        site.until(lambda: member.machine.document is not None)
    site.server.frozen_until = site.hub.now + 1000.0
    site.advance(seconds + 10.0)
    assert isinstance(joined.result, RendezvousTimeoutError)
    assert joined.ended is not None
    assert seconds <= joined.ended - joined.began <= seconds + 2.0


def test_the_deadline_of_a_join_holds_although_the_store_owes_an_answer_as_it_begins(sites):
    site = sites(2, 2)
    member = formed(site, 2, join=2.0, patience=3.0)[1]
    site.until(lambda: member.driver._busy)
    site.server.frozen_until = site.hub.now + 3.45
    site.advance(3.05)
    joined = member.join()
    site.advance(0.42)
    site.server.frozen_until = site.hub.now + 1000.0
    site.advance(20.0)
    assert isinstance(joined.result, RendezvousError)
    assert joined.ended is not None
    assert joined.ended - joined.began <= 2.0 + 2.0


# ---------------------------------------------------------------- the runtime


def test_a_handler_takes_time_threads_and_chance_from_its_runtime_alone(sites, monkeypatch):
    here = threading.get_ident()

    def refusing(real):
        def read(*args, **kwargs):
            # Other threads of this process, which other tests have left, are not simulated.
            if threading.get_ident() == here:
                raise AssertionError("somebody has not asked the runtime")
            return real(*args, **kwargs)

        return read

    site = sites(2, 3)
    with monkeypatch.context() as patch:
        for where, name in (
            *((time, name) for name in ("time", "monotonic", "perf_counter", "sleep")),
            *((threading, name) for name in ("Thread", "Event", "Lock", "RLock", "Condition")),
            *((random, "random"), (uuid, "uuid4")),
        ):
            patch.setattr(where, name, refusing(getattr(where, name)))
        members = formed(site, 2)
        calls = [member.join() for member in members]
        site.until(lambda: all(call.ended is not None for call in calls))
        # Its observers have threads of their own: the runtime hands them out whole.
        leaver = members[0].handler._leaver
        left = members[0].call(lambda: leaver.leave(5.0))
        closed = members[1].call(members[1].handler.set_closed)
        site.advance(10.0)
    assert [member.handler.round for member in members] == [2, 2]
    assert left.result is True
    assert closed.result is None
    assert closed.ended is not None
    assert not any(member.process.failures for member in members)


def test_two_runs_of_the_same_site_are_the_same_to_the_event(sites):
    events = []
    for _ in range(2):
        site = sites(3, 3)
        formed(site, 3)
        site.advance(20.0)
        events.append(site.hub.events)
    assert events[0] == events[1]
