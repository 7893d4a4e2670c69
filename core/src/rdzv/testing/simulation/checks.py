"""The protocol's promises, checked on everything that happens in a simulation.

The store tells of every write, and every agent of what its calls gave and what
its machine reported. Nothing that an agent says is taken as true of the store.
"""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from rdzv.checkpoints import REACHED
from rdzv.dynamic_rendezvous.document import (
    ROUNDS_BETWEEN_FAILOVERS,
    Assigned,
    Change,
    Document,
    Leader,
    Member,
    Record,
    decode,
)
from rdzv.dynamic_rendezvous.messages import Action, Joined, Latched, Lost, TookOver
from rdzv.dynamic_rendezvous.roster import _Roster, _State
from rdzv.errors import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rdzv.ranks import parse_labels

from .policies import split_group
from .store import Kind

if TYPE_CHECKING:
    from .agents import Agent, Call
    from .hub import Hub
    from .operator import Operator
    from .scenario import Scenario
    from .store import Server

__all__ = ["Checker", "Violation"]

_NEWS, _POLL = 0.1, 0.25
"""Seconds until a record is known that is pushed, and longer where it has to be looked for."""

GRACE = 2.0
"""Seconds beyond its deadline within which every call returns (L4)."""


@dataclass(frozen=True)
class Violation:
    """A promise that did not hold."""

    promise: str
    at: float
    what: str

    def __str__(self) -> str:
        return f"{self.promise} at {self.at:.3f} s: {self.what}"


@dataclass
class _Offer:
    """A compare-and-set that an agent has begun."""

    agent: Agent | Operator
    document: Document
    looked_at: float | None
    """Since when the roster that it rests on was read, if that came last before."""
    explicit: bool
    """Whether the agent was told to close the run."""


@dataclass
class _Round:
    document: Document
    members: dict[str, int]
    joined: dict[str, Joined] = field(default_factory=dict)


@dataclass
class _Run:
    """One life of the run: what is, or was, under one epoch."""

    document: Document | None = None
    writes: dict[str, int] = field(default_factory=dict)
    rounds: dict[int, _Round] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    since: dict[int, float] = field(default_factory=dict)
    pieces: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lost_writes: bool = False
    completed_at: float = 0.0
    is_reset: bool = False
    """Whether an operator has begun it."""
    undisturbed: bool = True
    """Whether nobody has left or been lost since the last round completed."""


class Checker:
    """Watches one simulation.

    Args:
        hub: The world's time.
        scenario: What is simulated.
        keep: Whether to keep the history for people.
    """

    def __init__(self, hub: Hub, scenario: Scenario, *, keep: bool) -> None:
        self.violations: list[Violation] = []
        self.history: list[str] = []
        self.closed_at: float | None = None
        self.spoilt = False
        """Whether something foreign was written into the store."""
        self.ruined = False
        """Whether a node has found what cannot be."""
        self.healthy = False
        """Whether there is no trouble, and has not been since long: nobody may be harmed."""
        self.excused: set[str] = set()
        """Nodes that somebody is about to harm although all is healthy."""
        self.trouble: dict[str, list[tuple[float, float]]] = {}
        """When the store was out of reach, by process; under ``""`` for all."""
        self.rounds = 0
        self.run = _Run()
        self.server: Server | None = None
        self._runs: dict[str, _Run] = {}
        self._hub = hub
        self._scenario = scenario
        self._keep = keep
        self._hash = hashlib.blake2b(digest_size=8)
        self._offers: dict[str, _Offer] = {}
        self._beats: dict[int, list[float]] = {}
        self._slots: dict[str, list[tuple[float, int]]] = {}
        self._since: dict[str, float] = {}
        self._looked: dict[str, float] = {}
        self._usurped: dict[str, tuple[str, float]] = {}
        self._agents: dict[str, Agent] = {}
        self._highest = 0
        self._state: _State | None = None

    # ------------------------------------------------------------ telling

    def note(self, who: str, what: str) -> None:
        """Something happened that is worth a line of the history."""
        line = f"{self._hub.now:10.4f}  {who:8} {what}"
        self._hash.update(line.encode())
        if self._keep:
            self.history.append(line)

    def digest(self) -> str:
        """A number that is the same for two histories only if they are the same."""
        return self._hash.hexdigest()

    def violate(self, promise: str, what: str) -> None:
        """A promise is broken: say so, and stop."""
        violation = Violation(promise, self._hub.now, what)
        self.note("CHECK", f"violated {promise}: {what}")
        self.violations.append(violation)
        self._hub.stop()

    @property
    def may_lose(self) -> bool:
        """Whether the store may lose what it has acknowledged."""
        return self._scenario.kind in (Kind.LOSING, Kind.FORGETFUL)

    # ------------------------------------------------------------ the store

    def wrote(self, key: Any, value: Any) -> None:
        """The store has taken a write."""
        if self.spoilt:
            return
        if key == "document":
            self._document(value[0])
        elif key == "state":
            self._whole_state(value[0])
        elif key[0] == "beat":
            self._has_beaten(key[2])
        elif key[0] == "record":
            self._record(self._run_of(key[1]), key[2], value)
        elif key[0] == "piece" and value is not None:
            self._run_of(key[1]).pieces.setdefault(key[2], {})[key[3]] = value

    def lost_memory(self) -> None:
        """The store has come back with less than it had."""
        self.note("store", "has lost what it had, or the last of it")
        for run in self._runs.values():
            run.lost_writes = True
        self._state = None
        document = None
        if self.server is not None and not self.spoilt:
            found = self.server.data.get("document")
            document = None if found is None else decode(Document, found[0], "")
            state = self.server.data.get("state")
            if state is not None:
                self._state = decode(_State, state[0], "")
                document = _document_in(self._state)
        for epoch, run in self._runs.items():
            run.records = {t: r for t, r in run.records.items() if self._is_kept(epoch, t)}
            same = document is not None and run is self._runs.get(document.epoch)
            run.document = document if same else None

    def _is_kept(self, epoch: str, ticket: int) -> bool:
        """Whether the store knows of a record: one that it was told to forget was there."""
        if self._state is not None:
            roster = self._state.rosters.get(epoch, _Roster())
            return ticket <= roster.freed or ticket in roster.records
        return self.server is not None and ("record", epoch, ticket) in self.server.data

    def _run_of(self, epoch: str) -> _Run:
        return self._runs.setdefault(epoch, _Run())

    def _whole_state(self, data: bytes) -> None:
        """The state of a backend that has only get and set: find out what is new in it."""
        before, state = self._state or _State(1, ""), decode(_State, data, "The state")
        self._state = state
        for epoch, roster in state.rosters.items():
            run, known = self._run_of(epoch), before.rosters.get(epoch, _Roster())
            run.pieces = {
                nonce: {name: piece.encode() for name, piece in pieces.items()}
                for nonce, pieces in roster.pieces.items()
            }
            for slot, count in roster.beats.items():
                if known.beats.get(slot) != count:
                    self._has_beaten(slot)
            for ticket, text in roster.records.items():
                if ticket not in known.records:
                    self._record(run, ticket, text.encode())
        if state.document != before.document:
            self._document(state.document.encode())

    def _record(self, run: _Run, ticket: int, data: bytes) -> None:
        if data == b"-":
            return
        record = decode(Record, data, "A record")
        if record.id in run.ids and not run.lost_writes:
            self.violate("S9", f"the record {record.id} of {record.node} stands under two tickets")
        run.ids.add(record.id)
        run.records[ticket] = record
        run.undisturbed = run.undisturbed and record.kind == "enter"
        run.since[ticket] = self._hub.now
        if record.kind == "enter":
            slot = record.slot or ticket
            self._slots.setdefault(record.node, []).append((self._hub.now, slot))
            self._since.setdefault(record.node, self._hub.now)
        self.note(record.node, f"record {ticket}: {record.kind}")

    def _document(self, data: bytes) -> None:
        document = decode(Document, data, "The document")
        run = self.run = self._run_of(document.epoch)
        before, run.document = run.document, document
        self.note("document", _told(document))
        offer = self._offers.get(document.write)
        if offer is None:
            self.violate("S1", f"version {document.version} was written by nobody who offered it")
            return
        if document.write in run.writes and not run.lost_writes:
            self.violate("S9", f"the write {document.write} took effect twice")
        run.writes[document.write] = document.version
        if before is None:
            if offer.agent.order == "reset":
                # Another life of the run begins, in which it is open.
                self.closed_at = None
                run.is_reset = True
            return
        self._check_change(run, before, document, offer)

    def _check_change(self, run: _Run, before: Document, document: Document, offer: _Offer) -> None:
        if document.scaled != before.scaled:
            run.undisturbed = False
        if document.version != before.version + 1:
            self.violate("S1", f"version {document.version} replaced version {before.version}")
        if before.closed and not document.closed:
            self.violate("S8", "a closed run was opened again")
        if document.closed and not before.closed:
            self._check_close(run, before, offer)
        if document.change is not None and before.change is None:
            self._check_admission(before, document.change)
        if document.round != before.round:
            self._check_completion(run, before, document, offer)
        elif document.nonce != before.nonce:
            self.violate("S6", f"the membership of round {document.round} was replaced")
        elif (document.min_nodes, document.max_nodes) != (before.min_nodes, before.max_nodes) and (
            offer.agent.order != "scale"
        ):
            self.violate("S4", f"{offer.agent.node} has changed the limits")
        elif document.master != before.master and before.master is not None:
            self.violate("S2", f"the workers' store of round {document.round} was replaced")

    def _check_admission(self, before: Document, change: Change) -> None:
        alone = change == Change(arrived=change.arrived)
        if before.admission == "deferred" and alone and not self.owed(before):
            self.violate("S12", f"arrivals have ended round {before.round} before a checkpoint")

    def owed(self, document: Document) -> bool:
        """Whether workers of the round that stands were told that another one opens."""
        store = None if document.master is None else self._hub.stores.get(document.master)
        return document.change is None and store is not None and store.told == REACHED

    def _check_close(self, run: _Run, before: Document, offer: _Offer) -> None:
        if offer.explicit or before.round == 0:
            return
        if offer.agent.node not in run.rounds[before.round].members:
            self.violate("S11", f"{offer.agent.node}, which is not in the round, has closed it")

    def _check_completion(
        self, run: _Run, before: Document, document: Document, offer: _Offer
    ) -> None:
        number, earlier = document.round, max(before.round, before.after)
        author = offer.agent.node
        self.rounds += 1
        losses = 0 if self.server is None or not self._scenario.roster else self.server.losses
        if number != max(earlier, losses * ROUNDS_BETWEEN_FAILOVERS) + 1:
            self.violate("S6", f"round {number} came after round {before.round}")
        if number in run.rounds and (self._scenario.roster or not run.lost_writes):
            self.violate("S6", f"round {number} was completed twice")
        if before.leader is None or before.leader.node != author:
            self.violate("S7", f"{author} completed round {number} and was not its leader")
        if not document.min_nodes <= document.size <= document.max_nodes:
            self.violate("S4", f"round {number} has {document.size} nodes")
        members = self._assignment(run, document)
        if members is None:
            return
        run.rounds[number] = _Round(document, members)
        self._highest = max(self._highest, number)
        if sorted(members.values()) != list(range(document.size)):
            self.violate("S3", f"the ranks of round {number} are {sorted(members.values())}")
        if self._scenario.rank_policy == "topology":
            self._check_neighbours(number, members)
        if self._scenario.rank_policy in ("sticky", "topology") and before.round in run.rounds:
            staying = run.rounds[before.round].members.keys() & members.keys()
            first = min(members, key=lambda node: members[node])
            if staying and first not in staying:
                self.violate("S3", f"rank 0 of round {number} is a newcomer: {first}")
        self._check_last_call(run, document, members)
        if offer.looked_at is None:
            self.violate("S5", f"round {number} was not completed on a last look at the roster")
            return
        if self._scenario.kind is not Kind.STALE:
            self._check_members(run, number, members, offer.looked_at)

    def _check_neighbours(self, number: int, members: dict[str, int]) -> None:
        labels = {node: parse_labels(self._agents[node].plan.labels) for node in members}
        apart = split_group(members, labels)
        if apart:
            self.violate("S3", f"the ranks of round {number} have others between {apart}")

    def _check_last_call(self, run: _Run, document: Document, members: dict[str, int]) -> None:
        """Where nobody was lost or left meanwhile, a round that is not full waits for more."""
        since, run.completed_at = run.completed_at, self._hub.now
        undisturbed, run.undisturbed = run.undisturbed, True
        if document.size >= document.max_nodes or not undisturbed or self.may_lose:
            return
        came: dict[str, float] = {}
        for ticket, record in sorted(run.records.items()):
            if run.since[ticket] > since:
                came.setdefault(record.node, run.since[ticket])
        times = sorted(came.get(node, since) for node in members)
        waited = self._hub.now - times[document.min_nodes - 1]
        if waited < self._scenario.last_call / 1.1 - 0.01:
            self.violate("L1", f"round {document.round} gave a last call of {waited:.3f} s")

    def _check_members(
        self, run: _Run, number: int, members: dict[str, int], looked_at: float
    ) -> None:
        # One that was sent before another may arrive after it, and says nothing any more.
        latest: dict[str, Record] = {}
        for ticket, record in sorted(run.records.items(), key=lambda item: item[1].number):
            if run.since[ticket] <= looked_at:
                latest[record.node] = record
        for node in members:
            if node not in latest and not any(r.node == node for r in run.records.values()):
                self.violate("S5", f"{node} is in round {number} and has never entered")
            elif node in latest and latest[node].kind == "leave":
                self.violate("S5", f"{node} is in round {number} and had left before")

    def _assignment(self, run: _Run, document: Document) -> dict[str, int] | None:
        pieces = run.pieces.get(document.nonce, {})
        try:
            handed_on = [
                member
                for number in range(document.chunks)
                for member in decode(list[Member], pieces[f"roster-{number}"], "A piece")
            ]
            members = {m.record.node: m.rank for m in handed_on if m.rank >= 0}
            for member in handed_on:
                if member.rank < 0:
                    continue
                place = decode(Assigned, pieces[str(member.ticket)], "A place")
                if (place.node, place.rank) != (member.record.node, member.rank):
                    self.violate("S2", f"{member.record.node} finds {place} as its place")
        except KeyError as exc:
            self.violate(
                "S2", f"round {document.round} was completed before piece {exc} was published"
            )
            return None
        return members

    # ------------------------------------------------------------ the sessions

    def offered(self, agent: Agent | Operator, data: bytes, looked_at: float | None) -> _Offer:
        """An agent begins a compare-and-set."""
        document = decode(Document, data, "An offer")
        explicit = agent.order == "close"
        offer = _Offer(agent, document, looked_at, explicit)
        known = self._offers.setdefault(document.write, offer)
        leader = None if self.run.document is None else self.run.document.leader
        mine = document.leader is not None and document.leader.node == agent.node
        if mine and leader is not None and leader.node != agent.node:
            self._usurped[agent.node] = (leader.node, self._looked.get(agent.node, 0.0))
        if known.agent is not agent:
            self.violate("S9", f"two nodes have made the write {document.write}")
        return offer

    def answered(self, offer: _Offer, *, won: bool) -> None:
        """A compare-and-set of an agent was answered."""
        run = self._run_of(offer.document.epoch)
        if self.spoilt or run.lost_writes or self.may_lose:
            return
        took_effect = offer.document.write in run.writes
        if won and not took_effect:
            self.violate("S1", f"{offer.agent.node} was told that it won and did not")
        if not won and took_effect:
            self.violate("S9", f"{offer.agent.node} was told that it lost and did not")

    def looks(self, agent: Agent | Operator) -> None:
        """An agent begins to look at the beats."""
        self._looked[agent.node] = self._hub.now

    def _has_beaten(self, slot: int) -> None:
        self._beats.setdefault(slot, []).append(self._hub.now)

    def _last_beat(self, node: str, before: float) -> float:
        """When the last beat of a node took effect before some time."""
        # Where it beats now, the others learn a moment after its record has come.
        pushed = self._scenario.watch and self._scenario.roster
        known = before - (_NEWS if pushed else _NEWS + _POLL)
        slots = self._slots.get(node, [])
        place = bisect.bisect_right(slots, (known, 0))
        times = self._beats.get(slots[max(0, place - 1)][1] if slots else 0, [])
        place = bisect.bisect_right(times, before)
        return max(times[place - 1] if place else 0.0, self._since.get(node, 0.0))

    # ------------------------------------------------------------ the agents

    def started(self, agent: Agent) -> None:
        """An agent has made its handler."""
        self._agents[agent.node] = agent
        self.note(agent.node, f"started on {agent.process.name}")

    def reported(self, agent: Agent, action: Action) -> None:
        """An agent's machine has reported something."""
        if isinstance(action, Joined):
            self._joined(agent, action)
        elif isinstance(action, Lost):
            self._lost(agent, action.node.node, action.silent, action.node.interval)
        elif isinstance(action, TookOver) and action.instead:
            self.note(agent.node, f"took over from {action.instead}")
        elif isinstance(action, Latched):
            self.note(agent.node, f"latched: {action.reason}")
            if self.healthy and agent.node not in self.excused:
                self.violate("L6", f"{agent.node} was disturbed while all was well")

    def _joined(self, agent: Agent, joined: Joined) -> None:
        self.note(agent.node, f"joined round {joined.round} as {joined.rank} of {joined.size}")
        document = agent.machine.document
        if self.spoilt or document is None:
            return
        run = self._run_of(document.epoch)
        found = run.rounds.get(joined.round)
        if found is None or (run.lost_writes and found.document.nonce != document.nonce):
            if not run.lost_writes:
                self.violate("S6", f"{agent.node} joined round {joined.round}, which is not one")
            return
        if found.members.get(agent.node) != joined.rank or found.document.size != joined.size:
            self.violate("S2", f"{agent.node} joined with {joined}, which is not its place")
        if agent.node in found.joined:
            self.violate("S6", f"{agent.node} joined round {joined.round} twice")
        found.joined[agent.node] = joined
        if len({other.master for other in found.joined.values()}) > 1:
            self.violate("S2", f"round {joined.round} has several stores for its workers")
        owner = next(node for node, rank in found.members.items() if rank == 0)
        if joined.master.host != self._agents[owner].process.name:
            self.violate("S2", f"the workers' store of round {joined.round} is not rank 0's own")
        used = [r for r, other in run.rounds.items() if joined.master in _masters(other)]
        if used != [joined.round]:
            self.violate("S2", f"one store for workers serves the rounds {used}")
        if any(agent.node in run.rounds[r].joined for r in run.rounds if r > joined.round):
            self.violate("S6", f"{agent.node} went back to round {joined.round}")

    def _lost(self, agent: Agent, node: str, silent: float, interval: float) -> None:
        self.note(agent.node, f"lost {node}, silent for {silent:.2f} s")
        self.run.undisturbed = False
        if self.spoilt or self.may_lose or node not in self._agents:
            return
        usurped, looked = self._usurped.get(agent.node, ("", 0.0))
        if usurped != node:
            looked = self._looked.get(agent.node, 0.0)
        if self._scenario.kind is Kind.STALE:
            looked -= self._scenario.lag
        seen = (self._hub.now - self._last_beat(node, looked)) * agent.process.rate
        limit = self._scenario.interval * (self._scenario.attempts - 1) + interval / 2
        if seen < limit - 1e-6:
            self.violate("L5", f"{node} was taken for dead {seen:.2f} s after a beat")

    def returned(self, agent: Agent, call: Call) -> None:
        """A call has returned."""
        if call.name != "num_nodes_waiting" or call.outcome != "0":
            self.note(agent.process.name, f"{call.name} returned {call.outcome}")
        self._check_time(agent, call)
        if call.name == "next_rendezvous":
            if self.closed_at is not None and call.started > self.closed_at and not self.may_lose:
                self.violate("S8", f"{agent.node} joined after the run had been closed")
        # A node of a life of the run that is over speaks of that one.
        elif call.name == "set_closed" and not self._was_reset(agent.machine.document):
            self.closed_at = self._hub.now if self.closed_at is None else self.closed_at

    def failed(self, agent: Agent, call: Call, exc: Exception) -> None:
        """A call has raised."""
        text = f"{call.name} raised {type(exc).__name__}: {exc}"
        self.note(agent.process.name, text)
        self._check_time(agent, call)
        document = None if agent.handler is None else agent.machine.document
        closed = document is not None and document.closed
        if isinstance(exc, RendezvousStateError):
            if self._was_reset(document):
                return
            self.ruined = True
            if not (self.spoilt or self.may_lose):
                self.violate("S10", f"{agent.node}: {text}, and the store is sound")
        elif isinstance(exc, RendezvousGracefulExitError):
            if not closed:
                self.violate("S8", f"{agent.node}: {text}, and the run is not closed")
        elif isinstance(exc, RendezvousClosedError):
            if not closed and agent.order is None:
                self.violate("S8", f"{agent.node}: {text}, and the run is not closed")
        elif isinstance(exc, RendezvousConnectionError):
            self._check_outage(agent, text)
        elif not isinstance(exc, RendezvousTimeoutError):
            self.violate("S10", f"{agent.node}: {text}")
        if self.healthy and agent.node not in self.excused:
            self.violate("L6", f"{agent.node}: {text}, while all was well")

    def _was_reset(self, known: Document | None) -> bool:
        """Whether the life of the run that a node knows has been ended by an operator."""
        now = self.run.document
        if known is None or now is None or known.epoch == now.epoch:
            return False
        return self.run.is_reset

    def _check_time(self, agent: Agent, call: Call) -> None:
        if call.allowed is None or agent.was_spare:
            return
        end = self._hub.now if call.ended is None else call.ended
        took = (end - call.started - agent.paused_for) * agent.process.rate
        if took > call.allowed + GRACE:
            self.violate("L4", f"{agent.node} was in {call.name} for {took:.1f} s")

    def overdue(self, agent: Agent) -> None:
        """Check the call that an agent is in, if it is in one."""
        if agent.calls and agent.calls[-1].ended is None and agent.lives:
            self._check_time(agent, agent.calls[-1])

    def _check_outage(self, agent: Agent, text: str) -> None:
        spans = sorted(self.trouble.get("", []) + self.trouble.get(agent.process.name, []))
        now, patience = self._hub.now, self._scenario.patience / agent.process.rate
        begun = ended = -1e9
        for start, end in spans:
            if start > ended + 10.0:
                begun = start
            ended = max(ended, end)
            if start <= now <= ended + 15.0 and min(now, ended) - begun >= 0.5 * patience:
                return
        self.violate("L6", f"{agent.node}: {text}, and the store was not away for so long")


def _document_in(state: _State) -> Document | None:
    return decode(Document, state.document.encode(), "The document") if state.document else None


def _masters(round_: _Round) -> set[Any]:
    return {joined.master for joined in round_.joined.values()}


def _told(document: Document) -> str:
    leader: Leader | None = document.leader
    parts = [
        f"{document.version}: round {document.round}",
        f"leader {leader.node if leader else '-'}",
    ]
    if document.master is not None:
        parts.append(f"store {document.master.host}:{document.master.port}")
    if document.change is not None:
        parts.append(f"change {msgspec.json.encode(document.change).decode()}")
    if document.closed:
        parts.append("closed")
    return ", ".join(parts)
