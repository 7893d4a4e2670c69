"""rdzv-redis: a rendezvous on Redis and Valkey."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rdzv_redis.backend import RedisRendezvousBackend, create_backend
    from rdzv_redis.server import RedisServer
    from rdzv_redis.store import RedisStore

__all__ = ["RedisRendezvousBackend", "RedisServer", "RedisStore", "__version__", "create_backend"]

_HOME = {
    "RedisRendezvousBackend": "backend",
    "RedisServer": "server",
    "RedisStore": "store",
    "create_backend": "backend",
}


# Imported when first used (PEP 562): the core imports this package to describe
# the backend, which must not cost an import of torch or redis.
def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(f"rdzv_redis.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rdzv_redis' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
