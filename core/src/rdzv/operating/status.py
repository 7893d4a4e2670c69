"""What there is to know of a run at one moment: records, and how they follow from what was read.

Everything in here that was read from the store is as it was written there: whoever prints
a name has to escape it.
"""

from __future__ import annotations

import enum
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.backend import HELD
from rdzv.dynamic_rendezvous.leadership import Complete, Entry, Hold, Standing, Waiting, decide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rdzv.dynamic_rendezvous.document import Document
    from rdzv.dynamic_rendezvous.leadership import Roster
    from rdzv.dynamic_rendezvous.liveness import Silence

__all__ = ["Liveness", "NodeStatus", "Reason", "Role", "RunStatus", "describe"]

LATE = 1.5
"""So many of its intervals without a beat, and a node is called silent."""

_NAMED = 5
"""So many nodes are named in a sentence."""


class Role(enum.Enum):
    """What a node is in its run."""

    MEMBER = "member"
    """It is in the completed round, and its workers run."""
    RETURNED = "returned"
    """It was in the completed round, and waits for the next."""
    WAITING = "waiting"
    """It has arrived since, and there may be room for it."""
    SPARE = "spare"
    """It has arrived since, and the round is full."""
    LEFT = "left"
    """It was in the completed round, and has left."""
    LOST = "lost"
    """It has been silent for as long as makes a node lost, before the observer's eyes."""


class Liveness(enum.Enum):
    """What was seen of a node's life, on the observer's clock."""

    BEATING = "beating"
    HELD = "lease held"
    SILENT = "silent"
    UNKNOWN = "unknown"
    """It was not looked at for long enough."""
    GONE = "gone"
    """It has left: nobody looks."""


@dataclass(frozen=True)
class NodeStatus:
    """One node.

    Attributes:
        name: Its address, process id and local number, as logs and errors name it.
        node: Its incarnation: random, never used again.
        address: Its address, as it says.
        pid: Its process id, as it says.
        local_id: Counts the handlers of its process.
        role: What it is in the run.
        rank: Its rank in the completed round, if it has one.
        ticket: The number of its last record: who came earlier has a lower one.
        leads: Whether it is the leader.
        interval: Seconds between two of its beats.
        since: When it entered, by its own wall clock (seconds since 1970); ``None`` where it did
            not say. For people: machines' clocks differ.
        liveness: What was seen of its life.
        silent: Seconds that it was seen without a beat.
    """

    name: str
    node: str
    address: str
    pid: int
    local_id: int
    role: Role
    rank: int | None
    ticket: int
    leads: bool
    interval: float
    since: float | None
    liveness: Liveness
    silent: float


@dataclass(frozen=True)
class Reason:
    """Why no round completes at this moment.

    Attributes:
        code: The name of a :class:`~rdzv.dynamic_rendezvous.leadership.Waiting`, or ``REOPEN``
            or ``COMPLETE`` where the leader is about to act.
        text: The same as a sentence without a full stop.
        missing: How many nodes are waited for.
        until: When the last call ends (seconds since 1970): an estimate from when nodes say
            that they entered, by their clocks. ``None`` where none is running, or nobody says.
    """

    code: str
    text: str
    missing: int = 0
    until: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    Attributes:
        run_id: Its name.
        epoch: The random name of this life of it.
        version: Of the document.
        round: The last completed round; 0 where none has completed in this life of the run.
        size: How many nodes it has.
        min_nodes: The fewest nodes of a round, from now on.
        max_nodes: The most nodes of a round, from now on.
        scaled: How often an operator has changed the limits.
        closed: Whether the run is closed.
        completed: When the round completed, by its leader's wall clock; ``None`` where unknown.
        master: Where rank 0 has opened the workers' store.
        change: Why the round has to be formed anew; empty where it stands.
        gone: Participants of the round before that were gone when this one completed.
        leader: The name of the node that leads; ``None`` where nobody does.
        reason: Why no round completes at this moment.
        nodes: All that are in the roster, members first.
        observed: Seconds during which beats were looked at.
    """

    run_id: str
    epoch: str
    version: int
    round: int
    size: int
    min_nodes: int
    max_nodes: int
    scaled: int
    closed: bool
    completed: float | None
    master: tuple[str, int] | None
    change: str
    gone: int
    leader: str | None
    reason: Reason
    nodes: tuple[NodeStatus, ...]
    observed: float

    def those(self, *roles: Role) -> list[NodeStatus]:
        """The nodes in these roles."""
        return [node for node in self.nodes if node.role in roles]

    @property
    def alive(self) -> list[NodeStatus]:
        """The nodes of which a sign of life was seen."""
        return [n for n in self.nodes if n.liveness in (Liveness.BEATING, Liveness.HELD)]


def describe(
    run_id: str,
    document: Document,
    roster: Roster,
    silence: Silence,
    counts: Mapping[str, int],
    observed: float,
) -> RunStatus:
    """Put together what is known of a run.

    Args:
        run_id: Its name.
        document: The document.
        roster: The roster, in which those that were seen to be lost are.
        silence: What was seen of the beats.
        counts: What stood in each node's slot at the last look.
        observed: Seconds since the first look.
    """
    leader = "" if document.leader is None else document.leader.node
    entries = sorted(roster.entries.values(), key=lambda e: (e.rank < 0, e.rank, e.ticket))
    nodes = tuple(_node(e, document, leader, silence, counts) for e in entries)
    names = {node.node: node.name for node in nodes}
    return RunStatus(
        run_id=run_id,
        epoch=document.epoch,
        version=document.version,
        round=document.round,
        size=document.size,
        min_nodes=document.min_nodes,
        max_nodes=document.max_nodes,
        scaled=document.scaled,
        closed=document.closed,
        completed=document.since or None,
        master=None if document.master is None else (document.master.host, document.master.port),
        change="" if document.change is None else str(document.change),
        gone=document.gone,
        leader=names.get(leader, leader) or None,
        reason=_reason(document, roster, silence),
        nodes=nodes,
        observed=observed,
    )


def _node(
    entry: Entry,
    document: Document,
    leader: str,
    silence: Silence,
    counts: Mapping[str, int],
) -> NodeStatus:
    record, silent = entry.record, silence.of(entry.node)
    if entry.standing is Standing.LEFT:
        liveness = Liveness.GONE
    elif counts.get(entry.node) == HELD:
        liveness = Liveness.HELD
    elif entry.standing is Standing.LOST or silent > LATE * record.interval:
        liveness = Liveness.SILENT
    elif silence.has_beaten(entry.node, LATE * record.interval):
        liveness = Liveness.BEATING
    else:
        liveness = Liveness.UNKNOWN
    return NodeStatus(
        name=str(record),
        node=entry.node,
        address=record.addr,
        pid=record.pid,
        local_id=record.local_id,
        role=_role(entry, document),
        rank=entry.rank if entry.rank >= 0 else None,
        ticket=entry.ticket,
        leads=entry.node == leader,
        interval=record.interval,
        since=record.since or None,
        liveness=liveness,
        silent=round(silent, 3),
    )


def _role(entry: Entry, document: Document) -> Role:
    if entry.standing is Standing.NEW:
        return Role.SPARE if document.full else Role.WAITING
    return {
        Standing.HERE: Role.MEMBER,
        Standing.BACK: Role.RETURNED,
        Standing.LEFT: Role.LEFT,
        Standing.LOST: Role.LOST,
    }[entry.standing]


def _reason(document: Document, roster: Roster, silence: Silence) -> Reason:
    """What the leader has to do now, and why nothing, as it finds out itself."""
    # When the last call began is known to the leader alone: here it never ends.
    decision = decide(roster, document, 0.0, 0.0, math.inf)
    if isinstance(decision, Hold):
        held = _held(decision.reason, document, roster, silence)
    elif isinstance(decision, Complete):
        held = Reason(
            "COMPLETE", f"a round of {_nodes(len(decision.entries))} is about to complete"
        )
    else:
        held = Reason("REOPEN", f"round {document.round} ends: {decision.change}")
    if document.change is None or document.closed:
        return held
    text = f"round {document.round} is over ({document.change}); {held.text}"
    return Reason(held.code, text, held.missing, held.until)


def _held(why: Waiting, document: Document, roster: Roster, silence: Silence) -> Reason:
    here = roster.those(Standing.HERE)
    back = roster.those(Standing.BACK)
    present = [*back, *roster.those(Standing.NEW)]
    least, most = document.min_nodes, document.max_nodes
    missing, until = 0, None
    if why is Waiting.CLOSED:
        text = "the run is closed: nobody can join it any more"
    elif why is Waiting.RETURN:
        missing = len(here)
        text = (
            f"{len(back)} of {len(back) + missing} participants are back: waiting for "
            f"{_names(here, silence)}"
        )
    elif why is Waiting.MINIMUM:
        missing = least - len(present)
        text = f"{len(present)} of {least}: waiting for {missing} more"
    elif why is Waiting.LAST_CALL:
        missing, until = most - len(present), _end_of_last_call(document, present)
        when = "" if until is None else f" until about {time.strftime('%X', time.localtime(until))}"
        text = f"{len(present)} of {most}: waiting for {missing} more{when} (last call)"
    elif why is Waiting.SHORT:
        missing = least - len(here) - len(present)
        text = f"{why.value}: waiting for {missing} more"
    else:
        text = _standing(document, len(roster.those(Standing.NEW)))
    return Reason(why.name, text, max(0, missing), until)


def _standing(document: Document, waiting: int) -> str:
    text = f"round {document.round} stands with {_nodes(document.size)}"
    if document.size < document.min_nodes:
        short = document.min_nodes - document.size
        return f"{text}; the next one needs {short} more"
    if document.size >= document.max_nodes:
        return f"{text}, all that it may have"
    if waiting and document.admission == "deferred":
        return f"{text}; {waiting} more will be let in when its workers have reached a checkpoint"
    if waiting:
        return f"{text}; waiting for more, since {waiting} would not be enough"
    return f"{text}; up to {document.max_nodes - document.size} more may join"


def _end_of_last_call(document: Document, present: Sequence[Entry]) -> float | None:
    """About when it ends: it began when ``min_nodes`` were here, which nodes say of themselves."""
    length = 0.0 if document.leader is None else document.leader.last_call
    times = sorted(entry.record.since for entry in present)
    if not length or not times or not times[0]:
        return None
    return times[min(document.min_nodes, len(times)) - 1] + length


def _names(entries: Sequence[Entry], silence: Silence) -> str:
    shown = []
    for entry in entries[:_NAMED]:
        silent = silence.of(entry.node)
        late = silent > LATE * entry.record.interval
        shown.append(f"{entry.record}{f' (silent for {silent:.1f} s)' if late else ''}")
    more = len(entries) - _NAMED
    return ", ".join(shown) + (f" and {more} others" if more > 0 else "")


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
