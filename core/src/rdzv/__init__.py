"""rdzv: how the nodes of an elastic PyTorch job find each other."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

API_VERSION = 1
"""The version of the plugin API; docs/plugin-api.md says what is in it and how it changes."""

if TYPE_CHECKING:
    from rdzv.api import (
        RendezvousHandler,
        RendezvousHandlerCreator,
        RendezvousHandlerRegistry,
        RendezvousInfo,
        RendezvousParameters,
        RendezvousStoreInfo,
        rendezvous_handler_registry,
    )
    from rdzv.checkpoints import checkpoint_reached
    from rdzv.dynamic_rendezvous import (
        DynamicRendezvousHandler,
        RendezvousBackend,
        RendezvousSettings,
        RendezvousTimeout,
        Token,
        create_handler,
    )
    from rdzv.endpoint import parse_rendezvous_endpoint
    from rdzv.errors import (
        RendezvousClosedError,
        RendezvousConnectionError,
        RendezvousError,
        RendezvousGracefulExitError,
        RendezvousStateError,
        RendezvousTimeoutError,
    )
    from rdzv.hookspecs import hookimpl
    from rdzv.ranks import RankNode, RankPolicy
    from rdzv.registry import get_rendezvous_handler
    from rdzv.specs import BackendSpec, HandlerSpec, Parameter

__all__ = [
    "API_VERSION",
    "BackendSpec",
    "DynamicRendezvousHandler",
    "HandlerSpec",
    "Parameter",
    "RankNode",
    "RankPolicy",
    "RendezvousBackend",
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousHandlerCreator",
    "RendezvousHandlerRegistry",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousSettings",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeout",
    "RendezvousTimeoutError",
    "Token",
    "__version__",
    "checkpoint_reached",
    "create_handler",
    "get_rendezvous_handler",
    "hookimpl",
    "parse_rendezvous_endpoint",
    "rendezvous_handler_registry",
]

# A name is imported when it is first used (PEP 562), so that a program pays only
# for what it needs, and for nothing but the standard library until then.
_HOMES = {
    "rdzv.api": (
        "RendezvousHandler",
        "RendezvousHandlerCreator",
        "RendezvousHandlerRegistry",
        "RendezvousInfo",
        "RendezvousParameters",
        "RendezvousStoreInfo",
        "rendezvous_handler_registry",
    ),
    "rdzv.checkpoints": ("checkpoint_reached",),
    "rdzv.dynamic_rendezvous": (
        "DynamicRendezvousHandler",
        "RendezvousBackend",
        "RendezvousSettings",
        "RendezvousTimeout",
        "Token",
        "create_handler",
    ),
    "rdzv.endpoint": ("parse_rendezvous_endpoint",),
    "rdzv.errors": (
        "RendezvousClosedError",
        "RendezvousConnectionError",
        "RendezvousError",
        "RendezvousGracefulExitError",
        "RendezvousStateError",
        "RendezvousTimeoutError",
    ),
    "rdzv.hookspecs": ("hookimpl",),
    "rdzv.ranks": ("RankNode", "RankPolicy"),
    "rdzv.registry": ("get_rendezvous_handler",),
    "rdzv.specs": ("BackendSpec", "HandlerSpec", "Parameter"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_SUBMODULES = frozenset({"api", "dynamic_rendezvous", "registry", "utils"})


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    # "import torch.distributed.elastic.rendezvous as r; r.registry" works there.
    if name in _SUBMODULES:
        return importlib.import_module(f"rdzv.{name}")
    raise AttributeError(f"module 'rdzv' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
