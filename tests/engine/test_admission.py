"""Deferred admission: who waits for a checkpoint, who does not, and what workers are told."""

from __future__ import annotations

import re
import threading

import pytest
from torch.distributed import HashStore

from rdzv import (
    DynamicRendezvousHandler,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousParameters,
    RendezvousStateError,
    create_handler,
    events,
)
from rdzv.checkpoints import NOBODY, REACHED, WAITING
from rdzv.dynamic_rendezvous.document import Change, Document, Leader, decode, encode
from rdzv.dynamic_rendezvous.leader import Settings
from rdzv.dynamic_rendezvous.messages import (
    Admitted,
    CheckpointReached,
    Deferred,
    Interrupted,
    Join,
    Leave,
)
from rdzv.dynamic_rendezvous.phases import Phase
from rdzv.events import Observers
from rdzv.testing.simulation.hub import Process, WorkersStore

from .memory import Memory, MemoryBackend
from .sites import Member, Site
from .world import World, formed, members, rejoin


def held(count: int = 2, low: int = 2, high: int = 4, arrivals: int = 1) -> World:
    """A world whose round stands, and nodes that have arrived since."""
    world = formed(count, low, high, admission="deferred")
    world.join(*(world.add() for _ in range(arrivals)))
    return world


def reach(world: World) -> None:
    world.leader.tell(CheckpointReached(world.document.round))
    world.settle()


# ---------------------------------------------------------------- the document


def test_a_document_of_immediate_admission_is_written_as_it_always_was():
    document = Document(1, "e", 1, "w", 1, 2, Leader("n", 0.5))
    assert b"admission" not in encode(document)
    assert decode(Document, encode(document), "here").admission == "immediate"


def test_deferred_admission_survives_being_stored_and_anything_else_is_refused():
    data = encode(Document(1, "e", 1, "w", 1, 2, admission="deferred"))
    assert decode(Document, data, "here").admission == "deferred"
    with pytest.raises(RendezvousStateError, match="here does not hold what rdzv writes"):
        decode(Document, data.replace(b"deferred", b"sometimes"), "here")


@pytest.mark.parametrize("mine", ["immediate", "deferred"])
def test_nodes_that_disagree_about_the_admission_of_a_run_are_told_both(mine):
    theirs = "deferred" if mine == "immediate" else "immediate"
    world = World(1, 2, 4, admission=theirs)
    world.join()
    other = world.add(Settings(2, 4, 5.0, 1.0, 3, admission=mine))
    with pytest.raises(RendezvousStateError, match=f"admission={mine}.*admission={theirs}"):
        other.tell(Join())
    assert world.tail == 1


# ---------------------------------------------------------------- who waits


def test_an_arrival_waits_and_ends_no_round_before_a_checkpoint():
    world = held()
    late = world.nodes[2]
    before = world.document
    world.advance(700.0)
    assert world.document == before
    assert late.phase is Phase.SPARE
    assert not any(node.machine.latch for node in world.nodes)
    assert world.leader.machine.gate() == (1, before.master, True)
    reach(world)
    assert world.document.change == Change(arrived=1)
    assert str(late.phase) == str(Phase.WAITING)
    rejoin(world, *world.nodes[:2])
    world.advance(6.0)
    assert sorted(members(world)) == [0, 1, 2]


def test_what_is_decided_is_told_once():
    world = held(arrivals=1)
    leader = world.leader
    world.advance(5.0)
    world.join(world.add())
    world.advance(5.0)
    assert leader.told(Deferred) == [Deferred(1), Deferred(2)]
    assert leader.told(Admitted) == []
    reach(world)
    rejoin(world, *world.nodes[:2])
    assert leader.told(Admitted) == [Admitted(2, "workers have reached a checkpoint")]
    others = [node for node in world.nodes if node is not leader]
    assert not any(node.told(Deferred) + node.told(Admitted) for node in others)


def test_a_checkpoint_of_another_round_lets_nobody_in():
    world = held()
    world.leader.tell(CheckpointReached(world.document.round - 1))
    world.settle()
    assert world.document.change is None


def test_a_death_ends_the_round_at_once_and_newcomers_are_in_the_next():
    world = held(count=3)
    victim = next(node for node in world.nodes[:3] if node is not world.leader)
    leader = world.leader
    victim.kill()
    world.advance(4.0)
    assert world.document.change == Change(arrived=1, lost=1)
    rejoin(world)
    world.advance(6.0)
    assert world.document.size == 3
    assert leader.told(Admitted) == [Admitted(1, "1 node lost")]


def test_a_departure_ends_the_round_at_once():
    world = held(count=3)
    goer = next(node for node in world.nodes[:3] if node is not world.leader)
    goer.tell(Leave())
    world.settle()
    assert world.document.change == Change(arrived=1, left=1)


def test_a_return_ends_the_round_at_once():
    world = held(count=2)
    goer = next(node for node in world.nodes[:2] if node is not world.leader)
    world.join(goer)
    assert world.document.change == Change(arrived=1, returned=1)


def test_newcomers_make_up_for_the_dead_where_too_few_are_left():
    world = formed(2, 2, 3, admission="deferred")
    victim = next(node for node in world.nodes if node is not world.leader)
    victim.kill()
    world.advance(4.0)
    assert world.document.change is None  # Alone nobody can go on: there is nothing to tell.
    world.join(world.add())
    assert world.document.change == Change(arrived=1, lost=1)


def test_the_first_round_waits_for_no_checkpoint():
    world = World(1, 2, 3, admission="deferred")
    world.join()
    assert world.nodes[0].phase is Phase.WAITING
    world.join(world.add())
    world.advance(6.0)
    assert world.document.size == 2


def test_a_spare_of_a_full_round_is_none_of_those_who_wait_for_a_checkpoint():
    world = held(high=2)
    assert world.nodes[2].phase is Phase.SPARE
    assert world.leader.machine.gate() == (1, world.document.master, False)
    assert world.leader.told(Deferred) == []


def test_the_round_opens_for_a_newcomer_that_went_after_workers_were_told_so():
    world = held()
    world.nodes[2].tell(Leave())
    world.settle()
    assert world.leader.machine.gate() == (1, world.document.master, False)
    reach(world)
    assert world.document.change == Change(arrived=1)


def test_a_checkpoint_is_not_forgotten_where_the_connection_breaks_as_it_is_heard_of():
    world = held()
    leader = world.leader
    world.down = True
    leader.tell(CheckpointReached(1))
    assert leader.broken
    world.down = False
    leader.reconnect()
    world.settle()
    assert world.document.change == Change(arrived=1)


def test_a_leader_that_was_interrupted_does_not_say_again_who_waits():
    world = held()
    leader = world.leader
    leader.tell(Interrupted())
    world.advance(3.0)  # It has to see first that they still live.
    assert leader.machine.gate() == (1, world.document.master, True)
    assert leader.told(Deferred) == [Deferred(1)]


def test_who_takes_over_lets_those_in_who_wait():
    world = held(count=3)
    world.leader.kill()
    world.advance(6.0)
    rejoin(world)
    world.advance(6.0)
    assert sorted(members(world)) == [1, 2, 3]
    assert world.leader.told(Admitted) == [Admitted(1, "1 node lost")]


# ---------------------------------------------------------------- whole handlers


class Deferring(Site):
    """Two members with a round, and where their workers' store is."""

    def __init__(self) -> None:
        super().__init__(2, 4, admission="deferred")
        self.first = [self.add(), self.add()]
        joins = [member.join() for member in self.first]
        self.until(lambda: all(join.ended for join in joins))
        self.joined = self.first[0].handler._info
        assert self.joined is not None
        self.store = self.hub.stores[self.joined.master]

    @property
    def leader(self) -> Member:
        return next(member for member in self.members if member.machine.leading)

    def waiting(self) -> list[int]:
        """What agents of the first round see."""
        calls = [member.call(member.handler.num_nodes_waiting) for member in self.first]
        self.until(lambda: all(call.ended is not None for call in calls))
        return [call.result for call in calls]


@pytest.fixture
def site():
    site = Deferring()
    yield site
    site.end()


def test_workers_are_asked_only_while_somebody_waits(site):
    site.advance(5.0)
    assert site.store.told == NOBODY
    late = site.add()
    late.join()
    site.until(lambda: site.store.told == WAITING, 2.0)
    late.call(late.handler.leave)
    site.until(lambda: site.store.told == NOBODY, 2.0)
    assert site.waiting() == [0, 0]


def test_within_a_second_of_a_checkpoint_agents_are_told_and_not_before(site):
    late = site.add(join=3.0)
    waits = late.join()
    site.until(lambda: site.store.told == WAITING, 2.0)
    site.advance(30.0)
    assert site.waiting() == [0, 0]
    assert waits.ended is None  # Far beyond its join timeout.
    assert site.store.change(WAITING, REACHED)
    site.advance(1.0)
    assert site.waiting() == [1, 1]
    joins = [member.join() for member in site.first]
    site.until(lambda: waits.ended and all(join.ended for join in joins))
    assert {join.result.world_size for join in [waits, *joins]} == {3}
    assert site.store.process.hub.stores[late.handler._info.master].told == NOBODY


def test_asking_workers_costs_the_rendezvous_no_request(site):
    def requests() -> int:
        counts = site.leader.process.counts
        return sum(n for name, n in counts.items() if name not in ("sent", "received"))

    site.advance(60.0)
    began = requests()
    site.advance(60.0)
    alone, began = requests() - began, requests()
    site.add().join()
    site.until(lambda: site.store.told == WAITING, 2.0)
    began = requests()
    site.advance(60.0)
    assert requests() - began <= alone + 1


def test_a_workers_store_that_cannot_be_reached_is_tried_again_and_complained_of_once(
    site, monkeypatch, caplog
):
    tries: list[object] = []
    open_gate = Process.open_gate

    def fails_at_first(process, master):
        tries.append(master)
        if len(tries) < 4:
            raise RendezvousConnectionError("nobody is there")
        return open_gate(process, master)

    monkeypatch.setattr(Process, "open_gate", fails_at_first)
    site.add().join()
    site.until(lambda: site.store.told == WAITING, 6.0)
    complaints = [r for r in caplog.records if "nobody is there" in r.getMessage()]
    assert len(complaints) == 1


def test_a_question_that_could_not_be_called_off_is_called_off_later(site, monkeypatch):
    late = site.add()
    late.join()
    site.until(lambda: site.store.told == WAITING, 2.0)
    change, broken = WorkersStore.change, [True]

    def breaks(store, before, after):
        if broken[0]:
            raise RendezvousConnectionError("the connection broke")
        return change(store, before, after)

    monkeypatch.setattr(WorkersStore, "change", breaks)
    late.call(late.handler.leave)
    site.advance(3.0)
    broken[0] = False
    site.until(lambda: site.store.told == NOBODY, 2.0)


def test_a_newcomer_of_a_run_that_ends_before_a_checkpoint_was_not_needed(site):
    late = site.add()
    waits = late.join()
    site.until(lambda: late.machine.phase is Phase.SPARE)
    site.first[0].call(site.first[0].handler.set_closed)
    site.until(lambda: waits.ended is not None)
    assert isinstance(waits.result, RendezvousGracefulExitError)
    assert re.search("waited for a checkpoint; it was not needed", str(waits.result))


def test_observers_are_told_who_waits_for_a_checkpoint_and_why_they_came_in(monkeypatch):
    seen: list[events.Event] = []
    observers = Observers([("test", seen.append)])
    monkeypatch.setattr("rdzv.testing.simulation.hub.Process.observers", lambda _: observers)
    site = Deferring()
    try:
        site.add().join()
        site.until(lambda: site.store.told == WAITING, 2.0)
        site.store.change(WAITING, REACHED)
        site.until(lambda: site.waiting() == [1, 1], 2.0)
        joins = [member.join() for member in site.first]
        site.until(lambda: all(join.ended for join in joins))
    finally:
        site.end()
        observers.close(10.0)
    waits = [event for event in seen if isinstance(event, events.Waiting)]
    assert [(event.spare, event.deferred) for event in waits] == [(False, True), (False, False)]
    assert [event.waiting for event in seen if isinstance(event, events.Deferred)] == [1]
    told = [(e.arrived, e.why) for e in seen if isinstance(e, events.Admitted)]
    assert told == [(1, "workers have reached a checkpoint")]


# ---------------------------------------------------------------- making one


def test_the_setting_is_read_from_parameters_and_checked():
    backend = MemoryBackend(Memory())
    params = RendezvousParameters("memory", "", "run", 1, 2, admission="Deferred")
    handler = create_handler(HashStore(), backend, params)
    assert handler.settings.admission == "deferred"
    assert "rdzv-gate" in {thread.name for thread in threading.enumerate()}
    handler.leave()
    with pytest.raises(ValueError, match="admission is 'later'; it must be one of immediate"):
        DynamicRendezvousHandler.from_backend(
            "run",
            HashStore(),
            backend,
            1,
            2,
            admission="later",  # type: ignore[arg-type]
        )
