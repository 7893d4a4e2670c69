"""The store that rank 0 opens for the workers of a round: a fresh one every time."""

from __future__ import annotations

import socket
from datetime import timedelta

from ..endpoint import hold_port
from .document import Master

__all__ = ["open_master"]

_SECONDS = 30.0


def open_master(host: str, *, shared: bool) -> tuple[Master, object]:
    """Open a store server for the workers, or find a port for theirs.

    A store that an earlier round has used will not do: its keys are still there,
    and the next process group would find them.

    Args:
        host: The address under which the other nodes reach this one. It is
            published as it is.
        shared: Whether this process serves the store; else rank 0's first worker
            does, on a port that is held for it until it starts.

    Returns:
        The address, and what keeps the server open or the port held.

    Raises:
        RuntimeError: The server cannot be opened or reached under ``host``.
    """
    if not shared:
        held = hold_port()
        return Master(host, held.getsockname()[1]), held
    import torch.distributed as dist

    try:
        socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError as exc:
        raise RuntimeError(
            f"its own address {host!r} cannot be resolved ({exc}); give one with --local-addr"
        ) from exc
    server = dist.TCPStore(
        host,
        0,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=_SECONDS),
    )
    return Master(host, server.port), server
