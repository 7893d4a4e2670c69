"""The demo while it runs: a live table on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from observe import Node, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo import Demo

STYLES = {
    State.WAITING: "yellow",
    State.STARTING: "cyan",
    State.TRAINING: "green",
    State.RESTARTING: "yellow",
    State.KILLED: "bold red",
    State.FAILED: "bold red",
    State.DONE: "dim green",
}


class View(Protocol):
    """Something that shows the state of the demo, over and over."""

    def show(self, demo: Demo) -> None: ...


@contextmanager
def open_view() -> Iterator[View]:
    console = Console()
    if not console.is_terminal:
        yield PlainView()
        return
    with Live(console=console, refresh_per_second=10, transient=True) as live:
        yield LiveView(live)


class LiveView:
    """A table that is redrawn, with what happened so far under it."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, demo: Demo) -> None:
        happened = "\n".join(f"{when:6.1f} s  {what}" for when, what in demo.timeline())
        self._live.update(Group(table(demo), Text(happened)))


class PlainView:
    """A line for everything that changes, for logs and pipes."""

    def __init__(self) -> None:
        self._shown: set[str] = set()
        self._states: dict[str, State] = {}

    def show(self, demo: Demo) -> None:
        news = [*self._changes_of_state(demo), *self._happened(demo)]
        for when, what in sorted(news):
            print(f"{when:6.1f} s  {what}", flush=True)

    def _changes_of_state(self, demo: Demo) -> Iterator[tuple[float, str]]:
        for node in demo.nodes.values():
            if self._states.get(node.name) is node.state:
                continue
            self._states[node.name] = node.state
            if node.state is not State.KILLED:  # the timeline says so
                yield (since(node) - demo.began, f"  {node.name} is {describe(node)}")

    def _happened(self, demo: Demo) -> Iterator[tuple[float, str]]:
        for when, what in demo.timeline():
            if what not in self._shown:
                self._shown.add(what)
                yield (when, what)


def describe(node: Node) -> str:
    """A node's state in words."""
    span = node.span
    if span is None or node.state not in (State.STARTING, State.TRAINING):
        return node.state.value
    return f"{node.state.value} (round {span.round}, rank {span.rank} of {span.world})"


def since(node: Node) -> float:
    """When the node came into its present state, as exactly as is known."""
    span = node.span
    if span is not None and node.state is State.STARTING:
        return span.began
    if span is not None and span.trained_from is not None and node.state is State.TRAINING:
        return span.trained_from
    return node.ended or time.time()


def table(demo: Demo) -> Table:
    """The nodes as they are now."""
    elapsed = time.time() - demo.began
    result = Table(title=f"{demo.backend} job {demo.run_id}, {elapsed:.0f} s")
    # Widths that fit all that may come: a table that is redrawn should not jump.
    result.add_column("node", min_width=8)
    result.add_column("state", min_width=max(len(state.value) for state in State))
    for heading in ("round", "rank", "step", "loss"):
        result.add_column(heading, justify="right", min_width=6)
    for node in demo.nodes.values():
        state = Text(node.state.value, style=STYLES[node.state])
        result.add_row(node.name, state, *numbers(node))
    return result


def numbers(node: Node) -> tuple[str, str, str, str]:
    """Round, rank, step and loss of a node, as far as it has them."""
    span = node.span
    if span is None:
        return ("", "", "", "")
    step = "" if span.last_step is None else str(span.last_step)
    loss = f"{node.losses[-1].loss:.3f}" if node.losses else ""
    if span.ended is not None and not span.finished:  # then it is in no round now
        return ("", "", step, loss)
    return (str(span.round), f"{span.rank}/{span.world}", step, loss)
