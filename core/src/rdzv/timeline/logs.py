"""Reads logs of events, line by line; what is no event is counted and told where."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from ..eventlog import MAX_LINE, Line, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Logs", "Problem", "read_logs"]

_MOST_EVENTS = 1_000_000
"""Events that are kept: some 500 MB of memory."""

_MOST_PROBLEMS = 50
"""Problems that are told of one by one."""


@dataclass(frozen=True)
class Problem:
    """A line that could not be read, or a whole file (line 0)."""

    file: str
    line: int
    why: str


@dataclass
class Logs:
    """What stands in some files.

    Attributes:
        lines: The events, in the order of the files.
        files: How many files there are.
        refused: How many lines are no events.
        problems: The first of them.
        cut: Whether there were more events than are kept.
    """

    lines: list[Line] = field(default_factory=list)
    files: int = 0
    refused: int = 0
    problems: list[Problem] = field(default_factory=list)
    cut: bool = False

    def refuse(self, file: Path, line: int, why: str) -> None:
        """Count what is no event."""
        self.refused += 1
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(Problem(str(file), line, why))


def read_logs(paths: Iterable[Path]) -> Logs:
    """Read files, and all ``*.jsonl`` of folders.

    Raises:
        ValueError: A path is neither a file nor a folder.
    """
    logs = Logs()
    files = (each.resolve() for path in paths for each in _files(path))
    for path in dict.fromkeys(files):
        logs.files += 1
        try:
            with path.open("rb") as file:
                _read(path, file, logs)
        except OSError as exc:
            logs.refuse(path, 0, f"cannot be read: {exc.strerror or exc}")
    return logs


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(each for each in path.glob("*.jsonl") if each.is_file())
    if not path.is_file():
        raise ValueError(f"There is no file or folder {path}.")
    return [path]


def _read(path: Path, file: BinaryIO, logs: Logs) -> None:
    for number, data in enumerate(_lines(file), start=1):
        if not data.strip():
            continue
        try:
            line = decode(data)
        except ValueError as exc:
            logs.refuse(path, number, str(exc))
            continue
        if len(logs.lines) >= _MOST_EVENTS:
            logs.cut = True
            return
        logs.lines.append(_shared(line))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, of one that is far too long its beginning."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        yield line


def _shared(line: Line) -> Line:
    # The same few texts stand in every line: keep each once.
    return msgspec.structs.replace(
        line,
        event=sys.intern(line.event),
        run_id=sys.intern(line.run_id),
        node=sys.intern(line.node),
        backend=sys.intern(line.backend),
    )
