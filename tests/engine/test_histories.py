"""Random histories: whatever happens to nodes and store, safety holds and the run recovers."""

from __future__ import annotations

import random

import pytest

from rdzv.dynamic_rendezvous.messages import (
    Beat,
    Enter,
    Join,
    Leave,
    Publish,
    Read,
    ReadBeats,
    ReadLog,
    ReadPiece,
    ReadRoster,
    SwapDocument,
    Withdraw,
)
from rdzv.dynamic_rendezvous.phases import Phase

from .world import Node, World

ACTIONS = [Read, Enter, SwapDocument, ReadPiece, ReadRoster, ReadLog, ReadBeats, Beat, Publish]


class History:
    """A world to which things happen by chance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        low = self.random.randint(1, 3)
        high = low + self.random.randint(0, 3)
        self.world = World(
            0,
            low,
            high,
            last_call=2.0,
            attempts=self.random.randint(2, 4),
            along=self.random.choice([1, 2, 8]),
        )
        for _ in range(high):
            self.arrive()

    def some(self) -> Node:
        return self.random.choice(self.world.nodes)

    def arrive(self) -> None:
        self.world.join(self.world.add())

    def die(self) -> None:
        self.some().kill()

    def leave(self) -> None:
        node = self.some()
        if node.runs:
            node.tell(Leave())

    def give_up(self) -> None:
        node = self.some()
        if node.runs and node.phase not in (Phase.MEMBER, Phase.LEFT):
            node.tell(Withdraw(accept=False))
            node.tell(Join())

    def sleep(self) -> None:
        self.some().pauses_at = self.random.choice(ACTIONS)

    def wake(self) -> None:
        for node in self.world.nodes:
            node.pauses_at = None
            if node.paused and not node.dead:
                node.resume()

    def lose_touch(self) -> None:
        self.some().breaks_at = self.random.choice(ACTIONS)

    def find_touch(self) -> None:
        for node in self.world.nodes:
            node.breaks_at = None
            if node.broken and not node.dead and not node.paused:
                node.reconnect()

    def lose_a_ticket(self) -> None:
        self.world.tail += 1

    def everything_stops(self) -> None:
        self.world.now += self.random.uniform(0, 30)

    def time_passes(self) -> None:
        self.world.advance(self.random.choice([0.1, 1.0, 3.0, 10.0]))

    def agents_look(self) -> None:
        for node in self.world.nodes:
            if node.runs and node.machine.latch and self.random.random() < 0.8:
                node.tell(Join())

    def happen(self) -> None:
        things = [
            *(self.arrive, self.die, self.leave, self.give_up, self.sleep, self.wake),
            *(self.lose_touch, self.find_touch, self.lose_a_ticket, self.everything_stops),
            *[self.time_passes] * 4,
            *[self.agents_look] * 4,
        ]
        self.random.choice(things)()
        self.world.settle()

    def heal(self) -> None:
        self.wake()
        self.find_touch()
        while len(self.here()) < self.world.settings.min_nodes:
            self.arrive()
        for _ in range(60):
            self.world.advance(1.0)
            for node in self.here():
                if node.machine.latch:
                    node.tell(Join())
        self.world.settle()

    def here(self) -> list[Node]:
        return [n for n in self.world.nodes if n.runs and n.phase is not Phase.LEFT]


@pytest.mark.parametrize("block", range(10))
def test_whatever_happens_the_rounds_agree_and_in_the_end_all_are_at_work(block):
    for seed in range(block * 40, block * 40 + 40):
        history = History(seed)
        for _ in range(60):
            history.happen()
        history.heal()
        world, here = history.world, history.here()
        at_work = [n for n in here if n.phase is Phase.MEMBER]
        told = f"seed {seed}: {[(n.number, n.phase.name, n.machine.round) for n in here]}"
        assert {n.machine.round for n in at_work} == {world.document.round}, told
        assert len(at_work) == world.document.size == min(len(here), world.document.max_nodes), told
        assert all(n.phase is Phase.SPARE for n in here if n not in at_work), told
