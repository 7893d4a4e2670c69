"""One simulation, from a scenario to a verdict."""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.handler import session_factory
from rdzv.dynamic_rendezvous.phases import Phase

from .aftermath import Aftermath
from .agents import Agent
from .checks import Checker, Violation
from .faults import apply
from .hub import Hub, Process
from .network import Connection, Link
from .operator import Operator
from .scenario import Node
from .sessions import NativeBackend, PlainBackend, WatchedBackend
from .store import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.dynamic_rendezvous.backend import RendezvousBackend

    from .scenario import Fault, Scenario

__all__ = ["Result", "World", "simulate"]

_KEEP_ALIVE = 8.0
"""Seconds after which a connection that waits for a push notices a dead peer."""


@dataclass(frozen=True)
class Result:
    """The outcome of a simulation."""

    seed: int
    digest: str
    """The same for the same scenario and code, on any machine."""
    violations: tuple[Violation, ...]
    history: tuple[str, ...]
    rounds: int
    events: int
    seconds: float
    """Of simulated time."""
    probes: tuple[str, ...]
    """What was tried after the faults had stopped."""


class World:
    """A store, the ways to it, and the nodes.

    Args:
        scenario: What happens.
        keep: Whether to keep the history.
    """

    def __init__(self, scenario: Scenario, *, keep: bool = False) -> None:
        self.scenario = scenario
        self.hub = Hub()
        self.checker = Checker(self.hub, scenario, keep=keep)
        self.chance = random.Random(f"world {scenario.seed}")
        self.server = Server(
            self.hub,
            random.Random(f"store {scenario.seed}"),
            scenario.kind,
            scenario.lag,
        )
        self.server.on_write = self.checker.wrote
        self.server.on_loss = self.checker.lost_memory
        self.checker.server = self.server
        self.places: list[Node] = []
        self.agents: list[Agent | None] = []
        """Who runs in each place now."""
        self.everybody: list[Agent] = []
        self.operators: list[Operator] = []
        self._launched: Counter[int] = Counter()
        self.links: dict[str, Link] = {}
        self.probes: list[str] = []

    # ------------------------------------------------------------ nodes

    def add(self, plan: Node) -> int:
        """Make one more place for a node."""
        self.places.append(plan)
        self.agents.append(None)
        return len(self.places) - 1

    def launch(self, place: int) -> Agent:
        """Start a process in a place."""
        plan, scenario = self.places[place], self.scenario
        name = f"n{place}.{self._launched[place]}"
        self._launched[place] += 1
        seed = f"{scenario.seed} {name}"
        process = Process(self.hub, name, seed, offset=plan.offset, rate=plan.rate, wall=plan.wall)
        link = Link(self.hub, random.Random(f"link {seed}"), plan.delay)
        self.links[name] = link
        agent = Agent(process, plan, scenario, self._backend(process, link, plan), self.checker)
        self.agents[place] = agent
        self.everybody.append(agent)
        agent.start()
        return agent

    def _backend(self, process: Process, link: Link, plan: Node) -> RendezvousBackend:
        def connect() -> Connection:
            return Connection(process, link, self.server, plan.timeout, _KEEP_ALIVE)

        offer = self.scenario.offer
        if offer.roster:
            return NativeBackend(connect, self.server, offer)
        if offer.watch:
            return WatchedBackend(connect, self.server)
        return PlainBackend(connect, self.server)

    def operate(self, fault: Fault) -> None:
        """Have an operator do something to the run, over a way of its own."""
        name = f"operator{len(self.operators)}"
        seed = f"{self.scenario.seed} {name}"
        process, plan = Process(self.hub, name, seed), Node(0.0)
        link = Link(self.hub, random.Random(f"link {seed}"), plan.delay)
        backend = self._backend(process, link, plan)
        opens = session_factory(backend, process)
        self.operators.append(Operator(process, fault, opens, self.checker))

    @property
    def limits(self) -> tuple[int, int]:
        """The fewest and the most nodes of a round, as the run has them now."""
        document = self.checker.run.document
        if document is None:
            return self.scenario.min_nodes, self.scenario.max_nodes
        return document.min_nodes, document.max_nodes

    def living(self) -> list[Agent]:
        """The agents that are at it."""
        return [agent for agent in self.agents if agent is not None and agent.lives]

    def members(self) -> list[Agent]:
        """Those whose workers run, by rank."""
        at_work = [agent for agent in self.living() if agent.at_work]
        return sorted(at_work, key=lambda agent: agent.machine.rank)

    def settled(self) -> bool:
        """Whether everybody is where they belong: at work in one round, or a spare of it."""
        run = self.checker.run
        living, document = self.living(), run.document
        if document is None or len(living) < document.min_nodes:
            return False
        members = self.members()
        if len(members) != min(len(living), document.max_nodes):
            return False
        if document.change is not None or len(members) != document.size:
            return False
        if any(agent.machine.round != document.round for agent in members):
            return False
        return all(agent.phase is Phase.SPARE for agent in living if agent not in members)

    # ------------------------------------------------------------ the course of it

    def run(self) -> Result:
        """Simulate all of it."""
        scenario, hub = self.scenario, self.hub
        logger = logging.getLogger("rdzv.dynamic_rendezvous")
        level, log_level = logger.level, logging.CRITICAL + 1
        logger.setLevel(log_level)
        try:
            for plan in scenario.nodes:
                place = self.add(plan)
                hub.at(plan.start, lambda place=place: self._arrive(place))  # type: ignore[misc]
            for fault in scenario.faults:
                hub.at(fault.at, lambda fault=fault: apply(self, fault))  # type: ignore[misc]
            # The last messages that had to be sent again arrive within a few seconds.
            hub.run(self._end_of_faults() + 4.0)
            self.check_waiting_calls()
            if not hub.stopped:
                Aftermath(self).run()
            self._check_threads()
        finally:
            logger.setLevel(level)
            for agent in self.everybody:
                agent.bury()
            for operator in self.operators:
                operator.process.bury()
        checker = self.checker
        checker.note("END", f"{hub.events} events, {self.server.writes} writes")
        return Result(
            scenario.seed,
            checker.digest(),
            tuple(checker.violations),
            tuple(checker.history),
            checker.rounds,
            hub.events,
            hub.now,
            tuple(self.probes),
        )

    def _arrive(self, place: int) -> None:
        if self.agents[place] is None:  # A fault may have started it before its time.
            self.launch(place)

    def _end_of_faults(self) -> float:
        ends = [fault.at + fault.seconds for fault in self.scenario.faults]
        return max([self.scenario.length, *ends]) + 0.1

    def check_waiting_calls(self) -> None:
        """Check that no call that has not returned is overdue (L4)."""
        for agent in self.everybody:
            if not agent.process.dead:
                self.checker.overdue(agent)

    def _check_threads(self) -> None:
        for agent in self.everybody:
            for thread, exc in agent.process.failures:
                self.checker.violate(
                    "S10", f"{agent.process.name}: {thread} ended by {type(exc).__name__}: {exc}"
                )
        for operator in self.operators:
            for thread, exc in operator.process.failures:
                self.checker.violate("S10", f"{operator.node}: {thread} ended by {exc!r}")

    def wait(
        self, happened: Callable[[], bool], seconds: float, step: float = 0.05, most: float = 1.0
    ) -> bool:
        """Let time pass until something has happened; returns whether it has.

        It is asked after ``step`` seconds, and then less and less often, but every ``most``.
        """
        until = self.hub.now + seconds
        while not happened():
            if self.hub.now >= until or self.hub.stopped:
                return False
            self.hub.run(min(until, self.hub.now + step))
            step = min(step * 1.2, most)
        return True


def simulate(scenario: Scenario, *, keep: bool = False) -> Result:
    """Run one scenario.

    Args:
        scenario: What happens.
        keep: Whether to keep the history, which takes longer.
    """
    return World(scenario, keep=keep).run()
