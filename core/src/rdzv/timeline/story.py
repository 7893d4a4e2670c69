"""What happened in a run, from the events of all its nodes."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from .clocks import Clocks, align

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..eventlog import Line

__all__ = ["STAGES", "Forming", "Mark", "Node", "Run", "Span", "runs_of"]

STAGES = ("detection", "join", "last call", "ranks")
"""Where the seconds of a forming go, in their order."""

_NEWS = 0.25
"""Seconds by which a node may have come back before a last call, as their clocks show it."""


@dataclass
class Span:
    """What one node did for a time; ``kind`` is a key of the page's legend."""

    kind: str
    start: float
    end: float
    round: int = 0
    rank: int = 0
    size: int = 0


@dataclass(frozen=True)
class Mark:
    """What happened to one node in a moment."""

    kind: str
    at: float
    text: str


@dataclass
class Node:
    """One node's part in the run."""

    name: str
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    leads: list[tuple[float, float]] = field(default_factory=list)
    first: float = 0.0
    """When it is first heard of."""
    ended: str = ""
    """How its part ends, for people."""


@dataclass(frozen=True)
class Forming:
    """How one round came about.

    Attributes:
        number: The round.
        size: Its nodes.
        cause: Why it was formed.
        began: When what caused it happened.
        stages: The seconds of each of ``STAGES``.
        slowest: The node that was waited for, and its seconds after the news; where known.
        missing: How many of the round's nodes have left no log.
        again: Whether there was a round before.
    """

    number: int
    size: int
    cause: str
    began: float
    stages: tuple[float, ...]
    slowest: tuple[str, float] | None
    missing: int
    again: bool

    @property
    def total(self) -> float:
        return sum(self.stages)

    @property
    def complete(self) -> float:
        return self.began + self.total


@dataclass(frozen=True)
class Run:
    """All that is known of a run. Times are seconds since 1970."""

    run_id: str
    backends: tuple[str, ...]
    start: float
    end: float
    nodes: Sequence[Node]
    formings: Sequence[Forming]
    lost: int
    closed: float | None
    clocks: Clocks
    events: Sequence[tuple[float, Line]]


def runs_of(lines: Iterable[Line]) -> list[Run]:
    """Tell the story of each run that these events are of, the first one first."""
    found: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        found[line.run_id][line.node].append(line)
    runs = [_run(run_id, nodes) for run_id, nodes in found.items()]
    return sorted(runs, key=lambda run: run.start)


def _run(run_id: str, lines: dict[str, list[Line]]) -> Run:
    for each in lines.values():
        each.sort(key=lambda line: line.at)
    clocks = align(lines)
    events = sorted(
        ((line.at + clocks.offset[name], line) for name, each in lines.items() for line in each),
        key=lambda event: event[0],
    )
    start, end = events[0][0], events[-1][0]
    losses = [(at, line) for at, line in events if line.event == "Lost"]
    nodes = {name: _Teller(name).tell(each, clocks.offset[name]) for name, each in lines.items()}
    for at, line in losses:
        for name in _names(line):
            node = nodes.setdefault(name, Node(name, first=at, ended="lost; it has left no log"))
            _lose(node, at, line)
            start = min(start, at - line.silent) if node.spans else start
    for node in nodes.values():
        for span in node.spans:
            span.end = min(span.end, end)
    _lead(nodes, events, end)
    closed = [at for at, line in events if line.event == "Closed"]
    return Run(
        run_id=run_id,
        backends=tuple(sorted({line.backend for _, line in events if line.backend})),
        start=start,
        end=end,
        nodes=sorted(nodes.values(), key=_place),
        formings=_formings(events),
        lost=len({name for _, line in losses for name in _names(line)}),
        closed=closed[0] if closed else None,
        clocks=clocks,
        events=events,
    )


def _place(node: Node) -> tuple[float, int, float, str]:
    """Nodes stand in the order of their first rounds and of their ranks in them."""
    first = next((span for span in node.spans if span.kind == "member"), None)
    if first is None:
        return (float("inf"), 0, node.first, node.name)
    return (first.round, first.rank, node.first, node.name)


# ---------------------------------------------------------------- one node


class _Teller:
    """Goes through the events of one node."""

    def __init__(self, name: str) -> None:
        self.node = Node(name)
        self._open: Span | None = None

    def tell(self, lines: Sequence[Line], offset: float) -> Node:
        node = self.node
        node.first = lines[0].at + offset
        node.ended = "its log ends while it takes part"
        for line in lines:
            self._take(line, line.at + offset)
        if self._open is not None:
            self._open.end = float("inf")
            node.spans.append(self._open)
        elif not node.ended.startswith(("it left", "failed")):
            node.ended = "its log ends"
        return node

    def _take(self, line: Line, at: float) -> None:
        kind = line.event
        if kind == "Joined":
            self._begin("join", at)
        elif kind == "Waiting":
            self._begin("spare" if line.spare else "wait", at)
        elif kind == "Ranked":
            self._begin("ranks", at)
        elif kind == "Completed":
            self._begin("member", at, line)
        elif kind == "Reopened":
            if self._open is not None and self._open.kind == "member":
                self._begin("stop", at)
            self._mark("news", at, f"is told: {line.reason}")
        elif kind == "Left":
            self._close(at)
            self.node.ended = "it left"
            self._mark("left", at, "left the run")
        elif kind == "Failed":
            self._close(at)
            self.node.ended = f"failed: {line.error}"
            self._mark("failed", at, line.error)
        elif kind == "Closed":
            self._mark("closed", at, "closed the run")
        elif kind == "LastCall":
            text = f"last call: {line.nodes} here, waits {line.seconds:.1f} s for more"
            self._mark("call", at, text)
        elif kind == "LeaderChanged":
            self._mark("leader", at, "leads from now on")
        elif kind != "Lost":
            self._mark("other", at, kind)

    def _begin(self, kind: str, at: float, line: Line | None = None) -> None:
        self._close(at)
        self._open = Span(kind, at, at)
        if line is not None:
            self._open.round, self._open.rank = line.round, line.rank
            self._open.size = line.world_size

    def _close(self, at: float) -> None:
        if self._open is not None:
            self._open.end = at
            self.node.spans.append(self._open)
            self._open = None

    def _mark(self, kind: str, at: float, text: str) -> None:
        self.node.marks.append(Mark(kind, at, text))


def _names(line: Line) -> tuple[str, ...]:
    return line.lost if isinstance(line.lost, tuple) else ()


def _lose(node: Node, at: float, line: Line) -> None:
    """A leader took this node for dead; where its log goes on, it was not."""
    text = f"counted as lost after {line.silent:.1f} s of silence"
    node.marks.append(Mark("lost", at, text))
    last = node.spans[-1] if node.spans else None
    if last is not None and last.end == float("inf") and last.start <= at:
        # What it wrote last may be younger than its last beat.
        last.end = max(last.start, at - line.silent)
        node.spans.append(Span("silent", last.end, at))
        node.ended = "lost"


def _lead(nodes: dict[str, Node], events: Sequence[tuple[float, Line]], end: float) -> None:
    changes = [(at, line.node) for at, line in events if line.event == "LeaderChanged"]
    for number, (at, name) in enumerate(changes):
        node = nodes[name]
        until = changes[number + 1][0] if number + 1 < len(changes) else end
        ends = [mark.at for mark in node.marks if mark.kind in ("left", "lost") and mark.at > at]
        node.leads.append((at, min([until, *ends])))


# ---------------------------------------------------------------- rounds


def _formings(events: Sequence[tuple[float, Line]]) -> list[Forming]:
    completed: dict[int, list[tuple[float, Line]]] = defaultdict(list)
    agreed: dict[int, float] = {}
    for at, line in events:
        if line.event == "Completed":
            completed[line.round].append((at, line))
        if line.event in ("Completed", "Ranked"):
            agreed.setdefault(line.round, at)
    times = [at for at, _ in events]
    formings: list[Forming] = []
    before: set[str] = set()
    since = float("-inf")
    for number in sorted(completed, key=lambda number: completed[number][0][0]):
        members = completed[number]
        window = events[bisect_right(times, since) : bisect_right(times, agreed[number])]
        formings.append(_forming(members, agreed[number], window, before))
        before = {line.node for _, line in members}
        since = members[0][0]
    return formings


def _forming(
    members: list[tuple[float, Line]],
    agreed: float,
    window: Sequence[tuple[float, Line]],
    before: set[str],
) -> Forming:
    names = {line.node for _, line in members}
    joined = [(at, line.node) for at, line in window if line.event == "Joined"]
    cause, began, known = _cause(window, joined, before)
    if began is None:
        began = known = agreed  # Nobody has told how it came about.
    calls = [at for at, line in window if line.event == "LastCall" and at >= known]
    called = calls[-1] if calls else agreed
    complete = members[-1][0]
    # Clocks that differ a little must not give negative times.
    bounds = [began]
    for at in (known, called, agreed, complete):
        bounds.append(max(bounds[-1], at))
    waited = [(at, node) for at, node in joined if node in names and known < at <= called + _NEWS]
    slowest = max(waited, default=None)
    return Forming(
        number=members[0][1].round,
        size=members[0][1].world_size,
        cause=cause,
        began=began,
        stages=tuple(b - a for a, b in pairwise(bounds)),
        slowest=None if slowest is None else (slowest[1], slowest[0] - known),
        missing=max(0, members[0][1].world_size - len(names)),
        again=bool(before),
    )


def _silence(window: Sequence[tuple[float, Line]]) -> tuple[float, float, int] | None:
    """When the first node fell silent, when that was known of all that did so meanwhile."""
    losses = sorted(
        (at - line.silent, at, len(_names(line))) for at, line in window if line.event == "Lost"
    )
    if not losses:
        return None
    began, known, count = losses[0]
    for silent, at, more in losses[1:]:
        if silent <= known:
            known = max(known, at)
            count += more
    return began, known, count


def _cause(
    window: Sequence[tuple[float, Line]], joined: list[tuple[float, str]], before: set[str]
) -> tuple[str, float | None, float]:
    """Why a round was formed, when that happened, and when it was known."""
    if not before:
        first = joined[0][0] if joined else None
        return "the first round", first, first or 0.0
    news = [(at, line) for at, line in window if line.event == "Reopened" and line.reason]
    told, cause = (news[0][0], news[0][1]) if news else (joined[0][0] if joined else 0.0, None)
    reason = "its nodes came back" if cause is None else cause.reason
    lost = _silence(window)
    if lost is not None:
        began, known, count = lost
        if cause is None or not cause.lost:
            # Their workers have missed it, and the agents come back before it is known.
            reason = f"{count} node{'' if count == 1 else 's'} lost, {reason}"
        return reason, began, known
    if cause is None:
        return reason, joined[0][0] if joined else None, told
    earlier = [(at, node) for at, node in joined if at <= told]
    departures = [at for at, line in window if line.event == "Left" and at <= told]
    if cause.left and departures:
        began = departures[-1]
    elif cause.returned and any(node in before for _, node in earlier):
        began = next(at for at, node in earlier if node in before)
    elif cause.arrived and any(node not in before for _, node in earlier):
        began = [at for at, node in earlier if node not in before][-1]
        if any(line.event == "Deferred" for _, line in window):
            began = told  # What came before was no detection: they were held up until a checkpoint.
    else:
        began = told
    return reason, began, told
