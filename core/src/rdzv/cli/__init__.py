"""The ``rdzv`` command; installed with ``rdzv[cli]``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command, or say what it takes to have it."""
    try:
        from .app import app
    except ModuleNotFoundError as exc:
        if exc.name not in ("rich", "typer"):
            raise
        sys.stderr.write('The rdzv command needs more: pip install "rdzv[testing,cli]"\n')
        sys.exit(2)
    app()
