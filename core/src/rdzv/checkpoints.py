"""How workers say that a checkpoint has been reached, and how a leader hears of it.

One key in the store that the workers of a round start from, which no other round uses, tells
whether newcomers wait for a checkpoint. Only compare-and-set changes it: the leader from nothing to
``waiting`` and back, a worker from ``waiting`` to ``reached``. So a checkpoint counts for those
alone who had come before it, and of a leader that takes the question back and a worker that
answers it one knows of the other.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from .errors import RendezvousConnectionError, RendezvousError, known_to_torch

if TYPE_CHECKING:
    from torch.distributed import Store

    from .dynamic_rendezvous.document import Master

__all__ = ["KEY", "NOBODY", "REACHED", "WAITING", "Gate", "checkpoint_reached"]

KEY = "rdzv/checkpoint"
NOBODY, WAITING, REACHED = "", "waiting", "reached"

_SECONDS = 2.0
"""For which a leader waits for the workers' store: what it is waiting for can be asked again."""

_WORKER_SECONDS = 30.0
"""For which a worker waits for the store that it has started from (seconds)."""

_own: dict[tuple[str, int, int], Store] = {}
"""This process's connection to the workers' store, where it has no other, by address and pid."""


@known_to_torch()
def checkpoint_reached(store: Store | None = None) -> bool:
    """Say that this is a good moment for newcomers: all that was trained is in a checkpoint.

    To be called by a worker under ``torchrun``, right after a checkpoint has been saved. With
    ``admission=deferred`` nodes that arrive wait for this. Any rank may call, and all of them may,
    as often as they like; one is enough. It asks the workers' store once: one round trip.

    Args:
        store: A store of the workers, where they have been given one that does not lead to
            ``MASTER_ADDR`` and ``MASTER_PORT``; prefixes do not matter. By default that of
            the default process group, or else a connection of its own, opened once.

    Returns:
        Whether newcomers wait, so that the next round is going to open: within a second this
        worker's agent will stop it. What is trained until then is trained again. Do not end by
        yourself: the agent would take it for success.

    Raises:
        RendezvousError: This process is no worker of torchrun's.
        RendezvousConnectionError: The workers' store cannot be reached.
    """
    try:
        found = _base(store) if store is not None else _store_of_worker()
        return bool(found.compare_set(KEY, WAITING, REACHED) == REACHED.encode())
    except RuntimeError as exc:
        raise RendezvousConnectionError(
            f"checkpoint_reached() cannot reach the workers' store: {str(exc).splitlines()[0]}"
        ) from exc


def _store_of_worker() -> Store:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if "TORCHELASTIC_RUN_ID" not in os.environ or not host or not port.isdecimal():
        raise RendezvousError(
            "checkpoint_reached() was called outside of a worker that torchrun has started "
            "(TORCHELASTIC_RUN_ID, MASTER_ADDR and MASTER_PORT are not all set). Call it in the "
            "training script, or give it the workers' store."
        )
    address = (host, int(port), os.getpid())
    if address not in _own:
        _own[address] = _store_of_default_group(host, int(port)) or _connect(
            host, int(port), _WORKER_SECONDS
        )
    return _own[address]


def _store_of_default_group(host: str, port: int) -> Store | None:
    """The store that ``init_process_group`` has made, if it is the one at this address."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return None
    store = _base(dist.distributed_c10d._get_default_store())  # noqa: SLF001 - no public way.
    same = isinstance(store, dist.TCPStore) and (store.host, store.port) == (host, port)
    return store if same else None


def _base(store: Store) -> Store:
    """What is below all prefixes: torch adds its own, which agents do not know."""
    import torch.distributed as dist

    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store


def _connect(host: str, port: int, seconds: float) -> Store:
    import torch.distributed as dist

    try:
        # torch's client says at length on stderr that nobody listens.
        socket.create_connection((host, port), seconds).close()
        return dist.TCPStore(
            host,
            port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )
    except (OSError, RuntimeError) as exc:
        raise RendezvousConnectionError(
            f"The workers' store at {host}:{port} cannot be reached: {str(exc).splitlines()[0]}"
        ) from exc


class Gate:
    """A leader's connection to the store of a round's workers.

    Args:
        master: Where it is.

    Raises:
        RendezvousConnectionError: It cannot be reached; the methods raise it as well.
    """

    def __init__(self, master: Master) -> None:
        self._store = _connect(master.host, master.port, _SECONDS)

    def ask(self) -> bool:
        """Have the workers know that newcomers wait; returns whether they are to be let in."""
        return self._change(NOBODY, WAITING)

    def call_off(self) -> bool:
        """Nobody waits any more; returns whether workers were told that a round is to open."""
        return self._change(WAITING, NOBODY)

    def _change(self, before: str, after: str) -> bool:
        try:
            return bool(self._store.compare_set(KEY, before, after) == REACHED.encode())
        except RuntimeError as exc:
            raise RendezvousConnectionError(
                f"The workers' store has not answered: {str(exc).splitlines()[0]}"
            ) from exc
