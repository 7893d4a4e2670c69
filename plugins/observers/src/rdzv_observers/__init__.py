"""rdzv-observers: what happens in a run, as structured logs and as metrics."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
