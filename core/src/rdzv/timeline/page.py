"""Writes the page: one file of HTML without scripts, which loads nothing."""

from __future__ import annotations

import html
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .. import __version__
from .axis import duration
from .chart import chart, formings_table
from .style import CSS
from .text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..eventlog import Line
    from .logs import Logs
    from .story import Run

__all__ = ["page"]

_MOST_EVENTS = 1000
"""Events that are listed."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(runs: Sequence[Run], logs: Logs) -> Iterator[str]:
    """Return the page in pieces."""
    title = "Runs" if len(runs) != 1 else f"Run {plain(runs[0].run_id)}"
    yield f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title} · rdzv timeline</title>
<style>{CSS}</style>
</head>
<body>
<main>
"""
    for number, run in enumerate(runs):
        yield from _run(run, number)
    yield from _problems(logs)
    yield f"""<footer>Made by rdzv {__version__} from {_count(len(logs.lines), "event")} in \
{_count(logs.files, "file")}. Bars and blocks say more when the pointer rests on them.</footer>
</main>
</body>
</html>
"""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "at no time of this calendar"


def _run(run: Run, number: int) -> Iterator[str]:
    backends = ", ".join(plain(name) for name in run.backends) or "an unknown backend"
    again = run.formings[1:]
    yield f"""<section class="run" aria-labelledby="run-{number}">
<header><h1 id="run-{number}">Run {plain(run.run_id)}</h1>
<p>{_when(run.start)} on {backends}. {_summary(run)}</p></header>
<div class="card"><dl class="figures">
{_figure("Nodes", f"{len(run.nodes):,}")}
{_figure("Rounds", f"{len(run.formings):,}")}
{_figure("Nodes lost", f"{run.lost:,}")}
{_figure("Duration", duration(run.end - run.start))}
{_figure("Forming rounds anew", duration(sum(each.total for each in again)) if again else "none")}
</dl></div>
"""
    yield from _warnings(run)
    yield from chart(run, number)
    yield from formings_table(run)
    yield from _nodes(run)
    yield from _events(run)
    yield "</section>\n"


def _figure(name: str, value: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd></div>"


def _summary(run: Run) -> str:
    again = run.formings[1:]
    if not run.formings:
        return "No round was completed."
    text = f"{_count(len(run.nodes), 'node')} formed {_count(len(run.formings), 'round')}"
    text += f" in {duration(run.end - run.start)}."
    if again:
        longest = max(again, key=lambda each: each.total)
        text += f" The longest re-forming took {duration(longest.total)}:"
        text += f" round {longest.number}, {plain(longest.cause)}."
    text += " The run was closed." if run.closed is not None else " No node closed the run."
    return text


def _warnings(run: Run) -> Iterator[str]:
    said = []
    clocks = run.clocks
    if clocks.corrected:
        worst = max(clocks.corrected, key=lambda node: abs(clocks.corrected[node]))
        said.append(
            f"Clocks corrected: of {_count(len(clocks.corrected), 'node')}, by "
            f"{duration(abs(clocks.corrected[worst]))} at most ({plain(worst)}), by the rounds "
            "that all nodes learn of at once. The table of nodes says by how much each."
        )
    if clocks.alone and len(run.nodes) > 1:
        said.append(
            f"Clocks not compared: of {_count(len(clocks.alone), 'node')} that completed no round "
            "with the others. What is drawn there is by its own clock."
        )
    if clocks.ambiguous:
        numbers = ", ".join(str(number) for number in clocks.ambiguous[:10])
        said.append(
            f"In round {numbers} a rank occurs twice. More than one run had this name: make a "
            "page of the logs of each."
        )
    missing = max((each.missing for each in run.formings), default=0)
    if missing:
        said.append(
            f"Logs missing: a round had {_count(missing, 'node')} more than have told of it."
        )
    if said:
        lines = "".join(f"<p>{each}</p>" for each in said)
        yield f'<div class="card note" role="note">{lines}</div>\n'


def _nodes(run: Run) -> Iterator[str]:
    many = len(run.nodes) > 40
    yield f"""<details class="card"{"" if many else " open"}>
<summary>Nodes ({len(run.nodes):,})</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Nodes">
<table class="nodes"><thead><tr><th scope="col">node</th>
<th scope="col" class="n">heard of after</th><th scope="col" class="n">rounds</th>
<th scope="col">last rank</th><th scope="col">how it ended</th>
<th scope="col" class="n">clock corrected by</th></tr></thead><tbody>
"""
    for node in run.nodes:
        rounds = [span for span in node.spans if span.kind == "member"]
        rank = (
            f"{rounds[-1].rank} of {rounds[-1].size} in round {rounds[-1].round}" if rounds else ""
        )
        correction = run.clocks.corrected.get(node.name)
        shown = "" if correction is None else f"{correction:+,.3f} s"
        yield (
            f'<tr><td class="mono">{plain(node.name)}</td>'
            f'<td class="n">{duration(max(0.0, node.first - run.start))}</td>'
            f'<td class="n">{len(rounds)}</td><td>{rank}</td><td>{plain(node.ended, 200)}</td>'
            f'<td class="n">{shown}</td></tr>\n'
        )
    yield "</tbody></table></div></details>\n"


def _events(run: Run) -> Iterator[str]:
    shown = run.events[:_MOST_EVENTS]
    more = len(run.events) - len(shown)
    yield f"""<details class="card"><summary>Events ({len(run.events):,})</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Events">
<table class="events"><thead><tr><th scope="col" class="n">after</th><th scope="col">node</th>
<th scope="col">event</th><th scope="col" class="n">round</th><th scope="col"></th></tr></thead>
<tbody>
"""
    for at, line in shown:
        yield (
            f'<tr><td class="n">{at - run.start:,.3f} s</td>'
            f'<td class="mono">{plain(line.node)}</td><td>{plain(line.event)}</td>'
            f'<td class="n">{line.round}</td><td>{_said(line)}</td></tr>\n'
        )
    yield "</tbody></table></div>"
    if more > 0:
        yield f"<p>{_count(more, 'event')} more are in the logs.</p>"
    yield "</details>\n"


def _said(line: Line) -> str:
    said = {
        "Completed": f"rank {line.rank} of {line.world_size}",
        "Ranked": f"rank {line.rank} of {line.world_size}",
        "Waiting": "as a spare" if line.spare else "for the next round",
        "LastCall": f"{line.nodes} here, waits {duration(line.seconds)}",
        "Reopened": line.reason,
        "Failed": line.error,
    }.get(line.event, "")
    if line.event == "Lost" and isinstance(line.lost, tuple):
        said = f"{', '.join(line.lost[:20])}, silent for {duration(line.silent)}"
    return plain(said, 300)


def _problems(logs: Logs) -> Iterator[str]:
    if logs.cut:
        yield (
            '<div class="card warning" role="note"><p>There are more events than fit on a page; '
            f"only the first {len(logs.lines):,} are shown.</p></div>\n"
        )
    if not logs.refused:
        return
    yield f"""<details class="card warning" open>
<summary>{_count(logs.refused, "line")} could not be read</summary>
<table class="problems"><thead><tr><th scope="col">file</th><th scope="col" class="n">line</th>
<th scope="col">why</th></tr></thead><tbody>
"""
    for each in logs.problems:
        yield (
            f'<tr><td class="mono">{plain(each.file, 300)}</td><td class="n">{each.line}</td>'
            f"<td>{plain(each.why, 300)}</td></tr>\n"
        )
    yield "</tbody></table>"
    if logs.refused > len(logs.problems):
        yield f"<p>And {logs.refused - len(logs.problems):,} more.</p>"
    yield "</details>\n"
