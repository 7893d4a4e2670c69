"""docs/doctor.md explains all findings, and no others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

SOURCES = (
    *ROOT.glob("core/src/rdzv/doctor/*.py"),
    *ROOT.glob("plugins/*/src/*/diagnose.py"),
)

# Their ids are put together.
OF_PORTS = {f"port.{outcome}" for outcome in ("refused", "timeout", "unreachable", "failed")}
SKIPPED = {f"{subject}.skipped" for subject in ("port", "operation", "peer")}


def ids_in(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
            first = node.args[0]
            if isinstance(first, ast.Constant):
                found.add(str(first.value))
    return found


def test_the_page_explains_every_finding_and_no_other():
    table = (ROOT / "docs" / "doctor.md").read_text().partition("## The findings")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    explained = [id_ for row in rows for id_ in re.findall(r"`([^`]+)`", row)]
    assert len(explained) == len(set(explained))
    made = set().union(*(ids_in(path) for path in SOURCES)) | OF_PORTS | SKIPPED
    assert set(explained) == made
