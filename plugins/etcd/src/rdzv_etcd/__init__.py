"""rdzv-etcd: a rendezvous on etcd."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rdzv_etcd.backend import EtcdRendezvousBackend, create_backend
    from rdzv_etcd.client import EtcdClient, Tls
    from rdzv_etcd.legacy import EtcdRendezvous, EtcdRendezvousHandler
    from rdzv_etcd.server import EtcdServer
    from rdzv_etcd.store import EtcdStore

__all__ = [
    "EtcdClient",
    "EtcdRendezvous",
    "EtcdRendezvousBackend",
    "EtcdRendezvousHandler",
    "EtcdServer",
    "EtcdStore",
    "Tls",
    "__version__",
    "create_backend",
]

_HOME = {
    "EtcdClient": "client",
    "EtcdRendezvous": "legacy",
    "EtcdRendezvousBackend": "backend",
    "EtcdRendezvousHandler": "legacy",
    "EtcdServer": "server",
    "EtcdStore": "store",
    "Tls": "client",
    "create_backend": "backend",
}


# Imported when first used (PEP 562): the core imports this package to describe
# the backend, which must not cost an import of torch or grpc.
def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(f"rdzv_etcd.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rdzv_etcd' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
