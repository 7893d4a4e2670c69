"""The simulation finds nothing in the protocol, something in every mutant, and can be repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import msgspec
import pytest

from rdzv.testing.simulation import Fault, Node, Scenario, generate, minimise, simulate
from rdzv.testing.simulation.campaign import Campaign, append, read_results, total_seeds
from rdzv.testing.simulation.campaign import run_campaign as run
from rdzv.testing.simulation.costs import as_table, count
from rdzv.testing.simulation.scenario import FAULTS
from rdzv.testing.simulation.store import Kind

from .find import SCENARIOS, path_of, shows, stored
from .mutants import MUTANTS

SEEDS = 2000
BLOCK = 250

SEEDS_THAT_FAILED = (
    *(2929, 3532, 3840, 3854, 4042, 4064, 4078, 4195, 4208, 4270, 4327, 4330, 4335, 4341, 4399),
    *(4429, 4442, 4470, 4651, 4659, 4691, 4813, 4881, 4929, 5281, 5577, 5689, 5731, 5824, 7420),
    *(7483, 7607, 7612, 9860, 107654, 109483, 111777, 123608, 129190, 178241),
)
"""Beyond those that are always run. The scenario of a seed changes with the generator; the mistakes
that they showed are kept as mutants, each with the scenario that shows it."""


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_promise_holds_whatever_happens(first):
    campaign = run(first, first + BLOCK - 1, jobs=os.cpu_count() or 1)
    assert campaign.seeds == BLOCK
    assert campaign.failed == {}
    assert campaign.rounds > BLOCK


@pytest.mark.parametrize("seed", SEEDS_THAT_FAILED)
def test_a_seed_that_once_failed_does_not_fail_again(seed):
    assert simulate(generate(seed)).violations == ()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_noticed_and_the_protocol_itself_passes_where_it_is(mutant):
    scenario = stored(mutant)
    assert scenario is not None, f"run find.py to make {path_of(mutant)}"
    assert shows(mutant, scenario)


def test_there_are_no_scenarios_without_a_mutant():
    assert set(SCENARIOS.iterdir()) == {path_of(mutant) for mutant in MUTANTS}


# ---------------------------------------------------------------- what is simulated


def test_every_kind_of_fault_of_store_and_of_backend_is_simulated():
    scenarios = [generate(seed) for seed in range(SEEDS)]
    faults = Counter(fault.kind for scenario in scenarios for fault in scenario.faults)
    assert faults.keys() == FAULTS.keys()
    assert min(faults.values()) > 20
    kinds = Counter((s.store, s.roster, s.watch) for s in scenarios)
    assert kinds.keys() == {(k.name, r, w) for k in Kind for r in (0, 1) for w in (0, 1)}
    assert min(kinds.values()) > 5


def test_clocks_differ_and_drift_as_far_as_is_promised():
    nodes = [node for seed in range(SEEDS) for node in generate(seed).nodes]
    assert (min(n.rate for n in nodes) - 0.9, 1.1 - max(n.rate for n in nodes)) < (0.001, 0.001)
    assert min(n.wall for n in nodes) < -3500
    assert max(n.wall for n in nodes) > 3500


def test_a_scenario_survives_being_stored():
    scenario = generate(7)
    again = msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario)
    assert again == scenario
    assert simulate(again).digest == simulate(scenario).digest


# ---------------------------------------------------------------- again and again


def digests(hash_seed: int) -> str:
    program = (
        "from rdzv.testing.simulation import generate, simulate\n"
        "print(*(simulate(generate(seed)).digest for seed in range(30)))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_seed_gives_one_trace_in_every_process():
    assert digests(1) == digests(2)


def test_another_seed_gives_another_trace():
    assert len({simulate(generate(seed)).digest for seed in range(30)}) == 30


def test_keeping_the_history_changes_nothing():
    assert simulate(generate(3), keep=True).digest == simulate(generate(3)).digest


# ---------------------------------------------------------------- what fails


def named(name):
    return next(mutant for mutant in MUTANTS if mutant.name == name)


def test_a_failing_scenario_is_made_smaller_and_still_fails():
    mutant = named("beat not checked")
    nodes = tuple(Node(0.1 * number, rate=1.05) for number in range(4))
    faults = (
        Fault(2.0, "clock", 1, value=60.0),
        Fault(3.0, "crash", 3),
        Fault(5.0, "join"),
        Fault(6.0, "loss", -1, 1.0, 0.05),
    )
    scenario = Scenario(1, 2, 4, nodes, faults, 30.0)
    with mutant.applied():
        promise = simulate(scenario).violations[0].promise
        smallest = minimise(scenario)
        assert simulate(smallest).violations[0].promise == promise
    assert len(smallest.faults) + len(smallest.nodes) < len(faults) + len(nodes)


def test_campaigns_add_up_in_a_file(tmp_path):
    path = tmp_path / "results.jsonl"
    for first, last in ((0, 2), (3, 4), (4, 5)):
        append(path, run(first, last, jobs=1))
    campaigns = read_results(path)
    assert [(c.first, c.last, c.seeds) for c in campaigns] == [(0, 2, 3), (3, 4, 2), (4, 5, 2)]
    assert total_seeds(campaigns) == 6
    assert all(isinstance(c, Campaign) and not c.failed and c.events > 0 for c in campaigns)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("no results\n")
    with pytest.raises(ValueError, match=r"results\.jsonl is no file of simulation results"):
        read_results(path)


# ---------------------------------------------------------------- what it costs


@pytest.mark.parametrize("watch", [True, False], ids=["pushed", "polled"])
def test_what_a_node_asks_does_not_grow_with_the_number_of_nodes(watch):
    small, large = count(8, watch=watch), count(200, watch=watch)
    if watch:
        # Few nodes find their places in the document, many read a piece each.
        assert small.requests == small.most == 5
        assert large.requests == large.most == 6
        assert small.leader == large.leader <= 12
    assert large.received < 1.1 * small.received
    assert small.healthy < (1.5 if watch else 6.0)
    assert large.healthy < (1.5 if watch else 6.0)
    assert large.store < 1.1 * 25 * small.store
    assert "| 200 |" in as_table([small, large])
