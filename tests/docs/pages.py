"""The pages of the documentation, and their blocks of code."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *DOCS.glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("plugins/*/README.md"),
        *ROOT.glob("examples/*/README.md"),
    )
    if path.name != "CHANGELOG.md"
)

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<language>[\w{}-]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``not_run`` is the reason that stands in the page before it, if any."""

    page: str
    line: int
    language: str
    text: str
    not_run: str


def blocks(*languages: str, pages: list[Path] = PAGES) -> list[Block]:
    found = []
    for path in pages:
        text = path.read_text()
        found += [
            Block(
                path.relative_to(ROOT).as_posix(),
                text.count("\n", 0, each.start("language")) + 1,
                each["language"],
                each["text"],
                each["why"] or "",
            )
            for each in _BLOCK.finditer(text)
            if each["language"] in languages
        ]
    return found


def extension(name: str):
    """A module of docs/_ext."""
    folder = str(DOCS / "_ext")
    if folder not in sys.path:
        sys.path.append(folder)
    return __import__(name)


def tables(text: str) -> list[list[str]]:
    """The rows of all tables in a text, without their heads."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("| ---"):
            rows.pop()
        elif line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            rows.append([cell.strip() for cell in cells])
    return rows
