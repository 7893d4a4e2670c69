"""A failing scenario, made as small as it can be while it still fails in the same way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from .world import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .scenario import Scenario

__all__ = ["minimise"]

_MOST_RUNS = 300


def minimise(
    scenario: Scenario,
    fails: Callable[[Scenario], bool] | None = None,
    seconds: float = 60.0,
) -> Scenario:
    """Leave out of a failing scenario what it does not need to fail.

    Args:
        scenario: One that fails.
        fails: Whether one still does; by default, whether it breaks the same promise.
        seconds: After which to be content.
    """
    if fails is None:
        promise = simulate(scenario).violations[0].promise

        def fails(candidate: Scenario) -> bool:
            found = simulate(candidate).violations
            return bool(found) and found[0].promise == promise

    runs = 0
    until = time.monotonic() + seconds
    smaller = True
    while smaller:
        smaller = False
        for candidate in _simpler(scenario):
            runs += 1
            if runs > _MOST_RUNS or time.monotonic() > until:
                return scenario
            if fails(candidate):
                scenario, smaller = candidate, True
                break
    return scenario


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    replace = msgspec.structs.replace
    faults, nodes = scenario.faults, scenario.nodes
    size = len(faults)
    while size:  # Many faults at once first, then one by one.
        for start in range(0, len(faults), size):
            yield replace(scenario, faults=faults[:start] + faults[start + size :])
        size //= 2
    if len(nodes) > 1:
        yield replace(scenario, nodes=nodes[:-1])
    for number, node in enumerate(nodes):
        plain = replace(node, offset=0.0, rate=1.0, wall=0.0, delay=0.001)
        for simple in (plain, replace(node, start=0.0)):
            if simple != node:
                yield replace(scenario, nodes=(*nodes[:number], simple, *nodes[number + 1 :]))
    last = max((fault.at + fault.seconds for fault in faults), default=0.0)
    if scenario.length > last + 5.0:
        yield replace(scenario, length=round(last + 5.0, 1))
