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
    # What the client says of the cause, and where the user of a backend has to look for it.
    remedy = ""
    if isinstance(exc, seam.AuthError):
        remedy = (
            " The login is given by username and password_file, or by RDZV_ETCD_USERNAME and "
            "RDZV_ETCD_PASSWORD; its user needs a role that may read and write the keys below the "
            "prefix."
        )
    elif isinstance(exc, seam.NoSpaceError):
        remedy = " An administrator has to do so, or to raise --quota-backend-bytes too."
    return torch_compatible(RendezvousConnectionError)(f"{str(exc).rstrip('.')}.{remedy}")
