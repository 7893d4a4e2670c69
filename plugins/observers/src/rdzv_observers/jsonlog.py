"""One line of JSON for each event of a run, where ``RDZV_EVENTS`` says."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rdzv import eventlog, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.events import Event

__all__ = ["VARIABLE", "JsonLog", "path_of", "rdzv_observer"]

VARIABLE = "RDZV_EVENTS"
"""The environment variable that switches the log on."""

_IN_A_FOLDER = "rdzv-%h-%p.jsonl"


@hookimpl
def rdzv_observer() -> Callable[[Event], object] | None:
    """Log where the variable is set."""
    where = os.environ.get(VARIABLE, "").strip()
    return JsonLog(where) if where else None


def path_of(where: str) -> Path:
    """Return the file of this process.

    Args:
        where: A path in which ``%h`` stands for this machine's name, ``%p`` for
            the process id and ``%%`` for a percent sign. For a folder, one that exists
            or is written with a slash at its end, it is a file of this process in it.
    """
    values = {"h": socket.gethostname().replace("/", "_"), "p": str(os.getpid()), "%": "%"}

    def filled(text: str) -> str:
        return re.sub("%([hp%])", lambda found: values[found[1]], text)

    path = Path(filled(where))
    return path / filled(_IN_A_FOLDER) if where.endswith("/") or path.is_dir() else path


class JsonLog:
    """Appends events to a file, each with one write; called in a thread of its own.

    Args:
        where: See :func:`path_of`; ``-`` is standard error.

    An error of the file is raised to whoever calls, which is rdzv's own thread for this
    observer: it logs the first one. The next event tries again.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._handle: int | None = None
        self._torn = False

    def __call__(self, event: Event) -> None:
        line = eventlog.encode(event)
        if self._torn:
            # The disk was full in the middle of a line: that one is lost, not this one too.
            line = b"\n" + line
        if self._handle is None:
            self._handle = self._open()
        written = os.write(self._handle, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(f"only {written} of {len(line)} bytes could be written")

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and self._where != "-":
            os.close(handle)

    def _open(self) -> int:
        if self._where == "-":
            return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        path = path_of(self._where)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A system appends each write as a whole, whoever else writes to the file.
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
