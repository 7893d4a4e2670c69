"""What is simulated: a scenario, as data; and one made from a seed.

A scenario holds all that happens, so that a part of it can be left out and the
rest still means the same. It is stored as JSON where it has found something.
"""

from __future__ import annotations

import random

import msgspec

from rdzv.dynamic_rendezvous.document import Admission  # noqa: TC001 - msgspec reads it.

from .sessions import Offer
from .store import Kind

__all__ = ["FAULTS", "Fault", "Node", "Scenario", "generate"]


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happens at a time (seconds).

    ``kind`` is one of :data:`FAULTS`; ``node`` the place it happens to, ``seconds`` how
    long it lasts, and ``value`` a number whose meaning depends on the kind.
    """

    at: float
    kind: str
    node: int = -1
    seconds: float = 0.0
    value: float = 0.0


FAULTS = {
    "crash": "the node's process is killed",
    "restart": "the node's process is killed if it runs, and another is started in its place",
    "pause": "the node's process is stopped for a time",
    "partition": "nothing passes between node and store (value 0), or one way (1 to it, 2 back)",
    "loss": "a share of the messages (value) is lost, late or doubled; of all nodes where -1",
    "clock": "the node's wall clock jumps (value)",
    "outage": "the store is gone and comes back, as its kind does",
    "freeze": "the store stops answering, and goes on later",
    "slow": "the store takes up to a time (value) for each request",
    "corrupt": "something in the store is overwritten with noise",
    "oversize": "something in the store is overwritten with more than is ever read",
    "join": "one more node arrives",
    "leave": "the node's agent is ended by a signal: it leaves",
    "quit": "the node's agent shuts down, as torch's does at its end",
    "close": "the node closes the run",
    "scale": "an operator changes the run's limits, to those that the value stands for",
    "reset": "an operator begins the run anew, whoever lives",
    "end": "an operator closes the run",
    "lost ticket": "a node takes a ticket and dies before its record is written",
}


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place for a node's process."""

    start: float
    offset: float = 0.0
    rate: float = 1.0
    wall: float = 0.0
    delay: float = 0.001
    poll: float = 0.5
    """Seconds between two looks of its agent at ``num_nodes_waiting()``."""
    timeout: float | None = 5.0
    """Seconds after which its client library gives a request up; ``None`` for never."""
    labels: str = ""
    number: int = -1
    """What a rank policy is told about it."""


class Scenario(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that is decided before a simulation starts."""

    seed: int
    min_nodes: int
    max_nodes: int
    nodes: tuple[Node, ...]
    faults: tuple[Fault, ...]
    length: float
    """When the faults stop (seconds)."""
    last_call: float = 1.0
    interval: float = 1.0
    attempts: int = 5
    patience: float = 60.0
    join_timeout: float = 60.0
    store: str = Kind.LINEARIZABLE.name
    lag: float = 0.5
    roster: bool = True
    watch: bool = True
    carries: bool = True
    atomic: bool = False
    along: int = 8
    leased: bool = False
    rank_policy: str = "sticky"
    admission: Admission = "immediate"

    @property
    def kind(self) -> Kind:
        """The store's kind."""
        return Kind[self.store]

    @property
    def offer(self) -> Offer:
        """What the backend has."""
        lease = self.interval * self.attempts if self.leased else 0.0
        return Offer(self.roster, self.watch, self.carries, self.atomic, self.along, lease)

    @property
    def detection(self) -> float:
        """Within which a death is noticed at the latest, near the leader (a node's seconds)."""
        # A leader beats twice in an interval, and a lease is no shorter for it.
        return self.interval * (self.attempts + (1.0 if self.leased else 0.5))

    @property
    def patient(self) -> bool:
        """Whether nodes wait long enough for deaths to be noticed and rounds to form."""
        return self.join_timeout > 3 * self.interval * (self.attempts + 6)


_COMMON = (
    *("crash",) * 4,
    *("restart",) * 3,
    *("pause",) * 4,
    *("partition",) * 3,
    *("loss",) * 2,
    *("join",) * 3,
    *("leave",) * 2,
    *("clock", "outage", "freeze", "slow", "lost ticket"),
)

_LABELS = ("", "rack:r1", "rack:r2", "rack:r1/nvlink:d1", "rack:r1/nvlink:d2", "rack:r2/nvlink:d1")


def generate(seed: int) -> Scenario:
    """The scenario of a seed: a few nodes and a random subset of the faults."""
    chance = random.Random(f"scenario {seed}")
    ranks = random.Random(f"ranks {seed}")  # Of its own: what else a seed means stays as it was.
    policy = ranks.choices(("sticky", "topology", "scheduler", "hostile"), (5, 3, 1, 1))[0]
    low = chance.choice((1, 2, 2, 3))
    high = low + chance.choice((0, 1, 1, 2))
    many = high + chance.choice((0, 0, 1, 2))
    kind = chance.choice((*(Kind.LINEARIZABLE,) * 5, *Kind))
    roster = chance.random() < 0.75
    interval, attempts = chance.choice((0.5, 1.0, 1.0, 2.0)), chance.choice((2, 3, 5, 5))
    if not roster and interval * (attempts - 1) < 2.0:
        # Every beat is a compare-and-set of the whole, which the others' beats can spoil.
        interval, attempts = 1.0, 3
    last_call = chance.choice((0.2, 1.0, 3.0))
    lag = chance.choice((0.05, 0.5, 2.0))
    if kind is Kind.SLOW:
        lag = min(lag, interval * (attempts - 1) / 5 if roster else 0.005)
    if kind is Kind.STALE:
        lag = min(lag, interval * (attempts - 1) / 4)
    # Whose client gives up sooner than the store answers gets nowhere.
    least = 3 * lag if kind is Kind.SLOW else 0.0
    # Nor does one that gives up before a death can be noticed.
    soonest = 3 * interval * (attempts + 6) + 3 * last_call + 10 * least
    join_timeout = max(chance.choice((10.0, 60.0, 600.0)), soonest)
    if chance.random() < 0.05:
        join_timeout = chance.uniform(2.0, 10.0)
    length = chance.uniform(5.0, 25.0) * max(1.0, interval)
    skewed = chance.random() < 0.7
    nodes = tuple(
        Node(
            start=0.0 if chance.random() < 0.5 else chance.uniform(0.0, length / 2),
            offset=chance.uniform(0.0, 1e5),
            rate=chance.uniform(0.9, 1.1) if skewed else 1.0,
            wall=chance.uniform(-3600.0, 3600.0),
            # As above: a slow node loses to the others again and again.
            delay=10 ** chance.uniform(-3.5, -1.7 if roster else -2.5),
            poll=chance.uniform(0.1, 1.0),
            timeout=chance.choice((max(1.0, least), max(5.0, least), None)),
            labels=ranks.choice(_LABELS),
            number=ranks.choice((-1, 0, 1, 2, 3)),
        )
        for _ in range(many)
    )
    faults = _faults(chance, kind, many, length, interval)
    faults = tuple(sorted((*faults, *_orders(seed, length)), key=lambda f: f.at))
    return Scenario(
        seed=seed,
        min_nodes=low,
        max_nodes=high,
        nodes=nodes,
        faults=faults,
        length=length,
        last_call=last_call,
        interval=interval,
        attempts=attempts,
        patience=chance.choice((10.0, 60.0)),
        join_timeout=join_timeout,
        store=kind.name,
        lag=lag,
        roster=roster,
        watch=chance.random() < 0.75,
        carries=chance.random() < 0.5,
        atomic=chance.random() < 0.3,
        along=chance.choice((0, 2, 8)),
        # By a chance of its own: what else a seed means stays as it was.
        leased=roster and random.Random(f"lease {seed}").random() < 0.2,
        rank_policy=policy,
        admission="deferred" if random.Random(f"admission {seed}").random() < 0.2 else "immediate",
    )


def _orders(seed: int, length: float) -> list[Fault]:
    """What an operator does meanwhile, in some runs; by a chance of its own, as leases."""
    chance = random.Random(f"operator {seed}")
    if chance.random() > 0.2:
        return []
    kinds = [chance.choice(("scale", "scale", "scale", "reset")) for _ in range(4)]
    return [
        Fault(round(chance.uniform(0.0, length), 3), kind, value=chance.random())
        for kind in kinds[: chance.randint(1, 4)] + ["end"] * (chance.random() < 0.1)
    ]


def _faults(
    chance: random.Random, kind: Kind, places: int, length: float, interval: float
) -> tuple[Fault, ...]:
    kinds = set(chance.sample(_COMMON, chance.randint(1, 6)))
    chosen = [f for f in _COMMON if f in kinds]
    if chance.random() < 0.15:
        chosen.append(chance.choice(("close", "quit")))
    if chance.random() < 0.05:
        chosen.append(chance.choice(("corrupt", "oversize")))
    if kind in (Kind.FORGETFUL, Kind.LOSING):
        chosen += ["outage"] * 2
    faults = []
    for _ in range(chance.randint(1, 10)):
        fault = chance.choice(chosen)
        at = chance.uniform(0.0, length)
        long = chance.random() < 0.05
        seconds = 10 ** chance.uniform(-1, 2.08 if long else 1.1) * min(1.0, interval)
        value = {
            "partition": float(chance.choice((0, 0, 1, 2))),
            "loss": chance.choice((0.05, 0.3, 0.6)),
            "clock": chance.choice((-3600.0, -60.0, 60.0, 3600.0)),
            "slow": chance.choice((0.1, 1.0)),
        }.get(fault, chance.random())
        node = -1 if fault == "loss" and chance.random() < 0.5 else chance.randrange(places)
        faults.append(Fault(round(at, 3), fault, node, round(seconds, 3), value))
    return tuple(sorted(faults, key=lambda f: f.at))
