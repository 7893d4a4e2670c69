"""Looking at a run, and changing it, from outside: without being one of its nodes."""

from __future__ import annotations

from .access import Access, RunNotFoundError, connect
from .changing import NodesAliveError, close, reset, scale
from .looking import Observer, follow, inspect
from .status import Liveness, NodeStatus, Reason, Role, RunStatus

__all__ = [
    "Access",
    "Liveness",
    "NodeStatus",
    "NodesAliveError",
    "Observer",
    "Reason",
    "Role",
    "RunNotFoundError",
    "RunStatus",
    "close",
    "connect",
    "follow",
    "inspect",
    "reset",
    "scale",
]
