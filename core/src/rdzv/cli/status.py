"""``rdzv status`` and ``rdzv watch``: what a run is doing, once or as it goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rdzv import operating
from rdzv.operating import Liveness, NodeStatus, Role, RunStatus

from .operate import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["as_data", "screen", "status", "watch"]

_DAY = 86400.0

_STYLES = {
    Role.MEMBER: "green",
    Role.RETURNED: "yellow",
    Role.WAITING: "yellow",
    Role.SPARE: "cyan",
    Role.LEFT: "dim",
    Role.LOST: "bold red",
}


def status(way: operating.Access, observe: float | None, *, as_json: bool) -> int:
    """Say once what a run is doing; returns the exit code."""
    found = operating.inspect(way, observe)
    if as_json:
        sys.stdout.write(json.dumps(as_data(found), indent=1) + "\n")
    else:
        Console().print(screen(found))
    return 0


def watch(way: operating.Access, *, as_json: bool) -> int:
    """Say what a run is doing until it is closed, or until Ctrl-C; returns the exit code."""
    console = Console()
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            for found in _changes(way):
                sys.stdout.write(json.dumps(as_data(found)) + "\n")
                sys.stdout.flush()
        elif not console.is_terminal:
            for found in _changes(way):
                console.print(screen(found), Text())
        else:
            with Live(console=console, auto_refresh=False) as live:
                for found in operating.follow(way):
                    live.update(screen(found), refresh=True)
    return 0


def _changes(way: operating.Access) -> Iterator[RunStatus]:
    """A run whenever it is not as it was: how long nodes are silent is no change."""
    last = None
    for found in operating.follow(way):
        # Whoever was not looked at for long enough is about to be seen, or not.
        nodes = tuple(dataclasses.replace(node, silent=0.0) for node in found.nodes)
        this = dataclasses.replace(found, version=0, observed=0.0, nodes=nodes)
        this = dataclasses.replace(this, reason=dataclasses.replace(this.reason, text=""))
        if this != last:
            last = this
            yield found


def as_data(found: RunStatus) -> dict[str, Any]:
    """A run as JSON has it."""
    data: dict[str, Any] = msgspec.to_builtins(found)
    return data


# ---------------------------------------------------------------- for people


def screen(found: RunStatus) -> Group:
    """A run as people see it."""
    head = Text.assemble(("Run ", ""), (printable(found.run_id), "bold"), f": {_round(found)}")
    head.append(f"; {found.min_nodes} to {found.max_nodes} nodes")
    if found.scaled:
        head.append(" (scaled)")
    style = "" if found.reason.code == "STANDS" else "yellow"
    reason = Text(f"{printable(found.reason.text)}.", style=style)
    reason.plain = reason.plain[:1].upper() + reason.plain[1:]
    parts: list[Any] = [head, reason]
    if found.leader is None:
        parts.append(Text("Nobody leads.", style="yellow"))
    elif not any(node.leads for node in found.nodes):
        parts.append(Text(f"Node {printable(found.leader)} leads, and has not entered yet."))
    if found.master is not None:
        host, port = found.master
        parts.append(Text(f"The workers' store is {printable(host)}:{port}."))
    if found.gone:
        parts.append(Text(f"{found.gone} of the round before had been lost or had left."))
    if found.nodes:
        parts += [Text(), _table(found)]
    return Group(*parts)


def _round(found: RunStatus) -> str:
    if not found.round:
        return "no round yet"
    text = f"round {found.round} of {found.size} node{'' if found.size == 1 else 's'}"
    return text if found.completed is None else f"{text} since {_clock(found.completed)}"


def _table(found: RunStatus) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("node", overflow="fold")
    for column in ("is", "entered", "life"):
        table.add_column(column, no_wrap=True)
    for node in found.nodes:
        name = Text(printable(node.name))
        if node.leads:
            name.append(" leads", style="bold")
        table.add_row(
            "" if node.rank is None else str(node.rank),
            name,
            Text(node.role.value, style=_STYLES[node.role]),
            "" if node.since is None else _clock(node.since),
            _life(node),
        )
    return table


def _life(node: NodeStatus) -> Text:
    if node.liveness is Liveness.SILENT:
        return Text(f"silent for {node.silent:.1f} s or more", style="red")
    if node.liveness is Liveness.UNKNOWN:
        # Since it was first looked at, which may be long after the first look at the run.
        seen = f"no beat seen in {node.silent:.1f} s" if node.silent else "not known"
        return Text(seen, style="dim")
    return Text("" if node.liveness is Liveness.GONE else node.liveness.value)


def _clock(wall: float) -> str:
    """The time of day, by somebody's wall clock; the day too where it is another."""
    then = time.localtime(wall)
    same_day = abs(time.time() - wall) < _DAY and then.tm_yday == time.localtime().tm_yday
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)
