"""``rdzv conformance``: the contract on a live server, without any test code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from rdzv.errors import RendezvousError
from rdzv.specs import BackendSpec
from rdzv.testing import plugin
from rdzv.testing.contract import BackendContract, Deployment, live
from rdzv.testing.contract.harness import Run
from rdzv.testing.report import Outcome

from .settings import Usage, read_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import TaskID

    from rdzv.testing.report import Report

__all__ = ["Usage", "run"]

_MARKS = {
    Outcome.HELD: ("✓", "green"),
    Outcome.BROKEN: ("✗", "bold red"),
    Outcome.EXPECTED: ("✗", "yellow"),
    Outcome.NOT_CHECKED: ("?", "yellow"),
    Outcome.NOT_OFFERED: ("-", "dim"),
}

_LINES = 6
"""Of why a promise is broken, so many lines are shown."""


def run(
    backend: str,
    endpoint: str,
    conf: Sequence[str],
    report: Path | None,
    only: Sequence[str],
    title: str,
    limit: float,
    interval: float,
) -> int:
    """Check a backend and print what was seen; returns the exit code.

    Raises:
        Usage: It could not be checked at all.
    """
    groups = dict.fromkeys(promise.group for promise in BackendContract.promises().values())
    for group in only:
        if group not in groups:
            raise Usage(f"The contract has no group '{group}'. It has: {', '.join(groups)}.")
    if report is not None:
        _may_write(report)
    settings = read_settings(conf)
    deployment = Deployment(
        backend, endpoint, settings, title=title, limit=limit, interval=interval
    )
    _try(deployment)
    # pytest captures the standard output; this is what it was before.
    with os.fdopen(os.dup(1), "w") as out:
        console = Console(file=out)
        found = _check(deployment, only, console)
        if found is None:
            raise Usage("pytest could not run the contract.")
        _show(found, console)
    if report is not None:
        try:
            report.write_bytes(found.to_json())
        except OSError as exc:
            raise Usage(f"The report cannot be written: {exc}") from exc
    return 1 if found.those(Outcome.BROKEN) else 0


def _may_write(path: Path) -> None:
    """Refuse now what could not be written once all has run.

    Raises:
        Usage: It cannot be written.
    """
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise Usage(f"The report cannot be written: {path} is a folder, or in none to write to.")


def _try(deployment: Deployment) -> None:
    """Find out whether there is anything to check.

    Raises:
        Usage: There is not.
    """
    try:
        if not isinstance(deployment.spec, BackendSpec):
            raise AssertionError
        Run(deployment).client(join_timeout=min(10.0, deployment.limit))
    except (RendezvousError, ValueError, TypeError, AssertionError) as exc:
        raise Usage(str(exc)) from exc
    except Exception as exc:
        raise Usage(f"No client could be made: {type(exc).__name__}: {exc}") from exc


class _Watcher:
    """Hands the deployment to the contract, and shows how far it has got."""

    def __init__(
        self, deployment: Deployment, only: Sequence[str], progress: Progress, task: TaskID
    ) -> None:
        self.report: Report | None = None
        self._deployment = deployment
        self._only = only
        self._progress = progress
        self._task = task

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[live.DEPLOYMENT] = self._deployment

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        promises = BackendContract.promises()
        if self._only:
            items[:] = [i for i in items if promises[i.originalname].group in self._only]
        self._progress.update(self._task, total=len(items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        promise = BackendContract.promises()[nodeid.rpartition("::")[2]]
        self._progress.update(self._task, description=promise.id)

    def pytest_runtest_logfinish(self) -> None:
        self._progress.advance(self._task)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reports = plugin.reports(session.config)
        self.report = reports[0] if reports else None


def _check(deployment: Deployment, only: Sequence[str], console: Console) -> Report | None:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        watcher = _Watcher(deployment, only, progress, progress.add_task("", total=None))
        # Whatever pytest settings and plugins are around, the contract is the same.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.environ.pop("PYTEST_ADDOPTS", None)
        arguments = ["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
        arguments += ["-c", os.devnull, "--rootdir", folder, "--noconftest", live.__file__]
        pytest.main(arguments, plugins=[plugin, watcher])
        return watcher.report


def _show(report: Report, console: Console) -> None:
    table = Table("", "", box=None, show_header=False, padding=(0, 1))
    group = ""
    for result in report.results:
        first = result.promise.partition(".")[0]
        if first != group:
            group = first
            table.add_row("", Text(group, style="bold"))
        mark, style = _MARKS[result.outcome]
        said = Text(result.sentence)
        if result.outcome is not Outcome.HELD:
            said.append(f"\n{result.promise}: {result.outcome.value}: ", style="bold " + style)
            said.append(_shortened(result.why), style=style)
        table.add_row(Text(mark, style=style), said)
    console.print(f"{report.title}, rdzv {report.rdzv}", style="bold", highlight=False)
    console.print(table)
    counts = {outcome: len(report.those(outcome)) for outcome in Outcome}
    console.print(
        ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)
    )


def _shortened(why: str) -> str:
    lines = why.strip().splitlines()
    return "\n".join(lines[:_LINES]) + ("\n…" if len(lines) > _LINES else "")
