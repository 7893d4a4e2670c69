"""The duties of the node that leads: read the roster, watch the beats, close rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from .document import Admission, Assigned, Document, Leader, Master, place
from .leadership import (
    Complete,
    Entry,
    Hold,
    Reopen,
    Roster,
    Standing,
    Waiting,
    assign_ranks,
    decide,
)
from .liveness import Silence
from .messages import (
    Action,
    Bury,
    Called,
    Deferred,
    Forget,
    LogRead,
    Lost,
    Publish,
    ReadBeats,
    ReadLog,
    ReadRoster,
    RosterRead,
    SwapDocument,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .backend import Token
    from .leadership import Assign

__all__ = ["Leading", "Settings", "amend"]

_CHUNK = 1000
"""Nodes in one piece of the roster: a piece stays far below what is read at most."""


_LOOK_AT_LOG = 4
"""Intervals between two looks at the log that nothing has asked for."""

_FORGOTTEN = 4
"""After how many further times of silence a dead node that waited is watched no more."""

_SLICE = 64
"""Pieces that are freed in one go."""


@dataclass(frozen=True)
class Settings:
    """What a node was started with. All times are seconds."""

    min_nodes: int
    max_nodes: int
    last_call: float
    interval: float
    attempts: int
    rank_policy: str = ""
    """The name of what gives out ranks, as the document has it."""
    assign: Assign = assign_ranks
    admission: Admission = "immediate"
    listed: int = 64
    """Of up to so many nodes the places are in the document itself: some hundred bytes."""

    @property
    def patience(self) -> float:
        """A beat may be late by this much, and nobody is evicted."""
        return self.interval * (self.attempts - 1)

    @property
    def told_last_call(self) -> float:
        """The last call as people are told of it: a day at most."""
        return min(self.last_call, 86400.0)

    def silence(self, interval: float) -> float:
        """How long one that beats every ``interval`` is silent before it counts as dead."""
        return self.patience + interval


def amend(document: Document, write: str, **changes: object) -> Document:
    """The next version of ``document``."""
    return msgspec.structs.replace(document, version=document.version + 1, write=write, **changes)


class Leading:
    """One term as leader.

    Args:
        settings: This node's settings.
        me: This node's incarnation.
        new_id: Makes random names.
        dead: Who is dead, and for how long its silence was seen (seconds): the
            leader that this one replaces. Nobody waits for it a second time, unless
            it has come back since.
    """

    def __init__(
        self,
        settings: Settings,
        me: str,
        new_id: Callable[[], str],
        dead: Mapping[str, float] | None = None,
    ) -> None:
        self.roster = Roster()
        self._settings = settings
        self._me = me
        self._new_id = new_id
        self._dead = dict(dead or {})
        self._known_upto: dict[str, int] = {}
        """The ticket of one that is dead, as it was when it fell silent."""
        self._suspects: dict[str, float] = {}
        """Who fell silent, and has entered since or before: the next beats tell."""
        self.nonce = ""
        """The assignment that the roster rests on."""
        self._reported: set[str] = set()
        self._proven_by = 0.0
        self._resumed = False
        self._synced = False
        self.has_read_log = False
        """Whether it knows which tickets have been given out, and so what to wait for."""
        self._silence = Silence(settings.patience)
        self._called_since: float | None = None
        self._called_until: float | None = None
        """The end of the last call that was told of."""
        self._look_due = 0.0
        self._log_due = 0.0
        self._wake: float | None = None
        self._garbage: list[Action] = []
        self._along: frozenset[int] = frozenset()
        self._offer: tuple[str, Sequence[Entry], int] | None = None
        self._pieces: list[int] = []
        self._upto = 0
        self.holding: Waiting | None = None
        self.held: int | None = None
        """Nodes that wait for a checkpoint; ``None`` before the first decision."""
        self._told_held = 0
        self.let_in = 0
        """Nodes of the last round that this leader has completed which were not in that before."""

    @property
    def period(self) -> float:
        """Seconds between two looks at everybody's beats."""
        return self._settings.interval / 2

    def start(self, document: Document, now: float) -> list[Action]:
        """Begin the term: learn what the last completed round handed on."""
        self.nonce = document.nonce
        self._upto = document.upto
        self._look_due = now + self.period
        self._log_due = now + _LOOK_AT_LOG * self._settings.interval
        if document.version == 1 and not self._resumed:
            # Nobody can have entered before there was a document; who has since is
            # read as soon as this node has entered itself.
            self._synced = self.has_read_log = True
            return []
        if document.round == 0:
            return self._synchronised(0)
        return [ReadRoster(document.nonce, document.chunks)]

    def on_roster(self, read: RosterRead, document: Document) -> list[Action]:
        if read.nonce != document.nonce or self._synced:
            return []
        if read.members is None:
            # It was replaced while it was being read: the document has moved on.
            return []
        self.roster.load(read.members, document.upto)
        self._pieces = [member.ticket for member in read.members if member.rank >= 0]
        for member in read.members:
            if member.record.node in self._dead:
                # It may have entered behind a hole, and so above what is complete.
                known = max(document.upto, member.ticket)
                self._known_upto.setdefault(member.record.node, known)
        return self._synchronised(document.upto)

    def _synchronised(self, upto: int) -> list[Action]:
        self._synced = True
        return [ReadLog(upto)]

    def on_log(self, read: LogRead, now: float) -> list[Action]:
        for ticket, record in read.lines:
            if isinstance(record, bool):
                self.roster.fill(ticket)
            else:
                self.roster.fold(ticket, record, now)
        if read.more:
            return []
        if not self.has_read_log:
            self.has_read_log = True
            self.roster.doubt(but=self._me)
            # All that live beat until then, and are looked at once more.
            self._proven_by = now + 2 * self._settings.interval
        if self.roster.holes:
            # What waits for the record of a dead node's ticket hears of no other.
            self._log_due = min(self._log_due, now + self._settings.interval)
        dead, self._dead = self._dead, {}
        lost: list[Action] = []
        for node, silent in dead.items():
            entry = self.roster.entries.get(node)
            if entry is None or entry.standing is Standing.LEFT:
                continue
            if entry.ticket > self._known_upto.get(node, self._upto):
                self._suspects[node] = silent
            else:
                lost += self._lose(entry, silent)
        return lost

    def _lose(self, entry: Entry, silent: float) -> list[Action]:
        self.roster.lose(entry.node)
        return [] if entry.node in self._reported else [Lost(entry.record, silent)]

    def _lose_suspects(self, now: float) -> list[Action]:
        """Whoever was silent before this term and has not beaten in it is dead."""
        if now < self._proven_by:
            return []
        suspects, self._suspects = self._suspects, {}
        found = [(self.roster.entries.get(node), silent) for node, silent in suspects.items()]
        return [
            action
            for entry, silent in found
            if entry is not None and entry.standing not in (Standing.LEFT, Standing.LOST)
            for action in self._lose(entry, silent)
        ]

    def on_beaten(self, along: Mapping[int, int], now: float) -> list[Action]:
        """This leader's own beat was taken; the counters ``along`` with it may be a whole look."""
        self._along = frozenset(along)
        return self.on_beats(along, now) if self._has_all_along() else []

    def _has_all_along(self) -> bool:
        return set(self.roster.watched(self._me).values()) <= self._along

    def on_beats(self, slots: Mapping[int, int], now: float) -> list[Action]:
        """Take in one look at the beats; says who was lost by it."""
        watched = self.roster.watched(self._me)
        counts = {node: (slot, slots[slot]) for node, slot in watched.items() if slot in slots}
        for node in self._silence.observe(counts, now, self.period):
            self.roster.find_again(node)
            self._suspects.pop(node, None)
        lost = self._lose_suspects(now)
        nearest = self.period
        for node in self._silence.suspects(counts):
            entry = self.roster.entries[node]
            left = self._settings.silence(entry.record.interval) - self._silence.of(node)
            if entry.standing is Standing.LOST:
                if entry.rank < 0 and -left > _FORGOTTEN * self._settings.silence(0.0):
                    # Nobody misses it; should it wake, it enters again.
                    del self.roster.entries[node]
                continue
            if left <= 1e-9 or self._silence.has_ended(node):
                lost.append(Lost(entry.record, self._silence.of(node)))
                self.roster.lose(node)
            else:
                nearest = min(nearest, left)
        self._look_due = now + nearest
        return lost

    def due(self) -> float:
        """When :meth:`tick` has something to do next."""
        return min(self._look_due, self._log_due, self._wake or math.inf)

    def look_for_records(self, now: float) -> float | None:
        """After which time to read the log again although no later ticket's record has come.

        A record is written a moment after its ticket is taken, and whoever waits for
        the next one does not hear of it: as long as the hole is old, again.
        """
        return min((now - since for since in self.roster.holes.values()), default=None)

    def tick(self, now: float, *, beating: bool) -> list[Action]:
        """Do what time has brought; ``beating``: this node is giving a beat just now."""
        actions: list[Action] = []
        if self._wake is not None and now >= self._wake:
            self._wake = None
            actions.append(ReadLog(self.roster.complete_upto))
        if now >= self._log_due:
            # Whatever pushes arrivals waits for the next ticket's record: behind a hole
            # others may have come.
            self._log_due = now + _LOOK_AT_LOG * self._settings.interval
            actions += self._bury_old_holes(now)
            actions.append(ReadLog(self.roster.complete_upto))
        if now >= self._look_due:
            self._look_due = now + self.period
            slots = list(dict.fromkeys(self.roster.watched(self._me).values()))
            if slots and not (beating and self._has_all_along()):
                actions.append(ReadBeats(slots))
        # A little at a time: each may be a request for each of its pieces.
        actions += self._garbage[:1]
        del self._garbage[:1]
        return actions

    def _bury_old_holes(self, now: float) -> list[Action]:
        # A node that died between taking a ticket and writing its record must
        # stop nobody; one that was only slow finds the grave and takes a new one.
        limit = self._settings.silence(self._settings.interval)
        old = [ticket for ticket, since in self.roster.holes.items() if now - since > limit]
        return [Bury(ticket) for ticket in old]

    def expected(self, document: Document) -> int:
        """How many more records have to come before the leader could do anything."""
        here = len(self.roster.those(Standing.HERE))
        if here:
            return here if document.change is not None else 1
        present = len(self.roster.those(Standing.BACK, Standing.NEW))
        goal = document.min_nodes if present < document.min_nodes else document.max_nodes
        return max(1, goal - present)

    def pursue(
        self,
        document: Document,
        token: Token,
        now: float,
        *,
        fresh: bool,
        master: Master | None,
        number: int,
        checkpoint: bool = False,
        wall: float = 0.0,
    ) -> list[Action]:
        """Do what has to be done now.

        Args:
            document: The document.
            token: Its token.
            now: The monotonic clock (seconds).
            fresh: Whether the log has just been read. A round completes only on
                a last look at it.
            master: A store for the workers that this node has ready.
            number: What the next round is called.
            checkpoint: Whether workers have reached one, and were told that a round opens.
            wall: What the wall clock says, for people.
        """
        if not self._synced:
            return []
        # The last call is given to nodes of which it is known that they live.
        present = sum(entry.proven for entry in self.roster.those(Standing.BACK, Standing.NEW))
        if present < document.min_nodes:
            self._called_since = None
        elif self._called_since is None:
            self._called_since = now
        settings = self._settings
        decision = decide(
            self.roster,
            document,
            self._called_since,
            now,
            settings.last_call,
            settings.assign,
            checkpoint=checkpoint,
        )
        self.held = decision.arrived if isinstance(decision, Hold) else 0
        self._wake = None
        self.holding = None
        if isinstance(decision, Hold):
            self.holding = decision.reason
            self._wake = decision.until
            return self._tell(decision, present, now)
        if isinstance(decision, Complete) and self._awaits_proof(decision, document, now):
            self.holding = Waiting.PROOF
            self._wake = self._proven_by
            return []
        if isinstance(decision, Reopen):
            # Who has not read its place by now finds it among the pieces.
            reopened = amend(document, self._new_id(), change=decision.change, places="")
            return [SwapDocument(reopened, token)]
        if not fresh:
            return [ReadLog(self.roster.complete_upto)]
        return self._complete(document, token, decision, master, number, wall)

    def _tell(self, hold: Hold, present: int, now: float) -> list[Action]:
        """Tell of a last call that has begun, and of nodes that are held up, each once."""
        told, self._told_held = self._told_held, max(self._told_held, hold.arrived)
        if hold.arrived > told:
            return [Deferred(hold.arrived)]
        if hold.until is None or hold.until == self._called_until:
            return []
        self._called_until = hold.until
        return [Called(present, hold.until - now)]

    def _awaits_proof(self, decision: Complete, document: Document, now: float) -> bool:
        """Whether one of whom it is not yet known that it lives would be in the round as well."""
        room = len(decision.entries) < document.max_nodes
        doubtful = bool(self._suspects) or (room and self.roster.doubtful())
        return now < self._proven_by and doubtful

    def again(self) -> Leading:
        """The same term after an interruption: read all anew, but know who was lost."""
        term = Leading(self._settings, self._me, self._new_id)
        term._silence = self._silence
        term._resumed = True
        lost = {entry.node: entry.ticket for entry in self.roster.those(Standing.LOST)}
        term._dead = self._dead | self._suspects | dict.fromkeys(lost, 0.0)
        term._known_upto = self._known_upto | lost
        term._reported = self._reported | lost.keys()
        term._told_held = self._told_held
        return term

    def _complete(
        self,
        document: Document,
        token: Token,
        decision: Complete,
        master: Master | None,
        number: int,
        wall: float,
    ) -> list[Action]:
        nonce = self._new_id()
        own = next((r for r, e in enumerate(decision.entries) if e.node == self._me), -1)
        after = Roster(dict(self.roster.entries))
        after.complete(decision.entries)
        members = after.handed_on()
        chunks = [members[i : i + _CHUNK] for i in range(0, len(members), _CHUNK)]
        if document.leader is None:
            raise AssertionError("only the leader that the document names completes a round")
        leader = msgspec.structs.replace(document.leader, rank=own)
        if self._me in self.roster.entries:
            leader = msgspec.structs.replace(leader, slot=self.roster.entries[self._me].slot)
        self._offer = (nonce, decision.entries, len(chunks))
        return [
            Publish(
                nonce,
                {e.ticket: Assigned(e.node, r) for r, e in enumerate(decision.entries)},
                chunks,
            ),
            SwapDocument(
                amend(
                    document,
                    self._new_id(),
                    round=number,
                    nonce=nonce,
                    size=len(decision.entries),
                    upto=self.roster.complete_upto,
                    chunks=len(chunks),
                    places=self._places(decision.entries),
                    gone=decision.gone,
                    leader=leader,
                    # Only this node's own store is at hand before anybody knows its rank.
                    master=master if own == 0 else None,
                    change=None,
                    since=wall,
                ),
                token,
            ),
        ]

    def _places(self, chosen: Sequence[Entry]) -> str:
        if len(chosen) > self._settings.listed:
            return ""
        return " ".join(place(entry.ticket, entry.node) for entry in chosen)

    def on_won(self, before: Document, document: Document) -> Assigned | None:
        """This leader's swap took effect; returns its own place where a round completed by it."""
        if self._offer is None or self._offer[0] != document.nonce:
            return None
        _, chosen, _ = self._offer
        self._offer = None
        self.nonce = document.nonce
        self._called_since = None
        self._told_held = 0
        self.let_in = sum(entry.rank < 0 for entry in chosen)
        self._garbage += _pieces_of(before.nonce, self._pieces)
        self._garbage.append(Forget(before.upto, document.upto, before.nonce, (), before.chunks))
        self._pieces = [entry.ticket for entry in chosen]
        self.roster.complete(chosen)
        for rank, entry in enumerate(chosen):
            if entry.node == self._me:
                return Assigned(entry.node, rank)
        return None

    def on_lost(self) -> None:
        """This leader's swap did not take effect: what it published for it is read by nobody."""
        if self._offer is not None:
            nonce, chosen, chunks = self._offer
            self._offer = None
            self._garbage += _pieces_of(nonce, [entry.ticket for entry in chosen])
            self._garbage.append(Forget(0, 0, nonce, (), chunks))

    def hand_over(self, document: Document, token: Token) -> SwapDocument:
        """Name the next leader, as this one leaves: one whose beat it has seen, or nobody."""
        within = 1.5 * self._settings.interval
        entry = self.roster.successor(self._me, lambda n: self._silence.has_beaten(n, within))
        heir = None
        if entry is not None:
            rank = entry.rank if entry.standing is not Standing.NEW else -1
            interval, told = entry.record.interval / 2, self._settings.told_last_call
            heir = Leader(entry.node, interval, rank, entry.slot, told)
        return SwapDocument(amend(document, self._new_id(), leader=heir), token)


def _pieces_of(nonce: str, tickets: Sequence[int]) -> list[Action]:
    return [Forget(0, 0, nonce, tickets[i : i + _SLICE], 0) for i in range(0, len(tickets), _SLICE)]
