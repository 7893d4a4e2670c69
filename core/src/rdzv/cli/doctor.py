"""``rdzv doctor``: finds out why a rendezvous would not work from this machine, and says it."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rdzv.doctor import Checked, Examination, examine
from rdzv.endpoint import redact_endpoint

if TYPE_CHECKING:
    from rdzv.diagnosis import Finding

__all__ = ["run"]

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}

_TITLES = {
    "backend": "Backend and settings",
    "names": "Names",
    "ports": "Connections",
    "tls": "TLS",
    "operations": "Operations, in a scratch run",
    "latency": "Latency",
    "server": "Server",
    "node": "This node",
    "peer": "Other nodes",
}


def run(examination: Examination, *, as_json: bool) -> int:
    """Examine, and print what is found; returns the exit code."""
    # torch's own warnings about connections say less, and at length.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    levels: Counter[str] = Counter()
    findings: list[dict[str, str]] = []
    shown: Iterator[Checked] = examine(examination)
    if not as_json:
        shown = _printed(examination, shown)
    for checked in shown:
        levels[checked.finding.level] += 1
        findings.append(_as_data(checked))
    if as_json:
        _print_json(examination, findings, levels)
    else:
        Console().print(f"\n{_summary(levels)}")
    return 1 if levels["error"] else 0


def _summary(levels: Counter[str]) -> str:
    if not levels["error"] and not levels["warning"]:
        return "Nothing is wrong."
    parts = [
        f"{levels[level]} {level}{'s' if levels[level] > 1 else ''}"
        for level in ("error", "warning")
        if levels[level]
    ]
    return f"{' and '.join(parts)}. The names in brackets are explained in rdzv's docs/doctor.md."


def _printed(examination: Examination, found: Iterator[Checked]) -> Iterator[Checked]:
    """Print each as soon as it is known."""
    console = Console()
    endpoint = printable(redact_endpoint(examination.endpoint)) or "(no endpoint)"
    console.print(
        Text(f"rdzv doctor: {printable(examination.backend)} at {endpoint}", style="bold")
    )
    title = ""
    for checked in found:
        if checked.check != title:
            title = checked.check
            console.print(Text(f"\n{_TITLES[title]}", style="bold"))
        console.print(_row(checked.finding))
        yield checked


def _row(finding: Finding) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=9)
    table.add_column(overflow="fold")
    seen = Text(printable(finding.seen))
    if finding.level in ("warning", "error"):
        seen.append(f" [{finding.id}]", style="dim")
    table.add_row(Text(f"  {finding.level}", style=_STYLES[finding.level]), seen)
    if finding.remedy:
        table.add_row("", Text(f"→ {printable(finding.remedy)}"))
    return table


def _as_data(checked: Checked) -> dict[str, str]:
    finding = checked.finding
    return {
        "check": checked.check,
        "id": finding.id,
        "level": finding.level,
        "seen": finding.seen,
        "remedy": finding.remedy,
    }


def _print_json(
    examination: Examination, findings: list[dict[str, str]], levels: Counter[str]
) -> None:
    data: dict[str, Any] = {
        "backend": examination.backend,
        "endpoint": redact_endpoint(examination.endpoint),
        "run_id": examination.run_id,
        "errors": levels["error"],
        "warnings": levels["warning"],
        "findings": findings,
    }
    # Control characters are escaped in JSON.
    sys.stdout.write(json.dumps(data, indent=1) + "\n")


def printable(text: str) -> str:
    """A text on one line, with what could steer a terminal made visible."""
    return "".join(
        f"\\u{ord(sign):04x}" if unicodedata.category(sign) in _STEERING else sign for sign in text
    )


_STEERING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode's categories of characters that have no shape of their own."""
