"""The protocol as seen by one node: stimuli in, actions out; no clock, thread or socket."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import RendezvousStateError
from .document import SCHEMA, Assigned, Change, Document, Leader, Master, Record
from .following import Following
from .leader import Leading, Settings, amend
from .messages import (
    Action,
    Admitted,
    Attach,
    Beat,
    Beaten,
    BeatsRead,
    CheckpointReached,
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
    Ranked,
    Read,
    ReadBeats,
    ReadLog,
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
    Waits,
    Withdraw,
    Withdrawn,
)
from .phases import IN_ROSTER, IN_ROUND, TRANSITIONS, IllegalTransition, Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .backend import Token

__all__ = ["Machine"]


_LOST_TO_NOBODY = 10
"""How often in a row a document may be lost to another that nobody has written."""

_READ_AGAIN = 20.0
"""Seconds after which the document is read although nobody said that it has changed."""


class Machine:
    """One node's part in the protocol.

    Args:
        settings: What the node was started with.
        me: This node as its records name it.
        new_id: Makes random names.
        jitter: Makes random numbers between 0 and 1.
        wall: The wall clock (seconds since 1970). What it says is passed on to people, and
            decides nothing.
    """

    def __init__(
        self,
        settings: Settings,
        me: Record,
        new_id: Callable[[], str],
        jitter: Callable[[], float],
        wall: Callable[[], float] = lambda: 0.0,
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
        self._wall = wall
        self._ticket = 0
        self._records = 0
        self._slot = 0
        self._old_slots: dict[int, float] = {}
        """Where it has beaten before, and until when it goes on to."""
        self._entering_since = 0.0
        self._told_waits: Waits | None = None
        """What it has said since it joined: that it waits for a later round, and how."""
        self._leaves = False
        """Whether it has left the roster, and not heard that this was written."""
        self._wants_slot = True
        """Whether its next ticket is to be its slot as well."""
        self._entered_round = 0
        self._master: Master | None = None
        self._checkpoint = 0
        """The round whose workers have reached a checkpoint, and were told that another opens."""
        self._master_round = 0
        """The round that it was offered to, whether it was taken or not."""
        self._opening = False
        self._lost_to_nobody = 0
        self._failovers = 0
        """How often the store may have lost acknowledged writes, as far as this node knows."""
        self._closing = False
        self._closing_round: int | None = None
        self._beats = False
        self._beat_due = 0.0
        self._read_due = 0.0
        self._beaten = 0.0
        """When it sent the last beat that the store has taken."""
        self._sent = 0.0
        self._missed = False
        self._missed_roster: str | None = None
        self._following = Following(settings, jitter)
        self._usurp: str | None = None
        self._former: Leading | None = None
        """The term in which this node was interrupted, until it knows whether it still leads."""
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
            CheckpointReached: self._on_checkpoint,
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
            times.append(self._beat_due)
            if self.leading is None:
                times.append(self._following.due)
        leading = self.leading  # Asked by any thread, while another may end the term.
        if leading is not None and not self.closed:
            times.append(leading.due())
        return min(times, default=None)

    @property
    def node(self) -> str:
        """This node's incarnation."""
        return self._me.node

    @property
    def closed(self) -> bool:
        return self.document is not None and self.document.closed

    @property
    def ready_master(self) -> Master | None:
        """The workers' store that this node has open and has not given to a round."""
        return self._master

    def gate(self) -> tuple[int, Master, bool] | None:
        """The round that this leader can let newcomers into, its store, and whether they wait.

        ``None`` where this node does not lead a round that stands, or does not know it yet. Any
        thread may ask.
        """
        leading, document = self.leading, self.document
        held = None if leading is None else leading.held
        if document is None or document.master is None or held is None or self.closed:
            return None
        if document.change is not None or document.admission == "immediate":
            return None
        return document.round, document.master, held > 0

    @property
    def in_roster(self) -> bool:
        return self.phase in IN_ROSTER

    # ------------------------------------------------------------ calls

    def _on_join(self, _: Join, now: float) -> list[Action]:
        self.latch = None
        self._told_waits = None
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
        if withdraw.accept and self.phase in IN_ROUND:
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
        self._leaves = True
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
            actions += self._beat_at_once(now)
        if now >= self._read_due:
            # Whatever pushes changes may have missed one.
            self._read_due = now + _READ_AGAIN
            actions.append(Read())
        if paused and self.phase in (Phase.WAITING, Phase.SPARE):
            self._missed = False
            actions += self._enter(now)
        if self.leading is None and now >= self._following.due:
            actions += self._look_at_leader(now)
        return actions

    def _on_beaten(self, beaten: Beaten, now: float) -> list[Action]:
        self._missed = self._missed or now - self._beaten > self._longest_silence()
        # It may have taken effect long before its answer came.
        self._beaten = self._sent
        if self.leading is not None:
            return [*self.leading.on_beaten(beaten.along, now), *self._pursue(now)]
        return self._on_leader_seen(beaten.along, now, self._following.seen_along)

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
        document = self.document
        leader = None if document is None else document.leader
        vacant = self._following.look(leader, now, near=self._is_near())
        if document is None or document.closed:
            return []
        if leader is None:
            return self._take_over(document, now) if vacant else []
        return [ReadBeats([leader.slot])]

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

    def _on_beats(self, read: BeatsRead, now: float) -> list[Action]:
        if self.leading is not None:
            lost = self.leading.on_beats(read.counts, now)
            return [*lost, *self._pursue(now)]
        return self._on_leader_seen(read.counts, now, self._following.seen)

    def _on_leader_seen(
        self, counts: Mapping[int, int], now: float, seen: Callable[..., bool]
    ) -> list[Action]:
        document = self.document
        leader = None if document is None else document.leader
        if document is None or leader is None or leader.slot not in counts:
            return []
        if seen(leader, counts[leader.slot], now, near=self._is_near()):
            return self._take_over(document, now)
        return []

    def _take_over(self, document: Document, now: float) -> list[Action]:
        if self.phase not in IN_ROSTER:
            return []
        self._usurp = "" if document.leader is None else document.leader.node
        return self._pursue(now)

    # ------------------------------------------------------------ answers

    def _on_interrupted(self, interrupted: Interrupted, now: float) -> list[Action]:
        # What it knew of the roster may be old: read all of it again.
        self._former, self.leading = self.leading or self._former, None
        return [*self._beat_at_once(now), *self._take_up(now, interrupted.since)]

    def _beat_at_once(self, now: float) -> list[Action]:
        """After an outage of the store everybody counts everybody's silence from the start."""
        if not self._beats:
            return []
        self._beat_due = now + self._beat_period()
        self._sent = now
        # Whoever watches this node may not have heard of its new slot yet: the old first.
        self._old_slots = {slot: until for slot, until in self._old_slots.items() if now < until}
        return [Beat(slot) for slot in dict.fromkeys((*self._old_slots, self._beat_slot()))]

    def _take_up(self, now: float, since: float) -> list[Action]:
        if self.in_roster and self._entering_since > since:
            return [Read()]  # It has entered again already, over another connection.
        if self.phase in (Phase.ENTERING, Phase.WAITING, Phase.SPARE, Phase.RANKING):
            # The ticket may be a hole by now, or this node taken for dead. A store that
            # failed over may even have given ticket and slot to another node.
            self._wants_slot = True
            return [Read(), *self._enter(now)]
        if self.phase is Phase.LEFT and self.document is not None:
            return [Enter(self._record("leave")), Read(), Departed()]
        if self._leaves and self.phase is Phase.IDLE:
            # It may not have been heard, and others would wait for this node.
            return [Enter(self._record("leave")), Read(), Withdrawn()]
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
            admission=settings.admission,
            leader=self._as_leader(None) if joining else None,
            closed=self._closing,
            rank_policy=settings.rank_policy,
        )

    def _on_swapped(self, swapped: Swapped, now: float) -> list[Action]:
        before = self.document
        actions: list[Action] = []
        self._check_outcome(swapped)
        self._failovers = max(self._failovers, swapped.failovers)
        if not swapped.won and self.leading is not None:
            self.leading.on_lost()
        if swapped.won and self.leading is not None and before is not None:
            own = self.leading.on_won(before, swapped.document)
            actions += _admitted(before, swapped.document, self.leading.let_in)
            if own is not None and self.phase in (Phase.WAITING, Phase.SPARE):
                self._entered_round = swapped.document.round
                self._move(Phase.RANKING)
                actions += self._take(swapped.document, swapped.token, now)
                return actions + self._ranked(own, now) + self._pursue_if_due(now)
        return actions + self._take(swapped.document, swapped.token, now)

    def _check_outcome(self, swapped: Swapped) -> None:
        told_of_failover = swapped.failovers > self._failovers
        if swapped.won or told_of_failover or self.document is None or swapped.token != self.token:
            self._lost_to_nobody = 0
            return
        self._lost_to_nobody += 1
        if self._lost_to_nobody > _LOST_TO_NOBODY:
            # Trying for ever would keep a processor, and the store, busy for nothing.
            raise RendezvousStateError(
                f"The backend has refused to replace version {swapped.document.version} of the "
                f"run's document {self._lost_to_nobody} times, and shows no other that was "
                "stored meanwhile: its compare-and-set does not work."
            )

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
            if not document.follows(before):
                raise RendezvousStateError(
                    f"The store has lost what it had acknowledged: version {document.version} with "
                    f"round {document.round} cannot come after version {before.version} with round "
                    f"{before.round}. It may have failed over to a replica that was behind. Start "
                    "the job again on all nodes."
                )
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
        if mine != theirs and not document.scaled:
            raise RendezvousStateError(
                f"This node was started with min_nodes={mine[0]} and max_nodes={mine[1]}, but the "
                f"run has min_nodes={theirs[0]} and max_nodes={theirs[1]}. Start every node of a "
                "run with the same numbers, or use another run id."
            )
        if self.settings.rank_policy != document.rank_policy:
            raise RendezvousStateError(
                f"This node was started with rank_policy={self.settings.rank_policy or 'sticky'}, "
                f"but the run has rank_policy={document.rank_policy or 'sticky'}. Start every node "
                "of a run with the same one, or use another run id."
            )
        if self.settings.admission != document.admission:
            raise RendezvousStateError(
                f"This node was started with admission={self.settings.admission}, but the run has "
                f"admission={document.admission}. Start every node of a run with the same, or use "
                "another run id."
            )

    def _follow_leader(
        self, before: Document | None, document: Document, now: float
    ) -> list[Action]:
        leader = document.leader
        silent = 0.0
        if before is None or before.leader != leader:
            silent = self._following.silent(self._usurp or "")
            self._following.another()
            if leader is None and self._is_near():
                # Soon, but not all at once.
                self._following.soon(now + self.settings.interval * self._jitter() / 4)
        instead, self._usurp = self._usurp, None
        former, self._former = self._former, None
        if leader is None or leader.node != self._me.node or not self._takes_part():
            self.leading = None
            return []
        if self.leading is not None and self.leading.nonce == document.nonce:
            return []
        if former is not None:
            self.leading = former.again()
            return self.leading.start(document, now)
        dead = {instead: silent} if instead else None
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
                if not document.places:
                    return [ReadPiece(document.nonce, self._ticket)]
                return self._placed(document, document.place_of(self._ticket, self._me.node), now)
            # A participant of a full round that comes back has its place in the next.
            spare = not document.admits and self.round != document.round
            if spare != (phase is Phase.SPARE):
                self._move(Phase.SPARE if spare else Phase.WAITING)
            waits = Waits(spare=spare and document.full, deferred=spare and not document.full)
            if document.round > self.round and waits != self._told_waits:
                self._told_waits = waits
                return [waits]
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
        change = document.change if document.round == self.round else None
        if document.round > self.round:
            self.latch = f"round {document.round} was completed without this node"
        elif document.change is not None:
            self.latch = str(document.change)
        return [] if self.latch is None else [Latched(self.latch, change)]

    def _on_entered(self, entered: Entered, now: float) -> list[Action]:
        if entered.record.kind == "leave":
            self._leaves = False
        if entered.record.kind == "leave" or self.phase is not Phase.ENTERING:
            return []
        document = self.document
        if document is None:
            raise AssertionError("entered a run that is not known")
        self._missed = now - self._beaten > self._longest_silence()
        self._ticket = entered.ticket
        if self._wants_slot:
            self._wants_slot = False
            if self._slot:
                self._old_slots[self._slot] = now + 2 * self._longest_silence()
            self._slot = entered.ticket
        self._move(Phase.WAITING)
        if not self._beats:
            self._beats = True
            # Spread, so that nodes that came together do not beat together.
            self._beat_due = now + self._beat_period() * (0.75 + 0.25 * self._jitter())
            self._following.start(now, near=self._is_near())
            self._read_due = now + _READ_AGAIN
        actions = self._follow(document, now)
        if document.leader is None and not document.closed:
            return actions + self._take_over(document, now)
        return actions + self._pursue(now)

    def _on_piece(self, read: PieceRead, now: float) -> list[Action]:
        document = self.document
        if self.phase is not Phase.RANKING or document is None or read.nonce != document.nonce:
            return []
        return self._placed(document, read.assigned, now) + self._pursue_if_due(now)

    def _pursue_if_due(self, now: float) -> list[Action]:
        """Do what rank 0, or the leader, has to do once it knows its place."""
        return self._pursue(now) if self.phase is Phase.BOOTSTRAPPING else []

    def _placed(self, document: Document, assigned: Assigned | None, now: float) -> list[Action]:
        if assigned is None:
            if document.size < document.max_nodes and self._ticket <= document.upto:
                # There was room: the leader took this node for dead, and knows of it no more.
                return self._enter(now)
            self._move(Phase.WAITING)
            return self._follow(document, now)
        return self._ranked(assigned, now)

    def _ranked(self, assigned: Assigned, now: float) -> list[Action]:
        document = self.document
        if document is None or assigned.node != self._me.node or assigned.rank >= document.size:
            raise RendezvousStateError(
                f"The assignment of round {self._entered_round} gives ticket {self._ticket} to "
                f"node {assigned.node!r} as rank {assigned.rank}, which cannot be."
            )
        self.round, self.rank = document.round, assigned.rank
        self._move(Phase.BOOTSTRAPPING)
        self._following.sooner(now, near=self._is_near())
        ranked = Ranked(assigned.rank, document.size)
        if document.master is not None:
            return [ranked, *self._complete(document, document.master)]
        if document.change is not None:
            return [ranked, *self._enter(now)]
        return [ranked]

    def _complete(self, document: Document, master: Master) -> list[Action]:
        self._move(Phase.MEMBER)
        joined = Joined(self.round, self.rank, document.size, master, document.gone)
        return [joined, *self._watch_round(document)]

    def _on_master(self, opened: MasterOpened, now: float) -> list[Action]:
        self._opening = False
        self._master, self._master_round = opened.master, 0
        return self._pursue(now)

    def _on_checkpoint(self, reached: CheckpointReached, now: float) -> list[Action]:
        self._checkpoint = reached.round
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
        if read.more:
            return [*lost, ReadLog(read.lines[-1][0])]
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
            self._master_round = document.round
            return [self._swap(document, master=self._master)]
        if self._lacks_master(document) and self._wants_master():
            return [OpenMaster()]
        if leads and self.leading is not None:
            number = document.next_round(self._failovers)
            master = self._master_for(number)
            actions = self.leading.pursue(
                document,
                self.token,
                now,
                fresh=fresh,
                master=master,
                number=number,
                checkpoint=document.round == self._checkpoint,
                wall=self._told_time(),
            )
            if master is not None and any(
                isinstance(action, SwapDocument) and action.document.master == master
                for action in actions
            ):
                self._master_round = number
            return actions
        return []

    def _swap(self, document: Document, **changes: object) -> SwapDocument:
        return SwapDocument(amend(document, self._new_id(), **changes), self.token)

    def _as_leader(self, document: Document | None) -> Leader:
        round_ = -1 if document is None else document.round
        rank = self.rank if self.phase is Phase.MEMBER and self.round == round_ else -1
        interval, told = self.settings.interval / 2, self.settings.told_last_call
        return Leader(self._me.node, interval, rank, self._slot, told)

    def _told_time(self) -> float:
        """The wall clock as people are told of it; it may be set to anything."""
        return min(max(0.0, round(self._wall(), 3)), 2.0**37)

    def _may_publish_master(self, document: Document) -> bool:
        return (
            self.phase is Phase.BOOTSTRAPPING
            and self.rank == 0
            and document.round == self.round
            and self._master_for(document.round) is not None
            and document.master is None
            and document.change is None
        )

    def _master_for(self, number: int) -> Master | None:
        """The store that is ready for this round, if any: one that another was offered is not."""
        if self._master_round not in (0, number):
            self._master, self._master_round = None, 0
        return self._master

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
        self._leaves = False
        self._entered_round = document.round
        self._entering_since = now
        actions: list[Action] = [Enter(self._record("enter"))]
        if not self._beats:
            self._beaten = now  # From now on others may be counting its silence.
        elif now - self._beaten > self._longest_silence():
            # Nobody may go on counting after the record has come.
            actions = [*self._beat_at_once(now), *actions]
        self._master_for(document.next_round(self._failovers))
        if self._wants_master():
            actions.insert(0, OpenMaster())
        return actions

    def _record(self, kind: str) -> Record:
        self._records += 1
        return msgspec.structs.replace(
            self._me,
            kind=kind,
            number=self._records,
            id=self._new_id(),
            round=self.round,
            rank=self.rank,
            slot=0 if self._wants_slot else self._slot,
            since=self._told_time(),
        )

    def _move(self, phase: Phase) -> None:
        if (self.phase, phase) not in TRANSITIONS:
            steps = "; ".join(self._history)
            raise IllegalTransition(
                f"a node cannot go from {self.phase.name} to {phase.name} after: {steps}"
            )
        self._history.append(f"{self.phase.name}->{phase.name}")
        self.phase = phase


def _admitted(before: Document, document: Document, let_in: int) -> list[Action]:
    """What is to be told of a round with nodes that had to wait, or would have had to."""
    completed = document.round > before.round > 0
    if document.admission == "immediate" or not completed or not let_in:
        return []
    change = before.change or Change()
    alone = change.arrived > 0 and change == Change(arrived=change.arrived)
    others = msgspec.structs.replace(change, arrived=0)
    return [Admitted(let_in, "workers have reached a checkpoint" if alone else str(others))]
