"""What the threads of a node may do to each other, and what is left of them in the end."""

from __future__ import annotations

from typing import Any

import pytest

from rdzv import RendezvousConnectionError, RendezvousError
from rdzv.dynamic_rendezvous.document import Document, Leader, Record
from rdzv.dynamic_rendezvous.leader import Leading, Settings
from rdzv.dynamic_rendezvous.machine import Machine
from rdzv.dynamic_rendezvous.messages import Touch
from rdzv.dynamic_rendezvous.phases import Phase

from .sites import Member, Site
from .test_driver import formed


@pytest.fixture
def site():
    made = Site(1, 3)
    yield made
    made.end()


def have_ended(member: Member) -> bool:
    threads: list[Any] = member.driver._threads  # Those of the simulation.
    return all(thread.ended for thread in threads)


def test_a_term_may_end_while_another_thread_asks_when_something_is_due():
    settings = Settings(1, 4, 0.5, 1.0, 5)
    term = Leading(settings, "me", lambda: "name")
    answers = [term]

    class Ends(Machine):
        @property
        def leading(self):
            return answers.pop() if answers else None

        @leading.setter
        def leading(self, _):
            pass

    machine = Ends(
        settings, Record("enter", "me", "me", 1, 0, 1.0, "me-0"), lambda: "name", lambda: 0.5
    )
    assert machine.due() == term.due()


def test_what_is_known_of_the_roster_is_read_while_nobody_changes_it(site, monkeypatch):
    looked = []

    def held(method):
        def checked(self, *arguments):
            (member,) = site.members
            looked.append(member.driver._deciding._owner is member.process.current_thread())
            return method(self, *arguments)

        return checked

    for name in ("expected", "look_for_records"):
        monkeypatch.setattr(Leading, name, held(getattr(Leading, name)))
    formed(site, 1)
    assert looked
    assert all(looked)


@pytest.mark.parametrize("attempt", [0.01, 0.6, 5.0])
def test_the_patience_ends_however_long_an_attempt_to_connect_takes(site, attempt):
    member = site.add(patience=1.0)

    def unreachable():
        member.process.sleep(attempt)
        raise RendezvousConnectionError("unreachable")

    member.driver._open_session = unreachable
    joining = member.join()
    site.until(lambda: joining.ended is not None, 20.0)
    assert isinstance(joining.result, RendezvousConnectionError)


def test_a_spare_is_told_that_the_store_does_not_answer():
    site = Site(1, 1)
    formed(site, 1, patience=2.0)
    spare = site.add(patience=2.0)
    waiting = spare.join()
    site.until(lambda: spare.machine.phase is Phase.SPARE)
    site.server.frozen_until = site.hub.now + 1000.0
    site.until(lambda: waiting.ended is not None, 10.0)
    assert isinstance(waiting.result, RendezvousConnectionError)
    site.end()


def test_that_the_store_does_not_answer_is_said_with_what_was_heard_last(site):
    (member,) = formed(site, 1, patience=2.0)
    site.server.frozen_until = site.hub.now + 1000.0
    site.advance(5.0)
    member.driver._trouble = RendezvousConnectionError("The server at node0 has gone.")
    asking = member.call(member.driver.check)
    site.until(lambda: asking.ended is not None, 5.0)
    assert isinstance(asking.result, RendezvousConnectionError)
    assert "not answered for" in str(asking.result)
    assert "The server at node0 has gone." in str(asking.result)


def test_a_handler_whose_last_words_break_stops_all_the_same(site, monkeypatch):
    _, member = formed(site, 2)
    look = member.driver.look

    def breaks(session, stimulus):
        if isinstance(stimulus, Touch):
            raise RendezvousConnectionError("the connection broke")
        look(session, stimulus)

    monkeypatch.setattr(member.driver, "look", breaks)
    member.handler._leaver.leave_soon()
    site.until(lambda: have_ended(member), 5.0)


def test_a_node_that_has_failed_asks_the_store_for_nothing_more(site):
    member, _ = formed(site, 2)
    member.driver._fail(RendezvousError("this node cannot go on"))
    site.advance(1.0)
    assert have_ended(member)
    asked = member.process.counts.total()
    site.advance(30.0)
    assert member.process.counts.total() == asked


def test_a_store_for_workers_that_opens_after_the_end_is_not_kept(site):
    (member,) = formed(site, 1)
    member.driver.stop()
    member.call(member.driver._prepare_master)
    site.advance(1.0)
    assert member.driver._masters == {}


def test_a_look_at_the_roster_is_never_at_a_part_of_it(site):
    """Its pieces are freed once another round has completed."""
    one, two = formed(site, 2)
    document = one.machine.document
    assert isinstance(document, Document)
    assert isinstance(document.leader, Leader)
    freed = [key for key in site.server.data if key[0] == "piece"]
    for key in freed:
        site.server.put(key, None)
    looks = []
    two.driver.submit(lambda session: looks.append(two.driver.others(session)))
    site.advance(5.0)
    assert looks == []
