"""Which promises of the contract hold for a backend: a record, as JSON and as a table.

Run as a program it prints the page that compares the reports it is given::

    python -m rdzv.testing.report docs/reports/*.json > docs/backends.md
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Outcome", "Report", "Result", "load", "page"]


class Outcome(enum.Enum):
    """What became of a promise."""

    HELD = "held"
    BROKEN = "broken"
    EXPECTED = "expected failure"
    """Its author says, with a reason, that it is not kept."""
    NOT_CHECKED = "not checked"
    """The deployment lacked what it takes to check it."""
    NOT_OFFERED = "not offered"
    """It goes with something that the backend does not have, such as a capability."""


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One promise. ``why`` is empty only where it held."""

    promise: str
    sentence: str
    outcome: Outcome
    why: str = ""


class Report(msgspec.Struct, frozen=True):
    """All promises of one backend on one deployment."""

    title: str
    backend: str
    summary: str
    capabilities: tuple[str, ...]
    rdzv: str
    """The version of the core whose kit it was."""
    results: tuple[Result, ...]

    def those(self, *outcomes: Outcome) -> list[Result]:
        """The results with one of these outcomes."""
        return [result for result in self.results if result.outcome in outcomes]

    def to_json(self) -> bytes:
        """The report as it is stored: readable, and the same for the same results."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def load(path: Path) -> Report:
    """Read a report.

    Raises:
        ValueError: It is none.
        OSError: It cannot be read.
    """
    return msgspec.json.decode(path.read_bytes(), type=Report)


_MARKS = {
    Outcome.HELD: "yes",
    Outcome.BROKEN: "**no**",
    Outcome.EXPECTED: "no",
    Outcome.NOT_CHECKED: "not checked",
    Outcome.NOT_OFFERED: "-",
}

_HEAD = """\
# Backends

What each backend promises, as the conformance kit ([conformance.md](conformance.md)) saw it.
This page is made from the reports in `reports/`; do not edit it.

- *yes*: it was tested and holds.
- **no**: it was tested and does not hold.
- *no* with a number: it does not hold, which is known; the reason stands below.
- *not checked* with a number: it could not be tested there; the reason stands below.
- *-*: it goes with a capability or a step that the backend does not have.
"""


def page(reports: Sequence[Report]) -> str:
    """The page that compares backends, in Markdown."""
    notes: list[str] = []
    lines = [_HEAD, f"| promise | {' | '.join(report.title for report in reports)} |"]
    lines.append("| --- |" + " --- |" * len(reports))
    offers = (", ".join(report.capabilities) or "get and set alone" for report in reports)
    lines.append(f"| *capabilities* | {' | '.join(offers)} |")
    found = [{result.promise: result for result in report.results} for report in reports]
    for promise in dict.fromkeys(name for results in found for name in results):
        results = [one.get(promise) for one in found]
        sentence = next(result.sentence for result in results if result is not None)
        marks = [_mark(result, notes) for result in results]
        lines.append(f"| {_cell(sentence)} (`{promise}`) | {' | '.join(marks)} |")
    if notes:
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _mark(result: Result | None, notes: list[str]) -> str:
    if result is None:
        return "not checked"
    mark = _MARKS[result.outcome]
    if result.outcome not in (Outcome.EXPECTED, Outcome.NOT_CHECKED):
        return mark
    note = result.why.replace("\n", " ")
    if note not in notes:
        notes.append(note)
    return f"{mark} ({notes.index(note) + 1})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page([load(Path(name)) for name in sys.argv[1:]]))
