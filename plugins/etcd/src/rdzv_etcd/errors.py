"""What the client raises, as the core's errors: the one place where it is translated."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from rdzv.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    torch_compatible,
)

from . import seam

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call", "translated"]

T = TypeVar("T")


def call(operation: Callable[[], T]) -> T:
    """Run an operation of the client; its failures become the core's errors."""
    try:
        return operation()
    except seam.EtcdError as exc:
        raise translated(exc) from exc


def translated(exc: seam.EtcdError) -> RendezvousError:
    """The core's error for one of the client's, which says where it happened."""
    if isinstance(exc, seam.TooLargeError):
        return torch_compatible(RendezvousStateError)(
            f"etcd takes no request of that size: {exc} Its --max-request-bytes and --max-txn-ops "
            "may have been lowered."
        )
    remedy = ""
    if isinstance(exc, seam.AuthError):
        remedy = (
            " Check username and password (password_file, RDZV_ETCD_PASSWORD); the user needs a "
            "role that may read and write the keys below the prefix."
        )
    elif isinstance(exc, seam.NoSpaceError):
        remedy = (
            " An administrator has to compact and defragment it, and to disarm the alarm (etcdctl "
            "compact, defrag, alarm disarm), or to raise --quota-backend-bytes."
        )
    return torch_compatible(RendezvousConnectionError)(f"{str(exc).rstrip('.')}.{remedy}")
