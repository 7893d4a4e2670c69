"""Many seeds, in several processes; what they gave, added up over many campaigns."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import rdzv

from .scenario import generate
from .world import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Campaign", "Seed", "append", "read_results", "run_campaign", "total_seeds"]


class Seed(msgspec.Struct, frozen=True):
    """What one seed gave."""

    seed: int
    digest: str
    broken: str
    """The promise that did not hold and how, or nothing."""
    rounds: int
    events: int
    seconds: float


class Campaign(msgspec.Struct, omit_defaults=True):
    """A range of seeds: one line of the results file."""

    first: int
    last: int
    date: str
    commit: str
    seeds: int = 0
    rounds: int = 0
    events: int = 0
    simulated: float = 0.0
    """Seconds of simulated time."""
    took: float = 0.0
    """Seconds of real time."""
    failed: dict[int, str] = {}

    def add(self, seed: Seed) -> None:
        """Count one seed."""
        self.seeds += 1
        self.rounds += seed.rounds
        self.events += seed.events
        self.simulated += seed.seconds
        if seed.broken:
            self.failed[seed.seed] = seed.broken


def run_seed(seed: int) -> Seed:
    """Simulate one seed."""
    result = simulate(generate(seed))
    broken = str(result.violations[0]) if result.violations else ""
    return Seed(seed, result.digest, broken, result.rounds, result.events, result.seconds)


def run_campaign(
    first: int, last: int, jobs: int, told: Callable[[Seed], None] = lambda _: None
) -> Campaign:
    """Simulate the seeds from ``first`` to ``last``, both included, in ``jobs`` processes.

    Args:
        first: The first seed.
        last: The last one.
        jobs: How many processes; 1 for none but this.
        told: Is told of each seed as it ends, in no order.
    """
    today = dt.datetime.now(dt.timezone.utc).date().isoformat()
    campaign = Campaign(first, last, today, _commit())
    began = time.monotonic()
    for seed in _results(range(first, last + 1), jobs):
        campaign.add(seed)
        told(seed)
    campaign.took = round(time.monotonic() - began, 1)
    campaign.simulated = round(campaign.simulated, 1)
    return campaign


def _results(seeds: Iterable[int], jobs: int) -> Iterator[Seed]:
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=10)


def append(path: Path, campaign: Campaign) -> None:
    """Add a campaign to a results file (one JSON object a line)."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(campaign) + b"\n")


def read_results(path: Path) -> list[Campaign]:
    """All campaigns of a results file.

    Raises:
        ValueError: It holds something else.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        return [msgspec.json.decode(line, type=Campaign) for line in lines]
    except msgspec.MsgspecError as exc:
        raise ValueError(f"{path} is no file of simulation results: {exc}") from exc


def total_seeds(campaigns: Iterable[Campaign]) -> int:
    """How many different seeds were simulated."""
    seen: set[int] = set()
    for campaign in campaigns:
        seen.update(range(campaign.first, campaign.last + 1))
    return len(seen)


def _commit() -> str:
    """What was simulated: the commit of a checkout, else the version."""
    source = Path(rdzv.__file__).parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return f"rdzv {rdzv.__version__}"
    return found.stdout.strip()
