"""What this distribution tells the core: the backend ``sqlite``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdzv import BackendSpec, Parameter, hookimpl

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv import RendezvousBackend, RendezvousParameters

__all__ = ["rdzv_backend"]


def _create(params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
    from rdzv_sqlite.backend import create_backend

    return create_backend(params)


_SQLITE = BackendSpec(
    name="sqlite",
    summary="a database file, for one machine or a shared disk with working locks",
    create=_create,
    parameters=(
        Parameter(
            "busy_timeout",
            "seconds",
            5.0,
            help="How long to wait while another process has the database for itself.",
        ),
        Parameter(
            "ttl",
            "seconds",
            86400.0,
            help="After which the rows of a run in which nobody is alive are removed by the next.",
        ),
    ),
    guarantees=(
        "What is stored is linearizable, and survives the end of every process.",
        "A process that dies holds nobody up; one that is stopped within a write does.",
    ),
)


@hookimpl
def rdzv_backend(name: str) -> BackendSpec | None:
    """Describe ``sqlite``."""
    return _SQLITE if name == "sqlite" else None
