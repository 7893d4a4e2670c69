"""Find, for each mutant, a scenario that shows it: ``python -m tests.simulation.find``.

Takes the first seed that notices the mutant, makes its scenario small, and keeps it
in ``scenarios/``, where the tests find it. Prints the table of the documentation.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import msgspec

from rdzv.testing.simulation import Scenario, minimise, simulate

from .mutants import MUTANTS, Mutant

SCENARIOS = Path(__file__).parent / "scenarios"


def path_of(mutant: Mutant) -> Path:
    return SCENARIOS / f"{mutant.name.replace(' ', '-')}.json"


def stored(mutant: Mutant) -> Scenario | None:
    path = path_of(mutant)
    return msgspec.json.decode(path.read_bytes(), type=Scenario) if path.exists() else None


def first_seed(mutant: Mutant, seeds: range) -> int | None:
    """The first of ``seeds`` that notices a mutant."""
    with mutant.applied():
        return next((seed for seed in seeds if simulate(mutant.scenario(seed)).violations), None)


def shows(mutant: Mutant, scenario: Scenario) -> bool:
    """Whether a scenario notices a mutant, and nothing where there is none."""
    with mutant.applied():
        found = simulate(scenario).violations
    return bool(found) and not simulate(scenario).violations


def main(seeds: int, names: list[str]) -> None:
    SCENARIOS.mkdir(exist_ok=True)
    print("| mutant | what is wrong in it | seed that notices it first | by |")
    print("| --- | --- | --: | --- |")
    for mutant in MUTANTS:
        if names and not any(name in mutant.name for name in names):
            continue
        scenario = stored(mutant)
        if scenario is None or not shows(mutant, scenario):
            seed = first_seed(mutant, range(seeds))
            if seed is None:
                print(f"| {mutant.name} | {mutant.wrong} | **none of {seeds}** | |", flush=True)
                continue
            scenario = minimise(mutant.scenario(seed), functools.partial(shows, mutant), 20.0)
            text = msgspec.json.format(msgspec.json.encode(scenario), indent=1)
            path_of(mutant).write_bytes(text + b"\n")
        with mutant.applied():
            promise = simulate(scenario).violations[0].promise
        print(f"| {mutant.name} | {mutant.wrong} | {scenario.seed} | {promise} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2:])
