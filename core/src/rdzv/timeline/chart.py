"""The pictures of the page: a bar a node, and where the seconds of each forming went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .axis import Axis, duration
from .story import STAGES
from .text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .story import Forming, Mark, Node, Run, Span

__all__ = ["chart", "formings_table"]

_HEAD = 44
"""Pixels of the axis."""

_FEW = 40
"""Up to so many nodes have high rows."""

_WIDTH = 820
"""Pixels that the chart has at least, about; what does not fit into them is not written."""

_APART = 8.0
"""Percents between two times on the axis."""

_LETTER = 6.4
"""Pixels of a letter, about."""

_NAMES = {
    "join": "joins",
    "wait": "came late, waits for the next round",
    "spare": "spare",
    "ranks": "has its rank, waits for the workers' store",
    "member": "in a round",
    "stop": "is told, workers stop",
    "silent": "silent",
}

# Their middle is at 0, 0.
_MARKS = {
    "lost": "M-5-3.2-3.2-5 0-1.8 3.2-5 5-3.2 1.8 0 5 3.2 3.2 5 0 1.8-3.2 5-5 3.2-1.8 0z",
    "failed": "M-1.6-6h3.2l-.6 7.5h-2zM-1.4 3h2.8v3h-2.8z",
    "left": "M-1-7h2v14h-2z",
    "closed": "M-4.5-4.5h9v9h-9z",
    "leader": "M0-5.5l1.7 3.4 3.8.6-2.7 2.7.6 3.8-3.4-1.8-3.4 1.8.6-3.8-2.7-2.7 3.8-.6z",
    "call": "M0-4.5l4.5 4.5-4.5 4.5-4.5-4.5z",
    "other": "M-2.5-2.5h5v5h-5z",
}

_MARK_NAMES = {
    "leader": "takes the lead",
    "call": "last call begins",
    "lost": "counted as lost",
    "failed": "a call failed",
    "left": "left",
    "closed": "closed the run",
}


def _axis(run: Run) -> Axis:
    """An axis that shows the formings: a round that stands for long is drawn short."""
    times = {run.start, run.end}
    for node in run.nodes:
        for span in node.spans:
            times |= {span.start, span.end}
        times |= {mark.at for mark in node.marks}
    for each in run.formings:
        times |= {each.began, each.complete}
    longest = max((each.total for each in run.formings), default=0.0)
    return Axis((t for t in times if run.start <= t <= run.end), max(2.0, 2.5 * longest))


def _p(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


def chart(run: Run, number: int) -> Iterator[str]:
    """A row for each node."""
    axis = _axis(run)
    high = 28 if len(run.nodes) <= _FEW else 17
    yield f"""<div class="card"><h2>What each node did</h2>
<div class="scroll" tabindex="0" role="region" aria-label="What each node did">
<div class="chart" style="grid-template-rows:{_HEAD}px repeat({len(run.nodes)}, {high}px)">
<div class="corner" style="grid-row:1"></div>
<svg class="axis" style="grid-row:1" height="{_HEAD}" role="img" aria-label="Time">
"""
    yield from _scale(run, axis)
    yield f"</svg>\n<svg class='back' style='grid-row:2/span {len(run.nodes)}' aria-hidden='true'>"
    yield (
        '<defs><pattern id="gaps" width="7" height="7" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path d="M0 0v7"/></pattern></defs>'
        if number == 0
        else ""
    )
    yield from _back(run, axis)
    yield "</svg>\n"
    for row, node in enumerate(run.nodes, start=2):
        yield (
            f'<div class="name" style="grid-row:{row};line-height:{high}px" '
            f'title="{plain(node.name, 300)}">{plain(node.name)}</div>'
            f'<svg class="row" style="grid-row:{row}" height="{high}" role="img" '
            f'aria-label="{_told(node, run)}">'
        )
        yield from _row(node, run, axis, high)
        yield "</svg>\n"
    yield "</div></div>\n"
    yield from _legend(run)
    yield "</div>\n"


def _scale(run: Run, axis: Axis) -> Iterator[str]:
    taken = [where for _, where in axis.ticks(_APART)]
    for seconds, where in axis.ticks(_APART):
        anchor = "start" if where < 3 else "end" if where > 97 else "middle"
        text = f"{seconds:g} s" if seconds < 60 else duration(seconds)
        yield f'<text x="{_p(where)}" y="36" text-anchor="{anchor}">{text}</text>'
    for each in axis.breaks:
        text = duration(each.seconds)
        if (each.end - each.start) / 100 * _WIDTH > _LETTER * (len(text) + 4):
            yield (
                f'<text class="gap" x="{_p((each.start + each.end) / 2)}" y="36" '
                f'text-anchor="middle">⋯ {text} ⋯</text>'
            )
            taken.append((each.start + each.end) / 2)
    written = -100.0
    for forming in run.formings:
        where = axis.percent(forming.complete)
        text = f"round {forming.number}"
        wide = len(text) * _LETTER / _WIDTH * 100
        if where - written > 0.5 and where < 100 - wide:
            yield (
                f'<text class="round" x="{_p(where)}" y="14">{text}'
                f"<title>round {forming.number}, of {forming.size}: {plain(forming.cause)}; formed "
                f"in {duration(forming.total)}</title></text>"
            )
            written = where + wide
            if 3 < where < 97 and all(abs(where - other) >= _APART for other in taken):
                taken.append(where)
                text = duration(forming.complete - run.start)
                yield f'<text x="{_p(where)}" y="36">{text}</text>'


def _back(run: Run, axis: Axis) -> Iterator[str]:
    for forming in run.formings:
        start, end = axis.percent(forming.began), axis.percent(forming.complete)
        yield f'<rect class="band" x="{_p(start)}" width="{_p(end - start)}" height="100%"/>'
    for each in axis.breaks:
        yield (
            f'<rect class="gap" x="{_p(each.start)}" width="{_p(each.end - each.start)}" '
            'height="100%"/>'
        )
    for _, where in axis.ticks(_APART):
        yield f'<line class="tick" x1="{_p(where)}" x2="{_p(where)}" y1="0" y2="100%"/>'


def _told(node: Node, run: Run) -> str:
    """A node's story for who cannot see its bar."""
    parts = [
        f"round {span.round} as rank {span.rank} of {span.size} from "
        f"{duration(span.start - run.start)} to {duration(span.end - run.start)}"
        for span in node.spans
        if span.kind == "member"
    ]
    more = "" if len(parts) <= 10 else f" and {len(parts) - 10} more"
    told = "; ".join(parts[:10]) or "in no round"
    return f"{plain(node.name)}: {told}{more}; {plain(node.ended)}"


def _row(node: Node, run: Run, axis: Axis, high: int) -> Iterator[str]:
    gap = 4 if high > 20 else 2
    for span in node.spans:
        yield _block(span, run, axis, high, gap)
    for start, end in node.leads:
        x, until = axis.percent(start), axis.percent(end)
        yield (
            f'<rect class="leads" x="{_p(x)}" width="{_p(max(0.0, until - x))}" '
            f'y="{high - gap - 1}" height="2.5" rx="1.2">'
            f"<title>{plain(node.name)} leads the run</title></rect>"
        )
    for mark in node.marks:
        if mark.kind in _MARKS:
            yield _mark(mark, node, run, axis, high)


def _block(span: Span, run: Run, axis: Axis, high: int, gap: int) -> str:
    x, end = axis.percent(span.start), axis.percent(span.end)
    width = end - x
    what, text = _NAMES[span.kind], ""
    kind = span.kind
    if kind == "member":
        what = f"round {span.round}, rank {span.rank} of {span.size}"
        kind = "member even" if span.round % 2 == 0 else "member"
        # In low rows the number of the round stands above them alone.
        whole = f"round {span.round} · rank {span.rank}" if high > 20 else ""
        for text in filter(None, (whole, f"rank {span.rank}", f"{span.rank}")):
            if width / 100 * _WIDTH > len(text) * _LETTER + 10:
                break
        else:
            text = ""
    since = f"{duration(span.start - run.start)} to {duration(span.end - run.start)}"
    title = f"{what}: {since} ({duration(span.end - span.start)})"
    label = ""
    if text:
        label = (
            f'<text x="{_p(x + width / 2)}" y="{high / 2 + 0.5:g}" text-anchor="middle" '
            f'dominant-baseline="central">{text}</text>'
        )
    # What is too short to be seen is drawn a little longer.
    size = f"max({_p(width)}, 2px)"
    return (
        f'<g class="block"><rect class="{kind}" x="{_p(x)}" y="{gap}" style="width:{size}" '
        f'height="{high - 2 * gap}" rx="2.5"/>{label}<title>{title}</title></g>'
    )


def _mark(mark: Mark, node: Node, run: Run, axis: Axis, high: int) -> str:
    where = axis.percent(mark.at)
    title = f"{duration(mark.at - run.start)}: {plain(node.name)} {plain(mark.text, 200)}"
    return (
        f'<svg class="mark {mark.kind}" x="{_p(where)}" y="{high / 2:g}" overflow="visible">'
        f'<path d="{_MARKS[mark.kind]}"/><title>{title}</title></svg>'
    )


def _legend(run: Run) -> Iterator[str]:
    kinds = {span.kind for node in run.nodes for span in node.spans}
    marks = {mark.kind for node in run.nodes for mark in node.marks}
    yield '<ul class="legend" aria-label="Legend">'
    for kind, name in _NAMES.items():
        if kind in kinds:
            yield _key(f'<rect class="{kind}" width="16" height="12" rx="2.5"/>', name)
    if any(node.leads for node in run.nodes):
        yield _key('<rect class="leads" y="5" width="16" height="2.5" rx="1.2"/>', "leads")
    for kind, name in _MARK_NAMES.items():
        if kind in marks:
            shape = f'<svg x="8" y="6" overflow="visible"><path d="{_MARKS[kind]}"/></svg>'
            yield _key(f'<g class="mark {kind}">{shape}</g>', name)
    yield "</ul>\n"


def _key(shape: str, name: str) -> str:
    return f'<li><svg aria-hidden="true">{shape}</svg>{name}</li>'


# ---------------------------------------------------------------- formings

_CLASSES = {"detection": "detection", "join": "join", "last call": "call", "ranks": "ranks"}

_MEANING = {
    "detection": "from what happened until it was known",
    "join": "until all were back and enough were here",
    "last call": "while more could still come",
    "ranks": "from the agreement until the last node knew its rank and the workers' store",
}


def formings_table(run: Run) -> Iterator[str]:
    """Where the seconds of each forming went."""
    if not run.formings:
        return
    longest = max(each.total for each in run.formings) or 1.0
    yield """<div class="card"><h2>Where the seconds of each forming went</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Where the seconds of each forming went">
<table class="formings"><thead><tr><th scope="col" class="n">round</th><th scope="col">why</th>
<th scope="col"></th>"""
    for stage in STAGES:
        key = f'<rect class="{_CLASSES[stage]}" width="9" height="9" rx="2"/>'
        yield (
            f'<th scope="col" class="n" title="{_MEANING[stage]}">'
            f'<svg class="key" aria-hidden="true">{key}</svg>{stage}</th>'
        )
    yield '<th scope="col" class="n">in all</th></tr></thead><tbody>\n'
    for forming in run.formings:
        yield _forming(forming, run, longest)
    yield "</tbody></table></div>\n<ul class='legend'>"
    for stage in STAGES:
        yield f"<li>{stage}: {_MEANING[stage]}</li>"
    yield "</ul></div>\n"


def _since(seconds: float) -> str:
    return "at the start" if seconds <= 0 else f"after {duration(seconds)}"


def _forming(forming: Forming, run: Run, longest: float) -> str:
    bar, where = "", 0.0
    for stage, seconds in zip(STAGES, forming.stages, strict=True):
        width = 100 * seconds / longest
        if seconds > 0:
            bar += (
                f'<rect class="{_CLASSES[stage]}" x="{_p(where)}" height="14" '
                f'style="width:max({_p(width)}, 1px)">'
                f"<title>{stage}: {duration(seconds)}</title></rect>"
            )
        where += width
    told = ", ".join(
        f"{stage} {duration(s)}" for stage, s in zip(STAGES, forming.stages, strict=True)
    )
    numbers = "".join(
        f'<td class="n">{duration(seconds) if seconds > 0 else "-"}</td>'
        for seconds in forming.stages
    )
    slowest = ""
    if forming.slowest is not None:
        name, seconds = forming.slowest
        first = "news" if forming.again else "first"
        slowest = (
            f"<small>last to come: {plain(name)}, {duration(seconds)} after the {first}</small>"
        )
    return (
        f'<tr><td class="n">{forming.number}</td><td>{plain(forming.cause, 120)}'
        f"<small>{_since(forming.began - run.start)}, "
        f"{forming.size} node{'' if forming.size == 1 else 's'}</small>{slowest}</td>"
        f'<td class="bar"><svg role="img" aria-label="{told}">{bar}</svg></td>{numbers}'
        f'<td class="n"><strong>{duration(forming.total)}</strong></td></tr>\n'
    )
