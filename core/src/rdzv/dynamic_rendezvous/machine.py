"""The protocol as seen by one node: stimuli in, actions out; no clock, thread or socket.

``TRANSITIONS`` is the whole life of a node. A step that is not in it raises
:class:`IllegalTransition` with the steps that led there.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import RendezvousStateError
from .document import SCHEMA, Assigned, Change, Document, Leader, Master, Record
from .leader import Leading, Settings, amend
from .liveness import Silence
from .messages import (
    Action,
    Attach,
    Beat,
    Beaten,
    BeatsRead,
    Close,
    Departed,
    DocumentRead,
    Enter,
    Entered,
    Interrupted,
    Join,
    Joined,
    Latched,
    Leave,
    LogRead,
    Look,
    MasterOpened,
    OpenMaster,
    PieceRead,
    Read,
    ReadBeats,
    ReadPiece,
    ReadRoster,
    Refusal,
    Refused,
    RosterRead,
    Stimulus,
    SwapDocument,
    Swapped,
    Tick,
    TookOver,
    Touch,
    Withdraw,
    Withdrawn,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Token

__all__ = ["TRANSITIONS", "IllegalTransition", "Machine", "Phase"]


_READ_AGAIN = 20.0
"""Seconds after which the document is read although nobody said that it has changed."""


class Phase(enum.Enum):
    """Where a node is in its life."""

    IDLE = "not in the run"
    ATTACHING = "asks for the run's document"
    ENTERING = "asks for a ticket"
    WAITING = "has a ticket, waits for a round to complete"
    SPARE = "has a ticket, the round is full"
    RANKING = "a round has completed, asks for its rank"
    BOOTSTRAPPING = "has a rank, waits for the address of the workers' store"
    MEMBER = "participant of a completed round"
    LEFT = "has left the run"


_IN_ROSTER = frozenset(
    {Phase.WAITING, Phase.SPARE, Phase.RANKING, Phase.BOOTSTRAPPING, Phase.MEMBER}
)

_IN_ROUND = frozenset({Phase.RANKING, Phase.BOOTSTRAPPING, Phase.MEMBER})
"""A round has completed, and this node may well be in it."""

TRANSITIONS: dict[tuple[Phase, Phase], str] = {
    (Phase.IDLE, Phase.ATTACHING): "joins, the run is not known yet",
    (Phase.IDLE, Phase.ENTERING): "joins again",
    (Phase.ATTACHING, Phase.ENTERING): "the run is known",
    (Phase.ATTACHING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.ENTERING, Phase.WAITING): "has its ticket",
    (Phase.ENTERING, Phase.ENTERING): "the connection was lost, takes another ticket",
    (Phase.ENTERING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.WAITING, Phase.SPARE): "the round is full",
    (Phase.SPARE, Phase.WAITING): "there is room",
    (Phase.WAITING, Phase.RANKING): "a round has completed",
    (Phase.SPARE, Phase.RANKING): "a round has completed",
    (Phase.RANKING, Phase.WAITING): "without this node",
    (Phase.RANKING, Phase.BOOTSTRAPPING): "with this node",
    (Phase.BOOTSTRAPPING, Phase.MEMBER): "the workers' store is known",
    (Phase.WAITING, Phase.ENTERING): "may have been taken for dead, takes another ticket",
    (Phase.SPARE, Phase.ENTERING): "may have been taken for dead, takes another ticket",
    (Phase.RANKING, Phase.ENTERING): "the round was superseded",
    (Phase.BOOTSTRAPPING, Phase.ENTERING): "the round was abandoned before its store was known",
    (Phase.MEMBER, Phase.ENTERING): "comes back for the next round",
    (Phase.MEMBER, Phase.IDLE): "time is up",
    (Phase.WAITING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.SPARE, Phase.IDLE): "the run is closed, or time is up",
    (Phase.RANKING, Phase.IDLE): "the run is closed, or time is up",
    (Phase.BOOTSTRAPPING, Phase.IDLE): "the run is closed, or time is up",
} | {(phase, Phase.LEFT): "leaves the run" for phase in Phase if phase is not Phase.LEFT}


class IllegalTransition(AssertionError):  # noqa: N818 - what it is called in the field
    """The machine was led where it cannot go: a bug, told with its history."""


class Machine:
    """One node's part in the protocol.

    Args:
        settings: What the node was started with.
        me: This node as its records name it.
        new_id: Makes random names.
        jitter: Makes random numbers between 0 and 1.
    """

    def __init__(
        self,
        settings: Settings,
        me: Record,
        new_id: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.phase = Phase.IDLE
        self.document: Document | None = None
        self.token: Token = None
        self.leading: Leading | None = None
        self.latch: str | None = None
        self.round = 0
        self.rank = -1
        self._me = me
        self._new_id = new_id
        self._jitter = jitter
        self._ticket = 0
        self._slot = 0
        self._entered_round = 0
        self._master: Master | None = None
        self._opening = False
        self._closing = False
        self._closing_round: int | None = None
        self._beats = False
        self._beat_due = 0.0
        self._look_due = 0.0
        self._read_due = 0.0
        self._beaten = 0.0
        self._missed = False
        self._missed_roster: str | None = None
        self._silence = Silence(settings.patience)
        self._usurp: str | None = None
        self._vacant_since: float | None = None
        self._history: deque[str] = deque(maxlen=64)
        self._handlers: dict[type[Any], Callable[[Any, float], list[Action]]] = {
            Join: self._on_join,
            Withdraw: self._on_withdraw,
            Leave: self._on_leave,
            Close: self._on_close,
            Look: self._on_look,
            Touch: self._on_touch,
            Tick: self._on_tick,
            Interrupted: self._on_interrupted,
            DocumentRead: self._on_document,
            Swapped: self._on_swapped,
            Entered: self._on_entered,
            Beaten: self._on_beaten,
            PieceRead: self._on_piece,
            RosterRead: self._on_roster,
            LogRead: self._on_log,
            BeatsRead: self._on_beats,
            MasterOpened: self._on_master,
        }

    # ------------------------------------------------------------ outside

    def on(self, stimulus: Stimulus, now: float) -> list[Action]:
        """Take one stimulus; ``now`` is the node's monotonic clock (seconds).

        Returns:
            What is to be done, in this order. Where an action has an answer, it
            is given back as a stimulus before the next action is carried out. Where
            the connection breaks, only the ``FACTS`` among the rest still are.

        Raises:
            RendezvousStateError: The store holds what cannot be.
        """
        self._history.append(f"{now:.3f} {type(stimulus).__name__}")
        return self._handlers[type(stimulus)](stimulus, now)

    def due(self) -> float | None:
        """When the next :class:`Tick` is due, if any (this node's clock)."""
        times = []
        if self._beats:
            times += [self._beat_due, self._look_due]
        if self.leading is not None and not self.closed:
            times.append(self.leading.due())
        return min(times, default=None)

    @property
    def node(self) -> str:
        """This node's incarnation."""
        return self._me.node

    @property
    def closed(self) -> bool:
        return self.document is not None and self.document.closed

    @property
    def in_roster(self) -> bool:
        return self.phase in _IN_ROSTER

    # ------------------------------------------------------------ calls

    def _on_join(self, _: Join, now: float) -> list[Action]:
        self.latch = None
        if self.phase is Phase.LEFT:
            return [Refused(Refusal.LEFT)]
        if self.document is None:
            self._move(Phase.ATTACHING)
            # One request where the run is young, and everybody's first is the same.
            return [SwapDocument(self._first_document(), None)]
        self._check_settings(self.document)
        return self._enter(now)

    def _on_look(self, _: Look, now: float) -> list[Action]:
        return [Read()]

    def _on_touch(self, _: Touch, now: float) -> list[Action]:
        return [] if self.document is None else [self._swap(self.document)]

    def _on_withdraw(self, withdraw: Withdraw, now: float) -> list[Action]:
        if self.phase is Phase.LEFT:
            return []
        if withdraw.accept and self.phase in _IN_ROUND:
            return []
        actions = self._leave_roster()
        if self.phase is not Phase.IDLE:
            self._move(Phase.IDLE)
        return [*actions, *self._pursue(now), Withdrawn()]

    def _on_leave(self, _: Leave, now: float) -> list[Action]:
        if self.phase is Phase.LEFT:
            return [Departed()]
        actions = self._leave_roster()
        self._move(Phase.LEFT)
        return [*actions, *self._pursue(now), Departed()]

    def _leave_roster(self) -> list[Action]:
        self._beats = False
        self.latch = None
        # What was interrupted while it entered may have entered all the same.
        if not self.in_roster and self.phase is not Phase.ENTERING:
            return []
        return [Enter(self._record("leave"))]

    def _on_close(self, close: Close, now: float) -> list[Action]:
        self._closing = True
        self._closing_round = close.last_round
        if self.document is None:
            return [Read()]
        return self._pursue(now)

    # ------------------------------------------------------------ time

    def _on_tick(self, _: Tick, now: float) -> list[Action]:
        actions: list[Action] = []
        # So much silence, and a little more, would have been this node's death.
        paused = self._missed or now - self._beaten > self._longest_silence()
        beating = self._beats and now >= self._beat_due
        if self._beats:
            actions += self._tick_in_roster(now, paused=paused)
        if self.leading is not None and not self.closed:
            actions += self.leading.tick(now, beating=beating)
        return actions

    def _tick_in_roster(self, now: float, *, paused: bool) -> list[Action]:
        actions: list[Action] = []
        # Before all else: what a leader has to do can take long.
        if now >= self._beat_due:
            self._beat_due = now + self._beat_period()
            actions.append(Beat(self._beat_slot()))
        if now >= self._read_due:
            # Whatever pushes changes may have missed one.
            self._read_due = now + _READ_AGAIN
            actions.append(Read())
        if paused and self.phase in (Phase.WAITING, Phase.SPARE):
            self._missed = False
            actions += self._enter(now)
        if self.leading is not None:
            self._look_due = self._beat_due
        elif now >= self._look_due:
            actions += self._look_at_leader(now)
        return actions

    def _on_beaten(self, beaten: Beaten, now: float) -> list[Action]:
        self._missed = self._missed or now - self._beaten > self._longest_silence()
        self._beaten = now
        if self.leading is not None:
            return [*self.leading.on_beaten(beaten.along, now), *self._pursue(now)]
        leader = None if self.document is None else self.document.leader
        if leader is None or leader.slot not in beaten.along:
            return []
        # A look for nothing. One that is asked for is due only if the next does not come.
        interval = self.settings.interval
        self._look_due = now + 1.5 * interval
        return self._observe_leader(beaten.along[leader.slot], now, interval)

    def _beat_slot(self) -> int:
        """Where this node beats: where the document says of its leader, else in its own slot."""
        leader = None if self.document is None else self.document.leader
        if leader is not None and leader.node == self._me.node:
            return leader.slot
        return self._slot

    def _longest_silence(self) -> float:
        """Seconds without a beat after which others may have taken this node for dead."""
        return self.settings.patience + self.settings.interval / 2

    def _beat_period(self) -> float:
        return self.settings.interval / (1 if self.leading is None else 2)

    def _look_at_leader(self, now: float) -> list[Action]:
        period = self._look_period()
        self._look_due = now + period
        document = self.document
        if document is None or document.closed:
            return []
        if document.leader is None:
            if self._vacant_since is None:
                self._vacant_since = now
            if self._is_near() or now - self._vacant_since >= self.settings.interval:
                return self._take_over(document, now)
            return []
        return [ReadBeats([document.leader.slot])]

    def _is_near(self) -> bool:
        """Whether this node is one of the two that look at the leader most often."""
        document = self.document
        if document is None:
            return False
        if document.round == 0:
            return self._ticket <= 3
        if not self.in_roster or self.round != document.round:
            return False
        leader = document.leader
        return (self.rank - (-1 if leader is None else leader.rank) - 1) % document.size < 2

    def _look_period(self) -> float:
        return self.settings.interval * (1 if self._is_near() else 4)

    def _on_beats(self, read: BeatsRead, now: float) -> list[Action]:
        if self.leading is not None:
            lost = self.leading.on_beats(read.counts, now)
            return [*lost, *self._pursue(now)]
        leader = None if self.document is None else self.document.leader
        if leader is None or leader.slot not in read.counts:
            return []
        return self._observe_leader(read.counts[leader.slot], now, self._look_period())

    def _observe_leader(self, count: int, now: float, period: float) -> list[Action]:
        document = self.document
        if document is None or document.leader is None:
            return []
        leader = document.leader
        self._silence.observe({leader.node: count}, now, period)
        limit = self.settings.silence(leader.interval)
        if not self._is_near():
            # Leave it to those who are near, unless they are gone with the leader.
            limit += self.settings.interval * (1 + self._jitter())
        left = limit - self._silence.of(leader.node)
        if left <= 1e-9:
            return self._take_over(document, now)
        if self._silence.of(leader.node) > 0:
            self._look_due = min(self._look_due, now + min(period, left))
        return []

    def _take_over(self, document: Document, now: float) -> list[Action]:
        if self.phase not in _IN_ROSTER:
            return []
        self._usurp = "" if document.leader is None else document.leader.node
        return self._pursue(now)

    # ------------------------------------------------------------ answers

    def _on_interrupted(self, _: Interrupted, now: float) -> list[Action]:
        self.leading = None  # What it knew of the roster may be old: read all of it again.
        if self.phase in (Phase.ENTERING, Phase.WAITING, Phase.SPARE, Phase.RANKING):
            # The ticket may be a hole by now, or this node taken for dead.
            return [Read(), *self._enter(now)]
        if self.phase is Phase.LEFT and self.document is not None:
            return [Enter(self._record("leave")), Read(), Departed()]
        return [Read()]

    def _on_document(self, read: DocumentRead, now: float) -> list[Action]:
        if read.document is None:
            if self.document is not None:
                raise RendezvousStateError(
                    "The store no longer knows this run: it was restarted without its data, or "
                    "the run was reset. Start the job again on all nodes."
                )
            if self.phase is not Phase.ATTACHING and not self._closing:
                return []  # Somebody only looks.
            return [SwapDocument(self._first_document(), None)]
        return self._take(read.document, read.token, now)

    def _first_document(self) -> Document:
        settings = self.settings
        joining = self.phase is Phase.ATTACHING
        return Document(
            schema=SCHEMA,
            epoch=self._new_id(),
            version=1,
            write=self._new_id(),
            min_nodes=settings.min_nodes,
            max_nodes=settings.max_nodes,
            leader=Leader(self._me.node, settings.interval / 2) if joining else None,
            closed=self._closing,
        )

    def _on_swapped(self, swapped: Swapped, now: float) -> list[Action]:
        before = self.document
        actions: list[Action] = []
        if swapped.won and self.leading is not None and before is not None:
            own = self.leading.on_won(before, swapped.document)
            if own is not None and self.phase in (Phase.WAITING, Phase.SPARE):
                self._entered_round = swapped.document.round
                actions = self._take(swapped.document, swapped.token, now)
                self._move(Phase.RANKING)
                return actions + self._ranked(own, now)
        return actions + self._take(swapped.document, swapped.token, now)

    def _take(self, document: Document, token: Token, now: float) -> list[Action]:
        """The document is now known to be this, or was at some time since."""
        before = self.document
        actions: list[Action] = []
        if before is None:
            if self.phase is Phase.ATTACHING:
                self._check_settings(document)
            actions.append(Attach(document.epoch))
        else:
            if document.epoch != before.epoch:
                raise RendezvousStateError(
                    f"The run in the store is another one now (epoch {document.epoch}, it was "
                    f"{before.epoch}): the store was restarted without its data, or the run was "
                    "reset. Start the job again on all nodes."
                )
            if document.version < before.version:
                return []
        self.document, self.token = document, token
        if document.master is not None and document.master == self._master:
            self._master = None  # Given to a round, whoever was told so: never to another.
        actions += self._follow_leader(before, document, now)
        if document.closed:
            return actions + self._on_closed(now)
        if self.phase is Phase.ATTACHING:
            return actions + self._enter(now)
        return actions + self._follow(document, now) + self._pursue(now)

    def _check_settings(self, document: Document) -> None:
        mine = (self.settings.min_nodes, self.settings.max_nodes)
        theirs = (document.min_nodes, document.max_nodes)
        if mine != theirs:
            raise RendezvousStateError(
                f"This node was started with min_nodes={mine[0]} and max_nodes={mine[1]}, but the "
                f"run has min_nodes={theirs[0]} and max_nodes={theirs[1]}. Start every node of a "
                "run with the same numbers, or use another run id."
            )

    def _follow_leader(
        self, before: Document | None, document: Document, now: float
    ) -> list[Action]:
        leader = document.leader
        silent = 0.0
        if before is None or before.leader != leader:
            silent = self._silence.of(self._usurp or "")
            self._silence = Silence(self.settings.patience)
            self._vacant_since = None
        instead, self._usurp = self._usurp, None
        if leader is None or leader.node != self._me.node or not self._takes_part():
            self.leading = None
            return []
        if self.leading is not None:
            return []
        dead = None if not instead else (instead, silent)
        self.leading = Leading(self.settings, self._me.node, self._new_id, dead)
        self._beat_due = min(self._beat_due, now + self._beat_period())
        return [TookOver(instead), *self.leading.start(document, now)]

    def _takes_part(self) -> bool:
        return self.phase not in (Phase.IDLE, Phase.LEFT)

    def _on_closed(self, now: float) -> list[Action]:
        self._closing = False
        phase = self.phase
        if phase in (Phase.MEMBER, Phase.LEFT, Phase.IDLE):
            return []
        actions = self._leave_roster()
        self._move(Phase.IDLE)
        refusal = Refusal.SURPLUS if phase is Phase.SPARE else Refusal.CLOSED
        return [Refused(refusal), *actions]

    def _follow(self, document: Document, now: float) -> list[Action]:
        """What the document means for a node in this phase."""
        phase = self.phase
        if phase in (Phase.WAITING, Phase.SPARE):
            if document.round > self._entered_round:
                self._entered_round = document.round
                self._move(Phase.RANKING)
                return [ReadPiece(document.nonce, self._ticket)]
            # A participant of a full round that comes back has its place in the next.
            spare = document.full and self.round != document.round
            if spare != (phase is Phase.SPARE):
                self._move(Phase.SPARE if spare else Phase.WAITING)
        elif phase is Phase.RANKING and document.round != self._entered_round:
            return self._enter(now)
        elif phase is Phase.BOOTSTRAPPING:
            if document.round == self.round and document.master is not None:
                return self._complete(document, document.master)
            if document.round != self.round or document.change is not None:
                return self._enter(now)
        elif phase is Phase.MEMBER:
            return self._watch_round(document)
        return []

    def _watch_round(self, document: Document) -> list[Action]:
        if self.latch is not None:
            return []
        if document.round > self.round:
            self.latch = f"round {document.round} was completed without this node"
        elif document.change is not None:
            self.latch = _reason(document.change)
        return [] if self.latch is None else [Latched(self.latch)]

    def _on_entered(self, entered: Entered, now: float) -> list[Action]:
        if entered.record.kind == "leave" or self.phase is not Phase.ENTERING:
            return []
        document = self.document
        if document is None:
            raise AssertionError("entered a run that is not known")
        self._ticket = entered.ticket
        self._slot = self._slot or entered.ticket
        self._move(Phase.WAITING)
        if not self._beats:
            self._beats = True
            # Spread, so that nodes that came together do not beat together.
            self._beat_due = now + self._beat_period() * (0.25 + 0.5 * self._jitter())
            self._look_due = now + self._look_period()
            self._read_due = now + _READ_AGAIN
        actions = self._follow(document, now)
        if document.leader is None and not document.closed:
            return actions + self._take_over(document, now)
        return actions + self._pursue(now)

    def _on_piece(self, read: PieceRead, now: float) -> list[Action]:
        document = self.document
        if self.phase is not Phase.RANKING or document is None or read.nonce != document.nonce:
            return []
        if read.assigned is None:
            self._move(Phase.WAITING)
            return self._follow(document, now)
        return self._ranked(read.assigned, now)

    def _ranked(self, assigned: Assigned, now: float) -> list[Action]:
        document = self.document
        if document is None or assigned.node != self._me.node or assigned.rank >= document.size:
            raise RendezvousStateError(
                f"The assignment of round {self._entered_round} gives ticket {self._ticket} to "
                f"node {assigned.node!r} as rank {assigned.rank}, which cannot be."
            )
        self.round, self.rank = document.round, assigned.rank
        self._move(Phase.BOOTSTRAPPING)
        self._look_due = min(self._look_due, now + self._look_period())
        if document.master is not None:
            return self._complete(document, document.master)
        if document.change is not None:
            return self._enter(now)
        return self._pursue(now)

    def _complete(self, document: Document, master: Master) -> list[Action]:
        self._move(Phase.MEMBER)
        joined = Joined(self.round, self.rank, document.size, master, document.gone)
        return [joined, *self._watch_round(document)]

    def _on_master(self, opened: MasterOpened, now: float) -> list[Action]:
        self._opening = False
        self._master = opened.master
        return self._pursue(now)

    def _on_roster(self, read: RosterRead, now: float) -> list[Action]:
        if self.leading is None or self.document is None:
            return []
        document = self.document
        if read.nonce == document.nonce and read.members is None:
            if self._missed_roster != read.nonce:
                # This node may have slept since it read the document: look at it again.
                self._missed_roster = read.nonce
                return [Read(), ReadRoster(document.nonce, document.chunks)]
            raise RendezvousStateError(
                f"The assignment of round {self.document.round} is not in the store, although the "
                "document names it: the store has lost a part of its data. Use another run id."
            )
        return self.leading.on_roster(read, self.document)

    def _on_log(self, read: LogRead, now: float) -> list[Action]:
        if self.leading is None:
            return []
        lost = self.leading.on_log(read, now)
        return [*lost, *self._pursue(now, fresh=True)]

    # ------------------------------------------------------------ pursuing

    def _pursue(self, now: float, *, fresh: bool = False) -> list[Action]:
        """Change the document where this node has a reason to, on top of what it is now."""
        document = self.document
        if document is None:
            return []
        if self._closing and not document.closed:
            last = self._closing_round
            if last is None or document.round <= last:
                return [self._swap(document, closed=True)]
            self._closing = False  # Others went on without this node: its end is not theirs.
        if document.closed:
            return []
        leads = document.leader is not None and document.leader.node == self._me.node
        if leads and not self._takes_part():
            if self.leading is not None:
                return [self.leading.hand_over(document, self.token)]
            return [self._swap(document, leader=None)]
        if self._usurp is not None and not leads:
            return [self._swap(document, leader=self._as_leader(document))]
        if self._may_publish_master(document):
            return [self._swap(document, master=self._master)]
        if self._lacks_master(document) and self._wants_master():
            return [OpenMaster()]
        if leads and self.leading is not None:
            return self.leading.pursue(document, self.token, now, fresh=fresh, master=self._master)
        return []

    def _swap(self, document: Document, **changes: object) -> SwapDocument:
        return SwapDocument(amend(document, self._new_id(), **changes), self.token)

    def _as_leader(self, document: Document) -> Leader:
        member = self.phase is Phase.MEMBER and self.round == document.round
        rank = self.rank if member else -1
        return Leader(self._me.node, self.settings.interval / 2, rank, self._slot)

    def _may_publish_master(self, document: Document) -> bool:
        return (
            self.phase is Phase.BOOTSTRAPPING
            and self.rank == 0
            and self._master is not None
            and document.round == self.round
            and document.master is None
            and document.change is None
        )

    def _lacks_master(self, document: Document) -> bool:
        return self.phase is Phase.BOOTSTRAPPING and self.rank == 0 and document.round == self.round

    def _wants_master(self) -> bool:
        """Whether to have a store ready: rank 0 needs one, and who may become it."""
        if self._master is not None or self._opening:
            return False
        self._opening = self.leading is not None or self.rank == 0
        return self._opening

    def _enter(self, now: float) -> list[Action]:
        document = self.document
        if document is None:
            raise AssertionError("cannot enter a run that is not known")
        if document.closed:
            refused = [*self._leave_roster(), Refused(Refusal.CLOSED)]
            self._move(Phase.ENTERING)
            self._move(Phase.IDLE)
            return refused
        self._move(Phase.ENTERING)
        if not self._beats:
            self._beaten = now  # From now on others may be counting its silence.
            self._missed = False
        self._entered_round = document.round
        actions: list[Action] = [Enter(self._record("enter"))]
        if self._wants_master():
            actions.insert(0, OpenMaster())
        return actions

    def _record(self, kind: str) -> Record:
        return msgspec.structs.replace(
            self._me,
            kind=kind,
            id=self._new_id(),
            round=self.round,
            rank=self.rank,
            slot=self._slot,
        )

    def _move(self, phase: Phase) -> None:
        if (self.phase, phase) not in TRANSITIONS:
            steps = "; ".join(self._history)
            raise IllegalTransition(
                f"a node cannot go from {self.phase.name} to {phase.name} after: {steps}"
            )
        self._history.append(f"{self.phase.name}->{phase.name}")
        self.phase = phase


def _reason(change: Change) -> str:
    parts = []
    for count, what in (
        (change.lost, "lost"),
        (change.left, "left"),
        (change.returned, "came back"),
        (change.arrived, "waiting to join"),
    ):
        if count:
            parts.append(f"{count} node{'s' if count > 1 else ''} {what}")
    return ", ".join(parts) or "the round is formed anew"
