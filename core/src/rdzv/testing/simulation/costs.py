"""What nodes ask of a store, counted in simulations of many sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .scenario import Node, Scenario
from .world import World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .agents import Agent

__all__ = ["Cost", "as_table", "count"]

_HEALTHY = 20.0
"""Seconds for which a round that stands is watched."""

_BYTES = ("sent", "received")


@dataclass(frozen=True)
class Cost:
    """What one size costs. All but ``leader`` are means over the nodes that do not lead."""

    nodes: int
    requests: float
    """From the call to join until a node knows its place and the workers' store."""
    most: int
    """The same for the node that made most."""
    leader: int
    """The same for the leader."""
    received: float
    """Bytes of values that a node reads in that time."""
    healthy: float
    """Requests a second while the round stands, at an interval of one second."""
    healthy_leader: float
    store: int
    """Bytes in the store, the leader's round done."""
    seconds: float
    """Simulated, from the call to the last return, with a round trip of 1 ms."""


def count(nodes: int, *, watch: bool = True) -> Cost:
    """Form one round of ``nodes`` nodes, and watch it for some time.

    Raises:
        RuntimeError: It does not form, or breaks a promise.
    """
    plan = Node(0.0, delay=0.00025, poll=1.0, timeout=None)
    # In every third seed leaders list places in the document as they really do.
    scenario = Scenario(
        3 * nodes, nodes, nodes, (plan,) * nodes, (), 0.0, watch=watch, carries=True, along=8
    )
    world = World(scenario)
    try:
        for _ in range(nodes):
            world.launch(world.add(plan)).process.master_takes = 0.0
        if not world.wait(lambda: len(world.members()) == nodes, 60.0, 0.001, 0.01):
            raise RuntimeError(f"{nodes} nodes formed no round: {world.checker.violations}")
        seconds = world.hub.now
        joined = {agent.node: Counter(agent.process.counts) for agent in world.everybody}
        size = world.server.size
        began = world.hub.now
        world.hub.run(began + _HEALTHY)
        if world.checker.violations:
            raise RuntimeError(str(world.checker.violations[0]))
        others = [agent for agent in world.everybody if not agent.machine.leading]
        (leader,) = (agent for agent in world.everybody if agent.machine.leading)
        each = [_requests(joined[agent.node]) for agent in others] or [0]

        def healthy(agent: Agent) -> float:
            return _requests(agent.process.counts - joined[agent.node]) / _HEALTHY

        return Cost(
            nodes,
            sum(each) / len(each),
            max(each),
            _requests(joined[leader.node]),
            sum(joined[agent.node]["received"] for agent in others) / max(1, len(others)),
            sum(map(healthy, others)) / max(1, len(others)),
            healthy(leader),
            size,
            seconds,
        )
    finally:
        for agent in world.everybody:
            agent.bury()


def _requests(counts: Counter[str]) -> int:
    return sum(n for name, n in counts.items() if name not in (*_BYTES, "connect"))


def as_table(costs: Iterable[Cost]) -> str:
    """The costs as a table in Markdown."""
    columns = (
        "nodes",
        "requests a node, round",
        "most",
        "leader",
        "bytes read a node, round",
        "requests a node a second, healthy",
        "leader",
        "store, bytes",
        "formed in",
    )
    lines = [f"| {' | '.join(columns)} |", "| --: " * len(columns) + "|"]
    lines += [
        f"| {c.nodes:,} | {c.requests:.2f} | {c.most} | {c.leader:,} | {c.received:.0f} "
        f"| {c.healthy:.2f} | {c.healthy_leader:.2f} | {c.store:,} | {c.seconds * 1000:.0f} ms |"
        for c in costs
    ]
    return "\n".join(lines)
