"""The ``rdzv`` command; installed with ``rdzv[cli]``."""

from __future__ import annotations

import sys

__all__ = ["main"]

_LISTINGS = {("backends",): False, ("backends", "--json"): True}
"""Command lines that list the backends, and whether as JSON."""


def main() -> None:
    """Run the command, or say what it takes to have it."""
    try:
        as_json = _LISTINGS.get(tuple(sys.argv[1:]))
        if as_json is not None:
            # What people and scripts ask for most, and all of it that is needed: typer brings
            # pydantic along, which takes longer than everything else together.
            from .backends import show

            sys.exit(show(as_json=as_json))
        from .app import app
    except ModuleNotFoundError as exc:
        if exc.name not in ("rich", "typer"):
            raise
        sys.stderr.write('The rdzv command needs more: pip install "rdzv[testing,cli]"\n')
        sys.exit(2)
    app()
