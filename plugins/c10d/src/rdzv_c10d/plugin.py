"""What this distribution tells the core: the backend ``c10d`` and the handler ``static``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv import hookimpl
from rdzv.specs import BackendSpec, HandlerSpec, Parameter

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv import RendezvousBackend, RendezvousHandler, RendezvousParameters
    from rdzv.diagnosis import Diagnosis

__all__ = ["rdzv_backend", "rdzv_handler"]


def _create_c10d(params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
    from rdzv_c10d.backend import create_backend

    return create_backend(params)


def _diagnose_c10d(params: RendezvousParameters) -> Diagnosis:
    from rdzv_c10d.diagnose import diagnose

    return diagnose(params)


def _create_static(params: RendezvousParameters) -> RendezvousHandler:
    from rdzv_c10d.static import create_rdzv_handler

    return create_rdzv_handler(params)


_C10D = BackendSpec(
    name="c10d",
    summary="torch's own stores: a TCPStore on one of the nodes, or a file for one machine",
    create=_create_c10d,
    parameters=(
        Parameter(
            "store_type",
            "str",
            "tcp",
            help="'tcp' for a server at the endpoint, 'file' for a file at the endpoint's path.",
            choices=("tcp", "file"),
        ),
        Parameter(
            "read_timeout",
            "seconds",
            60.0,
            help="How long connecting to the TCPStore and one operation on it may take.",
        ),
        Parameter(
            "is_host",
            "bool",
            help="Whether this node hosts the TCPStore; found out from the endpoint if not given.",
        ),
    ),
    # On a FileStore, which cannot push, changes are looked for.
    capabilities=frozenset({"roster", "watch"}),
    guarantees=(
        "What is stored is linearizable, and exactly one of several writers is told that it won.",
        "The TCPStore lives in a node's process: when that node ends, so does the run.",
    ),
    diagnose=_diagnose_c10d,
)

_STATIC = HandlerSpec(
    name="static",
    summary="a fixed number of nodes with ranks that the user gives",
    create=_create_static,
    parameters=(
        Parameter("rank", "int", help="This node's rank, from 0; must be given."),
        Parameter("timeout", "seconds", 600.0, help="How long to wait for the other nodes."),
    ),
)


@hookimpl
def rdzv_backend(name: str) -> BackendSpec | None:
    """Describe ``c10d``."""
    return _C10D if name == "c10d" else None


@hookimpl
def rdzv_handler(name: str) -> HandlerSpec | None:
    """Describe ``static``."""
    return _STATIC if name == "static" else None
