"""What observers cost: nothing where there are none, little where there are."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata

from bench.figures import Options, Row, rounds_of, spread
from bench.fleet import Fleet
from rdzv import events
from rdzv.dynamic_rendezvous import messages as msg
from rdzv.dynamic_rendezvous.document import Master, Record
from rdzv.dynamic_rendezvous.leader import Settings
from rdzv.dynamic_rendezvous.machine import Machine
from rdzv.dynamic_rendezvous.reporting import Reporter

__all__ = ["OBSERVER_FIGURES"]

_CALLS = 200_000
_TOLERANCE = 1.0
"""Microseconds that a report may take; a node makes some four of them a round."""


def observers(options: Options) -> Iterator[Row]:
    """What a report costs without observers, and a round with a log of events."""
    yield _nobody()
    if any(each.name == "jsonlog" for each in metadata.entry_points(group="rdzv.extensions")):
        yield _log(options)


def _nobody() -> Row:
    me = Record("enter", "node", "host", 1, 0, 1.0, "")
    machine = Machine(Settings(1, 2, 1.0, 1.0, 5), me, lambda: "name", lambda: 0.5)
    reporter = Reporter("run", "host_1_0", "c10d", machine, events.Observers())
    reports: list[msg.Action] = [
        msg.Waits(spare=False, deferred=False),
        msg.Called(2, 1.0),
        msg.Ranked(0, 2),
        msg.Joined(1, 0, 2, Master("host", 1), 0),
    ]

    def nothing(_: msg.Action) -> None:
        pass

    def took(call: Callable[[msg.Action], None]) -> float:
        started = time.perf_counter()
        for _ in range(_CALLS // len(reports)):
            for report in reports:
                call(report)
        return (time.perf_counter() - started) / _CALLS * 1e6

    took(reporter)
    threads, blocks = threading.active_count(), sys.getallocatedblocks()
    ours, empty = [], []
    for _ in range(5):
        ours.append(took(reporter))
        empty.append(took(nothing))
    kept = sys.getallocatedblocks() - blocks
    cost = statistics.median(ours) - statistics.median(empty)
    begun = threading.active_count() - threads
    return Row(
        "a report of the engine without observers, over a call that does nothing",
        f"{cost:.3f} us; {kept / _CALLS / 5:.4f} blocks of memory kept, {begun} threads",
        f"under {_TOLERANCE:g} us, nothing kept, no thread",
        cost < _TOLERANCE and kept < 100 and begun == 0,
        {"reporter": ours, "empty": empty},
    )


def _log(options: Options) -> Row:
    without, logged = [], []
    for _ in range(max(1, options.repeat // 2)):
        without += _rounds({"OTEL_SDK_DISABLED": "true"})
        with tempfile.TemporaryDirectory() as folder:
            logged += _rounds({"OTEL_SDK_DISABLED": "true", "RDZV_EVENTS": folder})
    ratio = statistics.median(logged) / statistics.median(without)
    return Row(
        "one round of 64 nodes that all log their events",
        f"{spread(logged)}; without {spread(without)}: {ratio:.2f} times",
        data={"with": logged, "without": without},
    )


def _rounds(variables: dict[str, str]) -> list[float]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with Fleet() as fleet:
            return rounds_of(fleet, "rdzv", 64, 3)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


OBSERVER_FIGURES: dict[str, Callable[[Options], Iterator[Row]]] = {"observers": observers}
