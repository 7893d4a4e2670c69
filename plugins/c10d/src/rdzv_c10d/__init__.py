"""rdzv-c10d: a rendezvous on the stores that come with torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rdzv_c10d.backend import C10dRendezvousBackend, create_backend

__all__ = ["C10dRendezvousBackend", "__version__", "create_backend"]


# Imported when first used (PEP 562): the core imports this package to describe
# the backend, which must not cost an import of torch.
def __getattr__(name: str) -> object:
    if name in ("C10dRendezvousBackend", "create_backend"):
        value = getattr(importlib.import_module("rdzv_c10d.backend"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rdzv_c10d' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
