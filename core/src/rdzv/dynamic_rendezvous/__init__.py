"""The engine: what torch has in a module of this name, and what it is made of."""

from __future__ import annotations

from .backend import (
    RendezvousBackend,
    Session,
    SessionBackend,
    Swap,
    Token,
    WatchingBackend,
    capabilities_of,
)
from .handler import (
    DynamicRendezvousHandler,
    RendezvousSettings,
    RendezvousTimeout,
    create_handler,
)

__all__ = [
    "DynamicRendezvousHandler",
    "RendezvousBackend",
    "RendezvousSettings",
    "RendezvousTimeout",
    "Session",
    "SessionBackend",
    "Swap",
    "Token",
    "WatchingBackend",
    "capabilities_of",
    "create_handler",
]
