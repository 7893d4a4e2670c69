"""Deliberately wrong versions of the protocol, to show that the simulation notices each.

A mutant puts something else in the place of a few of the engine's functions. Those
in the second half are mistakes that the engine has really had, found by simulating it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import msgspec

from rdzv import checkpoints
from rdzv.dynamic_rendezvous import (
    document,
    driver,
    following,
    handler,
    leader,
    leadership,
    liveness,
    machine,
    messages,
    perform,
    ranking,
    roster,
)
from rdzv.dynamic_rendezvous.backend import HELD
from rdzv.errors import RendezvousConnectionError
from rdzv.testing.simulation import Fault, Node, Scenario, generate, hub

Patch = tuple[object, Any, Any]


@dataclass(frozen=True)
class Mutant:
    name: str
    wrong: str
    patches: Callable[[], list[Patch]]
    scenario: Callable[[int], Scenario] = generate
    """Where to look for it: a scenario for each seed."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for where, name, value in self.patches():
                if isinstance(where, dict):
                    stack.enter_context(mock.patch.dict(where, {name: value}))
                else:
                    stack.enter_context(mock.patch.object(where, name, value))
            yield


MUTANTS: list[Mutant] = []


def mutant(
    wrong: str, scenario: Callable[[int], Scenario] = generate
) -> Callable[[Callable[[], list[Patch]]], None]:
    def add(patches: Callable[[], list[Patch]]) -> None:
        MUTANTS.append(Mutant(patches.__name__.replace("_", " "), wrong, patches, scenario))

    return add


def some_nodes(
    seed: int, *faults: Fault, delay: float = 0.001, timeout: float = 5.0, **settings: Any
) -> Scenario:
    """A plain scenario: three nodes, and little else than what is said."""
    chance = random.Random(f"nodes {seed}")
    polls = [chance.uniform(0.1, 0.5) for _ in range(3)]
    nodes = tuple(Node(0.0, delay=delay, poll=poll, timeout=timeout) for poll in polls)
    fields: dict[str, Any] = {"last_call": 0.2, "attempts": 5, **settings}
    return Scenario(seed, 2, 3, nodes, faults, 5.0, **fields)


def a_spare(seed: int) -> Scenario:
    """A full round, and one more node."""
    return some_nodes(seed, Fault(2.0, "join"))


def newcomers(seed: int) -> Scenario:
    """There is room, nodes arrive and leave, and admission is deferred."""
    chance = random.Random(f"newcomers {seed}")
    times = [2.0 + chance.uniform(0.0, 0.7) for _ in range(2)]
    faults = [Fault(2.0, "join"), *(Fault(time, "leave", 3) for time in times)]
    scenario = some_nodes(seed, *faults, admission="deferred")
    return msgspec.structs.replace(scenario, max_nodes=5)


def scaled_down(seed: int) -> Scenario:
    """An operator leaves one of three nodes its place."""
    return some_nodes(seed, Fault(2.0, "scale", value=0.9))


def reset_while_it_works(seed: int) -> Scenario:
    """An operator begins the run anew, whose nodes live."""
    return some_nodes(seed, Fault(2.0, "reset"))


def slow_nodes(seed: int) -> Scenario:
    """Between a ticket and its record there is time, but little of an interval."""
    return some_nodes(seed, Fault(0.5, "join"), delay=0.06, interval=10.0, join_timeout=900.0)


def led_before(seed: int) -> Scenario:
    """One that led is idle, and its connection for leading breaks unnoticed."""
    first = Fault(2.0, "pause", seed % 3, 9.0)
    return some_nodes(seed, first, Fault(15.0, "outage", seconds=0.5))


def sleepers(seed: int) -> Scenario:
    """Nodes sleep for long, with a request under way."""
    chance = random.Random(f"sleepers {seed}")
    faults = [Fault(chance.uniform(0.1, 9.0), "pause", place, 25.0) for place in range(3)]
    return some_nodes(seed, *faults, store="SLOW", lag=0.5, patience=10.0)


# ---------------------------------------------------------------- of the protocol


def _swap_blindly(which: Callable[[Any, Any], bool]) -> list[Patch]:
    original: Any = perform.PERFORM[messages.SwapDocument]

    def swap(session, action, node):
        if which(action.document, node) and action.token is not None:
            found = session._session.read(None)  # Past what watches the session.
            version = found[1] if found else action.token
            action = messages.SwapDocument(
                msgspec.structs.replace(action.document, version=version + 1)
                if isinstance(version, int)
                else action.document,
                version,
            )
        return original(session, action, node)

    return [(perform.PERFORM, messages.SwapDocument, swap)]


@mutant("every write replaces whatever is there: no fencing at all")
def no_fencing():
    return _swap_blindly(lambda _document, _node: True)


@mutant("the commit of a round replaces whatever is there")
def commit_without_the_token():
    return _swap_blindly(lambda new, node: node.document and new.round > node.document.round)


@mutant("writes have no names, and equal bytes are taken for one's own")
def success_inferred_from_equal_bytes():
    def amend(before, write, **changes):
        return msgspec.structs.replace(before, version=before.version + 1, write="w", **changes)

    return [(leader, "amend", amend), (machine, "amend", amend)]


@mutant("silence is measured on the wall clock")
def wall_clock_liveness():
    return [(hub.Process, "monotonic", hub.Process.wall)]


@mutant("the document names an assignment that is published afterwards")
def assignment_after_the_commit():
    original: Any = leader.Leading._complete
    return [(leader.Leading, "_complete", lambda *a: list(reversed(original(*a))))]


@mutant("the address of the last round's store for workers stays in the document")
def stale_bootstrap_address():
    original: Any = leader.Leading._complete

    def complete(self, before, *rest):
        publish, swap = original(self, before, *rest)
        new = swap.document
        if new.master is None:
            new = msgspec.structs.replace(new, master=before.master)
        return [publish, messages.SwapDocument(new, swap.token)]

    return [(leader.Leading, "_complete", complete)]


@mutant("the store for workers that was given to a round is given to the next one, too")
def bootstrap_store_used_again():
    original: Any = machine.Machine._take

    def take(self, *args):
        kept = self._master
        actions = original(self, *args)
        self._master = self._master or kept
        return actions

    return [(machine.Machine, "_take", take)]


@mutant("the leader does not look at the beats")
def beat_not_checked():
    return [(leader.Leading, "on_beats", lambda *_: [])]


@mutant("nobody looks at the leader's beat")
def dead_leader_not_noticed():
    return [(following.Following, "_observe", lambda *_, **__: False)]


@mutant("who takes over goes on from what it believes instead of reading the roster")
def takeover_without_a_fresh_read():
    def start(self, before, now):
        self._look_due = self._log_due = now + 1.0
        self._synced = self.has_read_log = True
        self.roster.seen = before.upto
        return []

    return [(leader.Leading, "start", start)]


@mutant("the last call runs from the first time that min_nodes were there, ever")
def last_call_never_restarted():
    original: Any = leader.Leading.pursue

    def pursue(self, *args, **kwargs):
        since = self.__dict__.setdefault("ever_since", self._called_since)
        self._called_since = since
        actions = original(self, *args, **kwargs)
        if self.__dict__["ever_since"] is None:
            self.__dict__["ever_since"] = self._called_since
        return actions

    original_won: Any = leader.Leading.on_won

    def on_won(self, *args):
        since = self._called_since
        own = original_won(self, *args)
        self._called_since = since
        return own

    return [(leader.Leading, "pursue", pursue), (leader.Leading, "on_won", on_won)]


@mutant("a spare makes the round be formed anew although there is no room for it", a_spare)
def a_spare_that_counts():
    original: Any = leadership._standing_round

    def standing(members, before, here, back, new):
        if new:
            return leadership.Reopen(document.Change(arrived=new))
        return original(members, before, here, back, new)

    return [(leadership, "_standing_round", standing)]


@mutant("an arrival ends the round at once although admission is deferred", newcomers)
def arrivals_not_held_up():
    return [(leadership, "_defer", lambda decision, _checkpoint: decision)]


@mutant("nodes wait for a checkpoint, and workers are not asked for one", newcomers)
def checkpoints_not_asked_for():
    return [(machine.Machine, "gate", lambda _: None)]


@mutant("a newcomer has gone, and workers that were told of a new round wait for it", newcomers)
def promise_to_workers_forgotten():
    original: Any = leadership._defer

    def defer(decision, checkpoint):
        forgotten = isinstance(decision, leadership.Hold)
        return decision if forgotten else original(decision, checkpoint)

    return [(leadership, "_defer", defer)]


@mutant("a checkpoint counts although nobody waits for one", newcomers)
def checkpoints_counted_unasked():
    def change(self, before, after):
        if after == checkpoints.REACHED or self.told == before:
            self.told = after
        return self.told == checkpoints.REACHED

    return [(hub.WorkersStore, "change", change)]


@mutant("whoever writes the document next opens a closed run again")
def close_forgotten():
    def amend(before, write, **changes):
        changes.setdefault("closed", False)
        return msgspec.structs.replace(before, version=before.version + 1, write=write, **changes)

    return [(leader, "amend", amend), (machine, "amend", amend)]


@mutant("a closed run can be joined")
def close_not_heeded():
    return [
        (machine.Machine, "_on_closed", lambda *_: []),
        (machine.Machine, "closed", property(lambda _: False)),
    ]


@mutant("the ticket of a node that died before it wrote its record stays a hole")
def holes_never_buried():
    return [(leader.Leading, "_bury_old_holes", lambda *_: [])]


@mutant("a participant that died is no reason for another round")
def losses_change_nothing():
    original: Any = leadership._standing_round

    def standing(members, *rest):
        decision = original(members, *rest)
        only_lost = isinstance(decision, leadership.Reopen) and decision.change == document.Change(
            lost=decision.change.lost
        )
        return leadership.Hold(leadership.Waiting.STANDS) if only_lost else decision

    return [(leadership, "_standing_round", standing)]


@mutant("a node keeps the rank that it had in the round before")
def rank_of_the_old_round():
    original: Any = machine.Machine._ranked

    def ranked(self, assigned, now):
        if self.rank >= 0:
            assigned = document.Assigned(assigned.node, min(self.rank, self.document.size - 1))
        return original(self, assigned, now)

    return [(machine.Machine, "_ranked", ranked)]


@mutant("two nodes can get one rank")
def ranks_given_twice():
    original: Any = leader.Leading._complete

    def complete(self, *args):
        publish, swap = original(self, *args)
        places = {t: document.Assigned(a.node, a.rank // 2) for t, a in publish.assigned.items()}
        return [messages.Publish(publish.nonce, places, publish.chunks), swap]

    return [(leader.Leading, "_complete", complete)]


@mutant("the document lists places in the order of tickets, whatever their ranks")
def places_by_ticket():
    original: Any = leader.Leading._places

    def places(self, chosen):
        return original(self, sorted(chosen, key=lambda entry: entry.ticket))

    return [(leader.Leading, "_places", places)]


@mutant("places of the round before stay in the document, if as many as now")
def old_places():
    original = leader.amend

    def amend(before, write, **changes):
        if len(before.places.split()) == changes.get("size", before.size):
            changes["places"] = before.places
        return original(before, write, **changes)

    return [(leader, "amend", amend)]


@mutant("what a rank policy returns is taken as it is")
def rank_policy_not_checked():
    original: Any = ranking.checked

    def checked(policy):
        def assign(entries, leader):
            known = {entry.node: entry for entry in entries}
            nodes = [ranking._seen(entry) for entry in entries]
            return [known[node.node] for node in policy.rank(nodes, leader)]

        return original(policy) if policy is ranking.STICKY else assign

    return [(handler, "checked", checked)]


@mutant("topology orders groups as their nodes arrived")
def groups_by_arrival():
    def arrived(nodes, leader):
        return list(ranking._grouped(sorted(nodes, key=lambda node: node.ticket), 0))

    policy = dataclasses.replace(ranking.BUILT_IN["topology"], rank=arrived)
    return [(ranking.BUILT_IN, "topology", policy)]


@mutant("a node that enters again forgets its labels")
def labels_told_once():
    original: Any = machine.Machine._record

    def record(self, kind):
        made = original(self, kind)
        return made if made.number == 1 else msgspec.structs.replace(made, labels=())

    return [(machine.Machine, "_record", record)]


@mutant("a round completes with one node less than min_nodes")
def minimum_not_kept():
    original: Any = leadership.decide

    def decide(members, before, *rest):
        less = msgspec.structs.replace(before, min_nodes=max(1, before.min_nodes - 1))
        return original(members, less, *rest)

    return [(leader, "decide", decide)]


@mutant("a round completes with more than max_nodes")
def maximum_not_kept():
    original: Any = leadership.decide

    def decide(members, before, *rest):
        return original(members, msgspec.structs.replace(before, max_nodes=99), *rest)

    return [(leader, "decide", decide)]


@mutant("a round completes without a last look at the roster")
def no_last_look():
    original: Any = leader.Leading.pursue

    def pursue(self, *args, **kwargs):
        return original(self, *args, **(kwargs | {"fresh": True}))

    return [(leader.Leading, "pursue", pursue)]


@mutant("a node that has left is still counted")
def departures_not_read():
    original: Any = leadership.Roster.fold

    def fold(self, ticket, record, now):
        if record is not None and record.kind == "leave":
            self.seen = max(self.seen, ticket)
            return
        original(self, ticket, record, now)

    return [(leadership.Roster, "fold", fold)]


@mutant("workers are not told that their round is over")
def no_latch():
    return [(machine.Machine, "_watch_round", lambda *_: [])]


@mutant("a node that is late by one beat is dead")
def evicted_after_one_missed_beat():
    return [(leader.Settings, "silence", lambda _, interval: 1.2 * interval)]


@mutant("a spare that shuts down closes the run")
def a_spare_closes_the_run():
    original: Any = machine.Machine._on_close
    return [
        (handler.DynamicRendezvousHandler, "_may_close", lambda _: True),
        (machine.Machine, "_on_close", lambda s, _, now: original(s, messages.Close(None), now)),
    ]


@mutant("any document is taken, whatever life of the run it belongs to")
def epoch_not_compared():
    original: Any = machine.Machine._take

    def take(self, new, token, now):
        if self.document is not None and new.epoch != self.document.epoch:
            self.document = msgspec.structs.replace(self.document, epoch=new.epoch, version=0)
            self.document = msgspec.structs.replace(self.document, round=0, nonce="", closed=False)
        return original(self, new, token, now)

    return [(machine.Machine, "_take", take)]


@mutant("a call to join has no deadline")
def no_deadline():
    return [(handler.DynamicRendezvousHandler, "_join_deadline", lambda _: None)]


@mutant("the first broken connection is the end")
def no_patience():
    original: Any = driver.Driver.__init__

    def init(self, node, open_session, open_master, patience, *rest):
        original(self, node, open_session, open_master, 0.0, *rest)

    return [(driver.Driver, "__init__", init)]


@mutant("who gives up or leaves does not say so")
def leaving_is_not_told():
    return [(machine.Machine, "_leave_roster", lambda _: [])]


@mutant("a node evicted while it slept goes on in its old round")
def no_fencing_of_zombies():
    original: Any = machine.Machine._watch_round

    def watch(self, new):
        return [] if new.round > self.round else original(self, new)

    return [(machine.Machine, "_watch_round", watch)]


# ---------------------------------------------------------------- mistakes that were made


@mutant("a record that comes after its ticket was read is noticed much later", slow_nodes)
def late_records_not_looked_for():
    return [(leader.Leading, "look_for_records", lambda *_: None)]


@mutant("a leader that loses a connection forgets who was dead", led_before)
def interrupted_leader_forgets_the_dead():
    def again(self):
        return leader.Leading(self._settings, self._me, self._new_id)

    return [(leader.Leading, "again", again)]


@mutant("a new leader takes those who wait for alive")
def dead_spare_taken_into_the_round():
    return [(leadership.Roster, "doubt", lambda *_, **__: None)]


@mutant("one look after an outage can be a death")
def one_look_is_a_death():
    def observe(self, counts, now, period):
        gap = 0.0 if self._looked is None else now - self._looked
        afresh = gap > max(self._patience, 2 * period)
        self._looked = now
        seen, silent = set(), {}
        for node, count in counts.items():
            known = self._counts.get(node)
            if known is not None and known != count:
                seen.add(node)
            fresh = known is None or known != count or afresh
            silent[node] = 0.0 if fresh else self._silent[node] + min(gap, 2 * period)
        self._counts, self._silent = dict(counts), silent
        self._alive = (self._alive | seen) & counts.keys()
        return seen

    return [(liveness.Silence, "observe", observe)]


@mutant("a store that lost acknowledged writes is believed")
def lost_writes_not_noticed():
    original: Any = machine.Machine._take

    def take(self, new, token, now):
        if self.document is not None and new.version < self.document.version:
            return []
        return original(self, new, token, now)

    return [
        (machine.Machine, "_take", take),
        (document.Document, "follows", lambda *_: True),
    ]


@mutant("the round after a failover has the number of the one that was lost")
def rounds_not_numbered_above_the_lost():
    return [(document.Document, "next_round", lambda self, _: self.round + 1)]


@mutant("a process that slept blames the store", sleepers)
def sleeper_blames_the_store():
    return [(driver.Driver, "check", _check_at_once)]


def _check_at_once(self):
    if self.error is not None:
        raise type(self.error)(*self.error.args)
    if self._unanswered() > self._patience:
        raise RendezvousConnectionError("The store has not answered.")


@mutant("a node of a run that was lost writes into the new one")
def old_life_writes_into_the_new():
    return [(roster.DocumentSession, "attach", lambda *_: None)]


@mutant("a node that wakes enters, and beats some time later")
def woken_node_enters_before_it_beats():
    original: Any = machine.Machine._on_entered

    def on_entered(self, entered, now):
        missed = self._missed
        actions = original(self, entered, now)
        self._missed = missed
        return actions

    return [(machine.Machine, "_on_entered", on_entered)]


@mutant("a store for workers that was offered in vain, as it seemed, is offered to another round")
def bootstrap_store_offered_twice():
    return [(machine.Machine, "_master_for", lambda self, _: self._master)]


def leased(seed: int) -> Scenario:
    """The scenario of a seed, on a store that keeps leases."""
    return msgspec.structs.replace(generate(seed), leased=True, roster=True)


def _at_the_end_of_a_lease(then: Callable[[liveness.Silence, str], None]) -> list[Patch]:
    original: Any = liveness.Silence.observe

    def observe(self, counts, now, period):
        before = self._counts
        seen = original(self, counts, now, period)
        for node, (slot, number) in counts.items():
            if before.get(node) == (slot, HELD) != (slot, number):
                then(self, node)
        return seen

    return [(liveness.Silence, "observe", observe)]


@mutant("the end of a lease says no more than that a node begins to be silent", leased)
def the_end_of_a_lease_is_silence():
    def begin(silence, node):
        silence._ended.discard(node)
        silence._silent[node] = 0.0

    return _at_the_end_of_a_lease(begin)


@mutant("nobody knows any more of a node that had to go as the run was scaled down", scaled_down)
def surplus_forgotten():
    original: Any = leadership.Roster.complete

    def complete(self, chosen):
        for entry in self.those(leadership.Standing.BACK):
            if entry not in chosen:
                del self.entries[entry.node]
        original(self, chosen)

    return [(leadership.Roster, "complete", complete)]


@mutant("another life of a run counts its rounds from one again", reset_while_it_works)
def rounds_counted_anew():
    def next_round(self, failovers):
        return max(self.round, failovers * document.ROUNDS_BETWEEN_FAILOVERS) + 1

    return [(document.Document, "next_round", next_round)]
