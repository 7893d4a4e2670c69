"""``rdzv timeline``: the logs of a run's nodes as one page."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rdzv.timeline.logs import read_logs
from rdzv.timeline.page import page
from rdzv.timeline.story import runs_of
from rdzv.timeline.text import visible

from .settings import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rdzv.timeline.logs import Logs
    from rdzv.timeline.story import Run

__all__ = ["Usage", "run"]

_TOLD = 10
"""Lines that could not be read, told of on the terminal."""


def run(paths: Sequence[Path], output: Path, run_id: str | None) -> int:
    """Make the page and say what is in it; returns the exit code.

    Raises:
        Usage: There are no events, or the page cannot be written.
    """
    try:
        logs = read_logs(paths)
    except (OSError, ValueError) as exc:
        raise Usage(str(exc)) from exc
    runs = runs_of(line for line in logs.lines if run_id is None or line.run_id == run_id)
    for problem in logs.problems[:_TOLD]:
        sys.stderr.write(f"{visible(problem.file)}:{problem.line}: {visible(problem.why)}\n")
    if not runs:
        raise Usage(_why_nothing(logs.files, logs.refused, {e.run_id for e in logs.lines}))
    try:
        _write(output, runs, logs)
    except OSError as exc:
        raise Usage(f"{output} cannot be written: {exc.strerror or exc}.") from exc
    rounds = sum(len(each.formings) for each in runs)
    sys.stdout.write(
        f"{visible(str(output))}: {len(runs)} run(s), {sum(len(r.nodes) for r in runs)} node(s), "
        f"{rounds} round(s), from {len(logs.lines)} events in {logs.files} file(s).\n"
    )
    if logs.refused:
        sys.stderr.write(f"{logs.refused} line(s) could not be read; the page lists them.\n")
    return 1 if logs.refused or logs.cut else 0


def _why_nothing(files: int, refused: int, others: set[str]) -> str:
    if others:
        names = ", ".join(visible(name) for name in sorted(others)[:10])
        return f"No event is of that run. There are: {names}."
    if not files:
        return "There is no *.jsonl in the folder. Set RDZV_EVENTS for the job; see rdzv-observers."
    return f"There is no event in {files} file(s); {refused} line(s) are something else."


def _write(output: Path, runs: Sequence[Run], logs: Logs) -> None:
    """Write all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(page(runs, logs))
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(output)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
