"""A small world for machines: one store, one hand-turned clock, and nodes that can break."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rdzv.dynamic_rendezvous import messages as msg
from rdzv.dynamic_rendezvous.document import Assigned, Master, Member, Record
from rdzv.dynamic_rendezvous.leader import Settings
from rdzv.dynamic_rendezvous.machine import Machine
from rdzv.dynamic_rendezvous.phases import Phase

REQUESTS = (
    *(msg.Read, msg.SwapDocument, msg.Enter, msg.ReadPiece, msg.ReadRoster, msg.ReadLog),
    *(msg.ReadBeats, msg.Beat, msg.Publish, msg.Bury, msg.Forget),
)


DETECTION = 5.0
"""Longer than the detection time of the world's settings, shorter than two of them."""


class BrokenError(Exception):
    """The connection of a node broke, or its process was stopped, at an action."""


class Watched(Machine):
    """A machine whose steps are kept."""

    def _move(self, phase: Phase) -> None:
        step = (self.phase, phase)
        super()._move(phase)
        self.__dict__.setdefault("steps", []).append(step)


class Node:
    """One machine, what it reported, and how it is doing."""

    def __init__(self, world: World, number: int, settings: Settings) -> None:
        names = (f"w{number}-{i}" for i in itertools.count())
        me = Record("enter", f"node{number}", f"host{number}", number, 0, settings.interval, "")
        self.machine = Watched(settings, me, lambda: next(names), lambda: 0.5)
        self.world = world
        self.number = number
        self.offset = 1000.0 * number  # No two clocks agree.
        self.reports: list[msg.Action] = []
        self.requests: Counter[str] = Counter()
        self.asked: list[msg.Action] = []  # The same, in their order.
        self.dead = self.paused = self.broken = self.holds_master = False
        self.opening = self.opened = 0
        self.breaks_at: type[msg.Action] | None = None
        self.pauses_at: type[msg.Action] | None = None
        self.left: list[msg.Action] = []

    @property
    def runs(self) -> bool:
        return not (self.dead or self.paused or self.broken)

    @property
    def phase(self) -> Phase:
        return self.machine.phase

    @property
    def steps(self) -> Any:
        return self.machine.__dict__.get("steps", [])

    def told(self, kind: type) -> list[Any]:
        """What was reported of one kind."""
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def joined(self) -> Any:
        return self.told(msg.Joined)[-1]

    def due(self) -> float | None:
        due = self.machine.due()
        return None if due is None else due - self.offset

    def on(self, stimulus: msg.Stimulus) -> list[msg.Action]:
        return self.machine.on(stimulus, self.world.now + self.offset)

    def tell(self, stimulus: msg.Stimulus) -> None:
        """Take a stimulus, and carry out all that comes of it."""
        self.do(self.on(stimulus))

    def do(self, actions: Sequence[msg.Action]) -> None:
        self.left = list(reversed(actions))
        self._go_on()

    def _go_on(self) -> None:
        try:
            while self.left:
                if self.world.down or type(self.left[-1]) is self.breaks_at:
                    raise BrokenError
                if type(self.left[-1]) is self.pauses_at:
                    self.pauses_at, self.paused = None, True
                    return
                answer = self.world.perform(self, self.left.pop())
                if answer is not None:
                    self.left.extend(reversed(self.on(answer)))
        except BrokenError:
            facts = [a for a in reversed(self.left) if isinstance(a, msg.FACTS)]
            self.breaks_at, self.broken, self.left = None, True, []
            for fact in facts:
                self.world.perform(self, fact)

    def kill(self) -> None:
        self.dead = True

    def resume(self) -> None:
        """Go on where it was paused."""
        self.paused = False
        self._go_on()

    def reconnect(self) -> None:
        self.broken = False
        self.tell(msg.Interrupted())


class World:
    """The store, the clock and the nodes."""

    def __init__(
        self,
        count: int,
        low: int,
        high: int,
        *,
        last_call: float = 5.0,
        attempts: int = 3,
        along: int = 8,
        admission: Any = "immediate",
        listed: int = 64,
    ) -> None:
        self.along = along  # Slots whose counters come along with one another's beats.
        self.settings = Settings(
            low, high, last_call, 1.0, attempts, admission=admission, listed=listed
        )
        self.now = 100.0
        self.down = False
        self.lag = 0.0
        self.document: Any = None
        self.tail = 0
        self.log: dict[int, Any] = {}
        self.beats: Counter[int] = Counter()
        self.pieces: dict[str, tuple[dict[int, Assigned], list[Sequence[Member]]]] = {}
        self.nodes: list[Node] = []
        self.perform: Callable[[Node, msg.Action], Any] = self._perform
        self.rounds: dict[int, dict[str, msg.Joined]] = {}
        for _ in range(count):
            self.add()

    def add(self, settings: Settings | None = None) -> Node:
        self.nodes.append(Node(self, len(self.nodes), settings or self.settings))
        return self.nodes[-1]

    def join(self, *nodes: Node) -> None:
        """Have nodes join, by default all, and let everything settle."""
        for node in nodes or self.nodes:
            node.tell(msg.Join())
        self.settle()

    @property
    def leader(self) -> Any:
        name = self.document and self.document.leader and self.document.leader.node
        return next((node for node in self.nodes if node.machine.node == name), None)

    def settle(self) -> None:
        """Deliver every notification, until nothing moves; no time passes."""
        for _ in range(100_000):
            if not any(self._notify(node) for node in self.nodes if node.runs):
                return
        raise AssertionError("the nodes never come to rest")

    def _notify(self, node: Node) -> bool:
        machine = node.machine
        if node.opening and not node.holds_master:
            node.opening -= 1
            node.opened += 1
            node.tell(msg.MasterOpened(Master(f"host{node.number}", node.opened)))
        elif machine.document is not None and machine.token != self.version:
            node.do([msg.Read()])
        elif machine.leading is not None and self.tail > machine.leading.roster.seen:
            node.do([msg.ReadLog(machine.leading.roster.complete_upto)])
        else:
            return False
        return True

    @property
    def version(self) -> int:
        return 0 if self.document is None else self.document.version

    def advance(self, seconds: float) -> None:
        """Let time pass; every node gets its ticks, late by ``lag``."""
        end = self.now + seconds
        for _ in range(1_000_000):
            self.settle()
            times = [(d, n.number) for n in self.nodes if n.runs and (d := n.due()) is not None]
            due, number = min(times, default=(end + 1, 0))
            if due + self.lag > end:
                self.now = end
                return
            self.now = max(self.now, due + self.lag)
            self.nodes[number].tell(msg.Tick())
        raise AssertionError("ticks never end")

    def _perform(self, node: Node, action: msg.Action) -> msg.Stimulus | None:
        if isinstance(action, REQUESTS):
            node.requests[type(action).__name__] += 1
            node.asked.append(action)
        match action:
            case msg.Read():
                return msg.DocumentRead(self.document, self.version if self.document else None)
            case msg.SwapDocument(document, token):
                won = (token or 0) == self.version
                if won:
                    assert document.version == self.version + 1
                    self.document = document
                assert self.document is not None
                return msg.Swapped(won, self.document, self.version)
            case msg.Enter(record):
                self.tail += 1
                self.log[self.tail] = record
                return msg.Entered(self.tail, record)
            case msg.ReadPiece(nonce, ticket):
                assigned, _ = self.pieces.get(nonce, ({}, []))
                return msg.PieceRead(nonce, assigned.get(ticket))
            case msg.ReadRoster(nonce, chunks):
                _, lists = self.pieces.get(nonce, ({}, []))
                members = [m for part in lists for m in part] if len(lists) == chunks else None
                return msg.RosterRead(nonce, members)
            case msg.ReadLog(after):
                return msg.LogRead([(t, self.log.get(t)) for t in range(after + 1, self.tail + 1)])
            case msg.ReadBeats(slots):
                return msg.BeatsRead({slot: self.beats[slot] for slot in slots})
            case msg.Beat(slot):
                self.beats[slot] += 1
                first = slot // self.along * self.along
                return msg.Beaten({s: self.beats[s] for s in range(first, first + self.along)})
            case msg.Publish(nonce, assigned, chunks):
                self.pieces[nonce] = (dict(assigned), list(chunks))
            case msg.Bury(ticket):
                self.log.setdefault(ticket, False)
            case msg.Forget(after, upto, nonce, tickets, chunks):
                self.log.update(dict.fromkeys(range(after + 1, upto + 1), False))
                assigned, lists = self.pieces.pop(nonce, ({}, []))
                assigned = {t: a for t, a in assigned.items() if t not in tickets}
                lists = lists[chunks:]
                if assigned or lists:
                    self.pieces[nonce] = assigned, lists
            case msg.OpenMaster():
                node.opening += 1
            case msg.Attach():
                pass
            case _:
                node.reports.append(action)
                if isinstance(action, msg.Joined):
                    self._check(node, action)
        return None

    def _check(self, node: Node, joined: msg.Joined) -> None:
        """What every history has to keep: one membership a round, and rounds only grow."""
        members = self.rounds.setdefault(joined.round, {})
        assert joined.round == max(j.round for j in node.told(msg.Joined))
        assert node.machine.node not in members
        assert joined.rank not in {other.rank for other in members.values()}
        assert 0 <= joined.rank < joined.size
        limits = self.document if self.document.scaled else self.settings
        assert limits.min_nodes <= joined.size <= limits.max_nodes
        assert {(j.size, j.master) for j in members.values()} <= {(joined.size, joined.master)}
        members[node.machine.node] = joined


def formed(count: int, low: int, high: int, **options) -> World:
    """A world in which one round has completed with all its nodes."""
    world = World(count, low, high, **options)
    world.join()
    world.advance(world.settings.last_call + 0.1)
    assert {node.phase for node in world.nodes} == {Phase.MEMBER}
    return world


def rejoin(world: World, *nodes: Node) -> None:
    """Do as agents do: join again wherever a latch is set."""
    for _ in range(10):
        latched = [n for n in nodes or world.nodes if n.runs and n.machine.latch]
        if not latched:
            return
        world.join(*latched)
    raise AssertionError("the latches never come to rest")


def members(world: World) -> list[int]:
    """The numbers of the participants of the newest round by their ranks."""
    found = [n for n in world.nodes if n.machine.round == world.document.round]
    return [n.number for n in sorted(found, key=lambda n: n.machine.rank)]
