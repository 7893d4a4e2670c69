"""``rdzv simulate``: many seeds, with progress, a summary, and what a failing one needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rdzv.testing.simulation import Scenario, generate, minimise, simulate
from rdzv.testing.simulation.campaign import append, read_results, run_campaign, total_seeds

from .settings import Usage

if TYPE_CHECKING:
    from pathlib import Path

    from rdzv.testing.simulation.campaign import Campaign, Seed

__all__ = ["Usage", "run_range", "run_scenario"]


def run_range(first: int, last: int, jobs: int, results: Path | None) -> int:
    """Simulate a range of seeds; returns the exit code.

    Raises:
        Usage: There is no such range, or the results file holds something else.
    """
    if last < first:
        raise Usage(f"There is no seed from {first} to {last}.")
    console = Console()
    try:
        earlier = read_results(results) if results is not None else []
    except ValueError as exc:
        raise Usage(str(exc)) from exc
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"seeds {first} to {last}", total=last - first + 1)

        def told(seed: Seed) -> None:
            progress.advance(task)
            if seed.broken:
                progress.console.print(f"seed {seed.seed}: {seed.broken}", style="bold red")

        campaign = run_campaign(first, last, jobs, told)
    if results is not None:
        append(results, campaign)
    console.print(_summary(campaign))
    if results is not None:
        total = total_seeds([*earlier, campaign])
        console.print(f"{results} now has {total:,} different seeds.")
    if not campaign.failed:
        return 0
    _explain(console, generate(min(campaign.failed)))
    return 1


def _summary(campaign: Campaign) -> Table:
    table = Table(title="Simulated", show_header=False)
    rows = {
        "seeds": f"{campaign.seeds:,} ({campaign.first} to {campaign.last})",
        "failed": ", ".join(map(str, sorted(campaign.failed))) or "none",
        "rounds completed": f"{campaign.rounds:,}",
        "events": f"{campaign.events:,}",
        "simulated time": f"{campaign.simulated / 3600:,.1f} h",
        "took": f"{campaign.took:,.1f} s",
        "code": campaign.commit,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def run_scenario(path: Path) -> int:
    """Simulate a scenario that was stored as JSON, and show its history; returns the exit code.

    Raises:
        Usage: The file holds something else.
    """
    try:
        scenario = msgspec.json.decode(path.read_bytes(), type=Scenario)
    except (OSError, msgspec.MsgspecError) as exc:
        raise Usage(f"{path} is no scenario: {exc}") from exc
    console = Console()
    result = simulate(scenario, keep=True)
    console.print("\n".join(result.history), markup=False, highlight=False, soft_wrap=True)
    for violation in result.violations:
        console.print(f"Broken: {violation}", style="bold red")
    return 1 if result.violations else 0


def _explain(console: Console, scenario: Scenario) -> None:
    """Show a failing scenario as small as it gets, its history, and how to see both again."""
    seed = scenario.seed
    console.print(f"\nSeed {seed} again: rdzv simulate --from {seed} --to {seed}")
    smallest = minimise(scenario)
    result = simulate(smallest, keep=True)
    console.print("\nAs small as it gets, it is this scenario:")
    text = msgspec.json.format(msgspec.json.encode(smallest), indent=1).decode()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print("\nand this is what happens in it:")
    console.print("\n".join(result.history), markup=False, highlight=False, soft_wrap=True)
    console.print("\nKeep the JSON in a file, and see it again: rdzv simulate --scenario FILE")
