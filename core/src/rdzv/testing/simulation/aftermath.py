"""The faults have stopped: what has to come right, and in what time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.leadership import Standing
from rdzv.dynamic_rendezvous.phases import Phase

from .faults import add_node, break_store
from .scenario import Node
from .store import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from .agents import Agent
    from .world import World

__all__ = ["Aftermath"]

_REREAD = 20.0
"""Seconds after which the engine reads the document although nobody said that it has changed."""


class Aftermath:
    """Lets a world recover, tries some things in it, and ends it.

    Args:
        world: One in which no more faults happen.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.hub = world.hub
        self.scenario = world.scenario
        self.checker = world.checker
        self.chance = world.chance

    def run(self) -> None:
        """Check that everything comes right."""
        document = self.checker.run.document
        self.checker.note("WORLD", "the faults have stopped")
        if self.checker.spoilt or (self.checker.ruined and not self.checker.may_lose):
            self._expect_an_end()
        elif document is not None and document.closed:
            self._expect_the_end()
        elif not self.scenario.patient:
            self._expect_an_end()
        else:
            self._expect_work()

    def _expect_an_end(self) -> None:
        """Nothing can be said but that no call lasts longer than it may."""
        self.hub.run(self.hub.now + self.scenario.join_timeout / 0.9 + 5.0)
        self.world.check_waiting_calls()

    def _expect_the_end(self) -> None:
        """The run is closed: everybody ends, and nobody can join any more."""
        for agent in self.world.living():
            if agent.at_work:
                agent.command("quit")
        if not self.world.wait(lambda: not self._who_waits(), _REREAD + 60.0):
            names = [agent.process.name for agent in self._who_waits()]
            self.checker.violate("S8", f"the run is closed, and {names} still wait")
        if self.hub.stopped:
            return
        late = self.world.launch(self.world.add(Node(0.0)))
        if not self.world.wait(lambda: late.ended is not None, 30.0):
            self.checker.violate("S8", "one who came after the close still waits")

    def _who_waits(self) -> list[Agent]:
        return [
            agent for agent in self.world.living() if not agent.at_work or agent.order == "quit"
        ]

    def _expect_work(self) -> None:
        if not self._settle():
            return
        for _ in range(2):
            self._calm_down()
            if not self._settle():
                return
            probe = self.chance.choice(self._possible_probes())
            self.world.probes.append(probe.__name__[7:])
            self.checker.note("PROBE", self.world.probes[-1].replace("_", " "))
            self.checker.healthy = True
            self.checker.excused = set()
            probe()
            self.checker.healthy = False
            if self.hub.stopped or not self._settle():
                return
        self._finish()

    def _calm_down(self) -> None:
        """Wait until the leader takes for dead who is, and nobody else."""
        scenario = self.scenario
        self.hub.run(self.hub.now + 2 * scenario.interval + 2 * scenario.lag)
        self.world.wait(lambda: not self._misjudged(), 2 * scenario.detection)
        if not self.world.wait(lambda: not self._owed(), 2 * _REREAD) and not self.hub.stopped:
            self.checker.violate("L7", "workers were told that a round opens, and none does")

    def _owed(self) -> bool:
        document = self.checker.run.document
        return document is not None and not document.closed and self.checker.owed(document)

    def _misjudged(self) -> bool:
        alive = {agent.node for agent in self.world.living()}
        for agent in self.world.living():
            leading = agent.handler and agent.machine.leading
            if leading:
                roster = leading.roster
                lost = {entry.node for entry in roster.those(Standing.LOST)}
                there = roster.those(Standing.HERE, Standing.BACK, Standing.NEW)
                return bool(lost & alive) or not {entry.node for entry in there} <= alive
        return True

    def _settle(self) -> bool:
        """Whoever has given up is started again, and all have to be at work in time (L1, L3)."""
        scenario = self.scenario
        detection = scenario.interval * (scenario.attempts + 6) / 0.9
        seconds = _REREAD / 0.9 + 4 * detection + 3 * scenario.last_call + 20.0
        if scenario.kind in (Kind.FORGETFUL, Kind.LOSING):
            seconds += scenario.patience
        until = self.hub.now + seconds
        while not self.world.wait(self.world.settled, min(2.0, until - self.hub.now), 0.02):
            if self.hub.stopped:
                return False
            if self.checker.run.document is not None and self.checker.run.document.closed:
                self._expect_the_end()  # It was on its way.
                return False
            if self.hub.now >= until:
                self.checker.violate(
                    "L1", f"no peace within {seconds:.0f} s: {self._whereabouts()}"
                )
                return False
            self._start_again()
        return True

    def _start_again(self) -> None:
        for place, agent in enumerate(self.world.agents):
            if agent is not None and agent.ended is not None and not agent.ended.startswith("did"):
                self.world.launch(place)
        while len(self.world.living()) < self.world.limits[0]:
            add_node(self.world)

    def _whereabouts(self) -> str:
        return ", ".join(
            f"{agent.process.name} {agent.phase.name} {agent.machine.round}"
            f"{' latched' if agent.machine.latch else ''}"
            for agent in self.world.living()
            if agent.handler is not None
        )

    def _finish(self) -> None:
        """The workers have succeeded: all shut down, and the run is closed for good."""
        seconds = self.scenario.detection + 8 * self.scenario.interval + 2.0
        if not self.world.wait(lambda: not self._has_hole(), 2 * seconds):
            self.checker.violate("L1", "the ticket of a dead node was never buried")
            return
        self.checker.note("WORLD", "the workers have succeeded")
        for agent in self.world.members():
            agent.command("quit")
        if not self.world.wait(lambda: not self.world.living(), 60.0):
            self.checker.violate("L4", f"the end never comes: {self._whereabouts()}")
            return
        document = self.checker.run.document
        if document is None or not document.closed:
            self.checker.violate("S8", "all members have shut down, and the run is not closed")
            return
        self._expect_the_end()

    # ------------------------------------------------------------ probes

    @property
    def round_trip(self) -> float:
        """The longest time that a request and its answer take, all being well (seconds)."""
        slowness = self.scenario.lag if self.scenario.kind is Kind.SLOW else 0.0
        delays = [agent.plan.delay for agent in self.world.living()] or [0.0]
        return 4 * max(delays) + slowness + 0.002

    @property
    def slack(self) -> float:
        """What the kind of backend adds to a bound: polling, contention, old reads (seconds)."""
        scenario = self.scenario
        # Who watches one state for all looks no more often than who polls.
        polling = 0.0 if scenario.watch and scenario.roster else 0.6
        contention = 0.0 if scenario.roster else 10 * self.round_trip + 1.5
        # A thread that waits for an answer keeps the other one from going on.
        lag = 4 * scenario.lag if scenario.kind in (Kind.STALE, Kind.SLOW) else 0.0
        # Who waits for the record of a dead node's ticket looks for others now and then.
        hole = 4.5 * scenario.interval if self._has_hole() else 0.0
        return 0.1 + polling + contention + lag + hole

    def _has_hole(self) -> bool:
        """Whether a ticket was taken by a node that has died before it wrote its record."""
        document, data = self.checker.run.document, self.world.server.data
        if document is None:
            return False
        tail = data.get(("tail", document.epoch), 0)
        return any(("record", document.epoch, t) not in data for t in range(1, tail + 1))

    def _possible_probes(self) -> list[Callable[[], None]]:
        scenario = self.scenario
        probes: list[Callable[[], None]] = [self._probe_death, self._probe_arrival]
        if len(self.world.members()) > 1:
            probes.append(self._probe_departure)
            probes.append(self._probe_death)
        if not self.checker.may_lose:
            probes.append(self._probe_outage)
        if any(agent.phase is Phase.SPARE for agent in self.world.living()):
            probes.append(self._probe_spare)
        if scenario.attempts > 2:
            probes.append(self._probe_delay)
        return probes

    def _probe_death(self) -> None:
        """L1 to L3: a death is noticed in time; a spare takes the place, or the rest go on."""
        members = self.world.members()
        victim = self.chance.choice(members)
        others = [agent for agent in members if agent is not victim]
        possible = len(self.world.living()) - 1 >= self.world.limits[0]
        proof = self._proof(victim)
        self.checker.excused = {agent.node for agent in members} if possible else {victim.node}
        began = self.hub.now
        victim.process.kill()
        rate = min((agent.process.rate for agent in others), default=1.0)
        bound = self.scenario.detection / rate + 3 * self.round_trip + self.slack + proof
        if self.scenario.kind is Kind.SLOW:
            # A look counts for two periods at most, however long it took.
            bound *= 1 + 3 * self.scenario.lag / self.scenario.interval
        if not possible:
            self.hub.run(began + bound)  # Nobody is told, for nothing could be done.
            add_node(self.world)
            self.checker.excused = {agent.node for agent in members}
            return
        if not self._all_told(others, bound):
            still = [agent.process.name for agent in others if agent.at_work]
            if not self.hub.stopped:
                self.checker.violate(
                    "L2", f"{still} knew nothing of a death after {self.hub.now - began:.2f} s"
                )
            return
        if others:
            self._expect_round(proof)

    def _all_told(self, agents: list[Agent], bound: float) -> bool:
        """Whether all of them have learnt within a time that their round is over."""
        number = {agent.node: agent.machine.round for agent in agents}

        def told() -> bool:
            return all(not a.at_work or a.machine.round > number[a.node] for a in agents)

        return self.world.wait(told, bound, 0.01, 0.05)

    def _probe_arrival(self) -> None:
        """L1: who arrives is let in where there is room, and disturbs nobody where there is not."""
        room = len(self.world.living()) < self.world.limits[1]
        members = self.world.members()
        deferred = room and self.scenario.admission == "deferred"
        self.checker.excused = {agent.node for agent in members} if room else set()
        if deferred:
            self._have_arrival_wait(members)
        else:
            add_node(self.world)
        if room and not self.hub.stopped:
            look = 1.0 if deferred else 0.0
            if self._all_told(members, look + 8 * self.round_trip + self.slack):
                self._expect_round()
            elif not self.hub.stopped:
                self.checker.violate("L1", f"an arrival was not told: {self._whereabouts()}")
        else:
            self.hub.run(self.hub.now + 3.0)

    def _have_arrival_wait(self, members: list[Agent]) -> None:
        """S12, L7: who arrives disturbs nobody before a checkpoint, of which the leader asks."""
        self.checker.excused = set()
        for agent in members:
            agent.saves = 0.0
        add_node(self.world).saves = 0.0
        self.hub.run(self.hub.now + 3.0)
        self.checker.excused = {agent.node for agent in members}
        saver = self.chance.choice(members)
        if not self.world.wait(saver.reach_checkpoint, 3.0 + 8 * self.round_trip + self.slack):
            self.checker.violate("L7", "workers were not told that a node waits for a checkpoint")
        for agent in members:
            agent.saves = 0.3

    def _probe_spare(self) -> None:
        """S11: a spare that shuts down is missed by nobody."""
        spare = next(agent for agent in self.world.living() if agent.phase is Phase.SPARE)
        self.checker.excused = {spare.node}
        spare.command("quit")
        self.hub.run(self.hub.now + 3.0)

    def _probe_departure(self) -> None:
        """A node that leaves is missed at once, not after a detection time."""
        members = self.world.members()
        goer = self.chance.choice(members)
        self.checker.excused = {agent.node for agent in members}
        others = [agent for agent in members if agent is not goer]
        proof = self._proof(goer)
        goer.command("leave")
        bound = 8 * self.round_trip + self.slack
        if not self._all_told(others, bound):
            if not self.hub.stopped:
                self.checker.violate("L2", f"a departure was not noticed within {bound:.2f} s")
        elif sum(agent is not goer for agent in self.world.living()) >= self.world.limits[0]:
            self._expect_round(proof)

    def _proof(self, goer: Agent) -> float:
        """Seconds that the next leader needs to see that those who wait are alive."""
        leads = goer.handler is not None and goer.machine.leading is not None
        return 2 * self.scenario.interval / 0.9 + 2 * self.round_trip if leads else 0.0

    def _expect_round(self, proof: float = 0.0) -> None:
        """From the last return on, the last call and six round trips (L1)."""
        joining = [agent for agent in self.world.living() if not agent.at_work]
        polls = [agent.plan.poll / agent.process.rate for agent in self.world.living()]
        if not self.world.wait(
            self._all_are_back, max(polls, default=0.0) + 0.7 + self.slack, 0.01, 0.05
        ):
            return  # What has kept them is another matter, and they are waited for.
        rates = [agent.process.rate for agent in self.world.living()]
        bound = (
            self.scenario.last_call / min(rates) + 6 * self.round_trip + self.slack + 0.06 + proof
        )
        began = self.hub.now
        if not self.world.wait(self.world.settled, bound, 0.01, 0.05) and not self.hub.stopped:
            self.checker.violate(
                "L1",
                f"{len(joining)} had come back, and no round within {self.hub.now - began:.2f} s: "
                f"{self._whereabouts()}",
            )

    def _all_are_back(self) -> bool:
        """Whether everybody has entered."""
        away = (Phase.IDLE, Phase.ATTACHING, Phase.ENTERING)
        return all(
            agent.at_work or (agent.phase not in away and agent.phase is not Phase.MEMBER)
            for agent in self.world.living()
        )

    def _probe_outage(self) -> None:
        """L6: the store is away for less than ``patience``, and nobody's workers notice."""
        seconds = min(0.6 * self.scenario.patience, 5.0 * self.chance.random() + 0.5)
        break_store(self.world, seconds)
        self.hub.run(self.hub.now + seconds + 2 * self.scenario.detection)

    def _probe_delay(self) -> None:
        """L5: messages are late by less than is borne, and nobody is evicted."""
        agent = self.chance.choice(self.world.members())
        link = self.world.links[agent.process.name]
        usual = link.delay
        # A beat may wait for three other requests, each up to twice this, there and back.
        link.delay = 0.04 * self.scenario.interval * (self.scenario.attempts - 1)
        if not self.scenario.roster:
            # Who is slower than the others write loses to them again and again.
            link.delay = min(link.delay, 0.05 * self.scenario.interval / len(self.world.living()))
        if agent.plan.timeout is not None:
            link.delay = min(link.delay, agent.plan.timeout / 10)
        self.hub.run(self.hub.now + 3 * self.scenario.detection)
        link.delay = usual
        self.hub.run(self.hub.now + 2.0)
