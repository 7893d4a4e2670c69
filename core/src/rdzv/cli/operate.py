"""``rdzv close``, ``reset`` and ``scale``, and how all commands on a run fail."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, cast

from rdzv import operating
from rdzv.errors import PluginError, RendezvousClosedError, RendezvousError

from .settings import Usage, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rdzv.dynamic_rendezvous.document import Document

__all__ = ["access", "close", "printable", "reported", "reset", "scale"]

_REFUSED, _USAGE, _TROUBLE = 1, 2, 3

_NAMED = 10
"""So many nodes are named in a refusal."""


def printable(text: str) -> str:
    """A text from a store, as a terminal can be given it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reported(command: Callable[[], int]) -> int:
    """Run a command; what goes wrong is said, and becomes the exit code."""
    try:
        return command()
    except (Usage, PluginError, ValueError, TypeError) as exc:
        code, said = _USAGE, cast("Exception", exc)
    except (
        operating.RunNotFoundError,
        operating.NodesAliveError,
        RendezvousClosedError,
    ) as exc:
        code, said = _REFUSED, exc
    except RendezvousError as exc:
        code, said = _TROUBLE, exc
    _say(str(said))
    if isinstance(said, operating.NodesAliveError):
        for node in said.nodes[:_NAMED]:
            _say(f"  {node.name}: {node.liveness.value}")
    return code


def _say(text: str) -> None:
    sys.stderr.write("\n".join(printable(line) for line in text.splitlines()) + "\n")


def access(run: str, backend: str, endpoint: str, conf: Sequence[str]) -> operating.Access:
    """Connect to the store of a run."""
    return operating.connect(backend, endpoint, run, read_settings(conf))


def close(way: operating.Access) -> int:
    """Close a run; returns the exit code."""
    with contextlib.closing(way.writer()) as session:
        done = operating.close(session, way.run_id)
    state = "is closed now" if done else "was closed already"
    sys.stdout.write(f"The run '{printable(way.run_id)}' {state}.\n")
    return 0


def scale(way: operating.Access, low: int | None, high: int | None) -> int:
    """Change a run's limits; returns the exit code."""
    if low is None and high is None:
        raise Usage("Give --min, --max or both.")
    with contextlib.closing(way.writer()) as session:
        before, now = operating.scale(session, way.run_id, low, high)
    run = f"The run '{printable(way.run_id)}'"
    if now is None:
        sys.stdout.write(f"{run} has {_limits(before)} already.\n")
    else:
        sys.stdout.write(f"{run} has {_limits(now)} now; it had {_limits(before)}.\n")
    return 0


def reset(way: operating.Access, low: int | None, high: int | None, *, force: bool) -> int:
    """Begin another life of a run; returns the exit code."""
    with contextlib.closing(way.writer()) as session:
        before, now = operating.reset(
            session, way.run_id, low, high, force=force, attempts=way.attempts
        )
    last = f"after round {before.round}" if before.round else "before any round had completed"
    sys.stdout.write(
        f"The run '{printable(way.run_id)}' begins anew with {_limits(now)}; it had ended {last}.\n"
    )
    return 0


def _limits(document: Document) -> str:
    return f"{document.min_nodes} to {document.max_nodes} nodes"
