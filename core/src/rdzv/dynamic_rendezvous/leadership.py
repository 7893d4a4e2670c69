"""What a leader knows of the roster, and the pure decision what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from .document import Change, Document, Member, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Assign = Callable[[Sequence["Entry"], str], Sequence["Entry"]]
    """Orders the nodes that were chosen for a round, given the leader, by their new ranks."""

__all__ = [
    "Complete",
    "Decision",
    "Entry",
    "Hold",
    "Reopen",
    "Roster",
    "Standing",
    "Waiting",
    "assign_ranks",
    "decide",
]


class Standing(enum.Enum):
    """Where a node of the roster stands towards the last completed round."""

    HERE = "participant, its workers run"
    BACK = "participant that has come back for the next round"
    LEFT = "participant that left"
    LOST = "node whose beat stopped"
    NEW = "arrived since"


@dataclass
class Entry:
    """One node as the leader sees it."""

    ticket: int
    rank: int
    record: Record
    standing: Standing
    before: Standing | None = None
    """Where a lost node stood, in case that it beats again."""
    proven: bool = True
    """Whether the leader knows that it lives: it has come, or beaten, in the leader's term."""

    @property
    def node(self) -> str:
        return self.record.node

    @property
    def slot(self) -> int:
        """Where the node beats."""
        return self.record.slot or self.ticket


@dataclass
class Roster:
    """The fold of the roster's log over the participants of the last completed round.

    Folding a record twice, or late, changes nothing: of one node only a record that
    was made later counts.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    seen: int = 0
    """Every ticket up to this one has been folded or is a hole."""
    holes: dict[int, float] = field(default_factory=dict)
    """Tickets without a record, and since when (the leader's clock, seconds)."""
    _latest: dict[str, tuple[int, int]] = field(default_factory=dict)

    def load(self, members: Iterable[Member], upto: int) -> None:
        """Start from what a completed round handed on."""
        self.entries.clear()
        self._latest.clear()
        self.holes.clear()
        for member in members:
            standing = Standing.HERE if member.rank >= 0 else Standing.NEW
            entry = Entry(member.ticket, member.rank, member.record, standing)
            self.entries[entry.node] = entry
            self._latest[entry.node] = (member.record.number, member.ticket)
        self.seen = upto

    def fold(self, ticket: int, record: Record | None, now: float) -> None:
        """Take in one line of the log; ``None`` is a ticket whose record has not come."""
        self.seen = max(self.seen, ticket)
        if record is None:
            self.holes.setdefault(ticket, now)
            return
        self.holes.pop(ticket, None)
        made = (record.number, ticket)
        if made <= self._latest.get(record.node, (-1, 0)):
            return
        self._latest[record.node] = made
        entry = self.entries.get(record.node)
        if record.kind == "leave":
            if entry is None:
                return
            if entry.rank >= 0:
                entry.standing = Standing.LEFT
            else:
                del self.entries[record.node]
        elif entry is not None and entry.rank >= 0:
            entry.ticket, entry.record, entry.standing = ticket, record, Standing.BACK
            entry.proven = True
        else:
            self.entries[record.node] = Entry(ticket, -1, record, Standing.NEW)

    def fill(self, ticket: int) -> None:
        """The hole at ``ticket`` was buried, or was forgotten before this leader came."""
        self.seen = max(self.seen, ticket)
        self.holes.pop(ticket, None)

    def lose(self, node: str) -> None:
        """The beat of ``node`` has stopped."""
        entry = self.entries[node]
        if entry.standing is not Standing.LOST:
            entry.before, entry.standing = entry.standing, Standing.LOST

    def find_again(self, node: str) -> None:
        """A node has beaten: one that was taken for dead before the next round, maybe."""
        entry = self.entries[node]
        entry.proven = True
        if entry.standing is Standing.LOST and entry.before is not None:
            entry.standing = entry.before

    def complete(self, chosen: Sequence[Entry]) -> None:
        """A round has completed with ``chosen``, in the order of their ranks."""
        members = {}
        for rank, entry in enumerate(chosen):
            members[entry.node] = Entry(entry.ticket, rank, entry.record, Standing.HERE)
        waiting = {e.node: e for e in self.those(Standing.NEW) if e.node not in members}
        # Of a run that was scaled down: they had a place, and wait for another.
        for e in self.those(Standing.BACK):
            if e.node not in members:
                waiting[e.node] = Entry(e.ticket, -1, e.record, Standing.NEW, proven=e.proven)
        self.entries = members | waiting

    def those(self, *standings: Standing) -> list[Entry]:
        """The nodes of these standings by ticket."""
        found = [entry for entry in self.entries.values() if entry.standing in standings]
        return sorted(found, key=lambda entry: entry.ticket)

    def doubt(self, but: str) -> None:
        """Who has entered before this leader came may have died as well."""
        for entry in self.those(Standing.BACK, Standing.NEW):
            entry.proven = entry.node == but

    def doubtful(self) -> bool:
        """Whether there is one of whom it is not known that it lives."""
        return any(not entry.proven for entry in self.those(Standing.NEW))

    def gone(self) -> list[Entry]:
        """The participants of the last completed round that were lost or left."""
        return [e for e in self.those(Standing.LOST, Standing.LEFT) if e.rank >= 0]

    def handed_on(self) -> list[Member]:
        """What the next leader has to know: the participants, and who waits."""
        known = self.those(Standing.HERE, Standing.NEW)
        return [
            Member(e.ticket, e.rank if e.standing is Standing.HERE else -1, e.record) for e in known
        ]

    def successor(self, node: str, alive: Callable[[str], bool]) -> Entry | None:
        """Who leads after ``node`` has left: the living participant behind it, or who waits."""
        left = self.entries.get(node)
        rank = -1 if left is None else left.rank
        others = [
            e
            for e in self.those(Standing.HERE, Standing.BACK, Standing.NEW)
            if e.node != node and alive(e.node)
        ]
        return min(
            others, key=lambda e: (e.rank < 0, e.rank <= rank, e.rank, e.ticket), default=None
        )

    def watched(self, but: str) -> dict[str, int]:
        """The nodes whose beats matter, and their slots; without one.

        Two nodes have one slot where a store that failed over gave a ticket twice.
        """
        return {
            e.node: e.slot
            for e in self.entries.values()
            if e.standing is not Standing.LEFT and e.node != but
        }

    @property
    def complete_upto(self) -> int:
        """The highest ticket below which nothing is missing."""
        return min(self.holes, default=self.seen + 1) - 1


class Waiting(enum.Enum):
    """Why a round does not complete yet."""

    STANDS = "the round stands"
    CHECKPOINT = "nodes have arrived, and wait until workers have reached a checkpoint"
    SHORT = "a participant was lost, and too few nodes are left for another round"
    RETURN = "participants of the round before have still to come back"
    MINIMUM = "fewer than min_nodes are here"
    PROOF = "whether those who are here still live has to be seen"
    LAST_CALL = "min_nodes are here, the last call is running"
    CLOSED = "the run is closed"


@dataclass(frozen=True)
class Hold:
    """Nothing is to be done, for ``reason``; look again at ``until`` (leader's clock)."""

    reason: Waiting
    until: float | None = None
    arrived: int = 0
    """Nodes that wait for a checkpoint and nothing else."""


@dataclass(frozen=True)
class Reopen:
    """Tell the participants that the round has to be formed anew."""

    change: Change


@dataclass(frozen=True)
class Complete:
    """Complete a round with these nodes, in the order of their ranks."""

    entries: Sequence[Entry]
    gone: int
    """Participants of the round before that were lost or left."""


Decision = Hold | Reopen | Complete


class Ranked(Protocol):
    """What has to be known of a node to give it a rank."""

    @property
    def node(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def ticket(self) -> int: ...


N = TypeVar("N", bound=Ranked)


def assign_ranks(entries: Sequence[N], leader: str = "") -> list[N]:
    """Order nodes by their new ranks: who stays keeps the order, newcomers fill the gaps.

    Rank 0 is a node that was in the round before, where there is one: what the
    workers hold in memory spreads from rank 0. Where all are new it is the
    ``leader``, who has a store for the workers ready.
    """
    size = len(entries)
    staying = sorted((e for e in entries if e.rank >= 0), key=lambda e: e.rank)
    ranks: dict[int, N] = {}
    lowest = 0
    for place, entry in enumerate(staying):
        # As near to its old rank as those behind it leave room.
        rank = 0 if place == 0 else max(lowest, min(entry.rank, size - (len(staying) - place)))
        ranks[rank] = entry
        lowest = rank + 1
    new = [e for e in entries if e.rank < 0]
    newcomers = iter(sorted(new, key=lambda e: (e.node != leader, e.ticket)))
    return [ranks[rank] if rank in ranks else next(newcomers) for rank in range(size)]


def decide(
    roster: Roster,
    document: Document,
    called_since: float | None,
    now: float,
    last_call: float,
    assign: Assign = assign_ranks,
    *,
    checkpoint: bool = False,
) -> Decision:
    """What a leader has to do, or why nothing.

    Args:
        roster: What it knows.
        document: The run's document.
        called_since: Since when ``min_nodes`` are here without interruption, if they are.
        now: Its monotonic clock (seconds).
        last_call: How long to wait for more than ``min_nodes`` (seconds).
        assign: Gives out the ranks.
        checkpoint: Whether workers of this round were told that a new one opens.
    """
    if document.closed:
        return Hold(Waiting.CLOSED)
    here = roster.those(Standing.HERE)
    back = roster.those(Standing.BACK)
    new = [entry for entry in roster.those(Standing.NEW) if entry.proven]
    if here and document.change is None:
        decision = _standing_round(roster, document, len(here), len(back), len(new))
        if document.admission == "deferred":
            return _defer(decision, checkpoint)
        return decision
    if here:
        return Hold(Waiting.RETURN)
    if not all(entry.proven for entry in back):
        return Hold(Waiting.PROOF)  # Until they beat, or are lost.
    if len(back) + len(new) < document.min_nodes:
        return Hold(Waiting.MINIMUM)
    if len(back) + len(new) < document.max_nodes:
        until = (now if called_since is None else called_since) + last_call
        if now < until:
            return Hold(Waiting.LAST_CALL, until)
    leader = "" if document.leader is None else document.leader.node
    # Where a run was scaled down, the first ranks stay.
    back.sort(key=lambda entry: entry.rank)
    chosen = assign((back + new)[: document.max_nodes], leader)
    return Complete(chosen, gone=len(roster.gone()))


def _standing_round(
    roster: Roster, document: Document, here: int, back: int, new: int
) -> Hold | Reopen:
    gone = roster.gone()
    left = sum(entry.standing is Standing.LEFT for entry in gone)
    lost = len(gone) - left
    surplus = max(0, here + back - document.max_nodes)
    arrived = max(0, min(new, document.max_nodes - here - back))
    possible = here + back + new >= document.min_nodes
    if back or left or surplus or (possible and (lost or arrived)):
        return Reopen(Change(arrived, back, left, lost, surplus))
    return Hold(Waiting.SHORT if lost else Waiting.STANDS)


def _defer(decision: Hold | Reopen, checkpoint: bool) -> Hold | Reopen:
    """Arrivals alone wait for a checkpoint, and what workers were told then is kept."""
    if isinstance(decision, Reopen):
        arrived = decision.change.arrived
        alone = decision.change == Change(arrived=arrived)
        return Hold(Waiting.CHECKPOINT, arrived=arrived) if alone and not checkpoint else decision
    if checkpoint and decision.reason is Waiting.STANDS:
        return Reopen(Change(arrived=1))  # It has gone since, but it had arrived.
    return decision
