"""The ``static`` handler: a fixed number of nodes, ranks that the user gives, one TCPStore."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from rdzv.api import RendezvousHandler, RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from rdzv.endpoint import parse_rendezvous_endpoint
from rdzv.errors import RendezvousConnectionError, RendezvousTimeoutError, torch_compatible

__all__ = ["StaticTCPRendezvous", "create_rdzv_handler"]

_DEFAULT_TIMEOUT = 600.0

# A client that connects to something that is no TCPStore, or to a frozen one,
# waits beyond its timeout; this much later (in seconds) it is left behind.
_GRACE = 2.0


class StaticTCPRendezvous(RendezvousHandler):
    """A rendezvous with nothing to agree on: every node knows its rank.

    The node of rank 0 hosts a TCPStore at the given address, the others connect
    to it, and all wait until ``world_size`` nodes are there. Membership never
    changes.

    Args:
        master_addr: The host name or address of the node of rank 0.
        master_port: The TCP port there; 0 for a free one, with one node only.
        rank: This node's rank.
        world_size: The number of nodes.
        run_id: The id of the run.
        timeout: How long to wait for the others, in seconds.
    """

    def __init__(
        self,
        master_addr: str,
        master_port: int,
        rank: int,
        world_size: int,
        run_id: str,
        timeout: float,
    ) -> None:
        self.master_addr = master_addr
        self.master_port = master_port
        self.rank = rank
        self.world_size = world_size
        self.run_id = run_id
        self.timeout = timedelta(seconds=timeout)
        self._store: TCPStore | None = None

    def get_backend(self) -> str:
        """Return ``static``."""
        return "static"

    @property
    def use_agent_store(self) -> bool:
        """True: the workers use the TCPStore of rank 0."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until all nodes have connected to rank 0's store, the first time.

        Returns:
            This node's rank and the world size as they were given; the agents'
            store is the same at every call.

        Raises:
            RendezvousConnectionError: Rank 0 cannot host the store, or another
                rank cannot reach it within the timeout.
            RendezvousTimeoutError: Not all nodes came within the timeout.
        """
        if self._store is None:
            self._store = self._open_store()
            self.master_port = self._store.port
        return RendezvousInfo(
            PrefixStore(self.run_id, self._store),
            self.rank,
            self.world_size,
            RendezvousStoreInfo(self.master_addr, self.master_port),
        )

    def is_closed(self) -> bool:
        """Return ``False``: a static run cannot be closed."""
        return False

    def set_closed(self) -> None:
        """Do nothing: a static run cannot be closed."""

    def num_nodes_waiting(self) -> int:
        """Return 0: nobody else is ever admitted."""
        return 0

    def get_run_id(self) -> str:
        """Return the id of the run."""
        return self.run_id

    def shutdown(self) -> bool:
        """Do nothing: the store lives on while somebody in this process uses it."""
        return True

    def _open_store(self) -> TCPStore:
        outcome: list[TCPStore | Exception] = []

        def connect() -> None:
            try:
                outcome.append(
                    TCPStore(
                        self.master_addr,
                        self.master_port,
                        self.world_size,
                        self.rank == 0,
                        self.timeout,
                        multi_tenant=True,
                    )
                )
            except (ValueError, RuntimeError, TimeoutError) as error:
                outcome.append(error)

        thread = threading.Thread(target=connect, name="rdzv-static-connect", daemon=True)
        thread.start()
        thread.join(self.timeout.total_seconds() + _GRACE)
        result = outcome[0] if outcome else None
        if isinstance(result, TCPStore):
            return result
        raise self._explain(result) from result

    def _explain(self, error: Exception | None) -> Exception:
        where = f"'{self.master_addr}', port {self.master_port}"
        waited = f"{self.timeout.total_seconds():g} s"
        who = f"(static rendezvous, run '{self.run_id}', rank {self.rank} of {self.world_size})"
        connection_error = torch_compatible(RendezvousConnectionError)
        if error is None:
            return connection_error(
                f"What listens at {where} has not answered for {waited} {who}. It is no TCPStore, "
                "or its process is stopped; check the endpoint."
            )
        text = str(error)
        if "clients joined" in text:
            return torch_compatible(RendezvousTimeoutError)(
                f"Not all {self.world_size} nodes came within {waited} {who}: {text} Start the "
                "others, or give a greater 'timeout'."
            )
        if self.rank == 0:
            if "EADDRINUSE" in text:
                return connection_error(
                    f"Rank 0 cannot host the store at {where}: the port is in use {who}. Give "
                    "another port, or end what uses it."
                )
            return connection_error(f"Rank 0 cannot host the store at {where} {who}: {text}")
        if not _resolves(self.master_addr):
            return connection_error(
                f"The host name '{self.master_addr}' of the endpoint does not resolve on this "
                f"machine {who}. Check its spelling, or give an address."
            )
        return connection_error(
            f"There was no way to the store at {where} within {waited} {who}. Is the node of rank "
            f"0 running, and is the port open? The last error: {text}"
        )


def create_rdzv_handler(params: RendezvousParameters) -> StaticTCPRendezvous:
    """Make the handler from its parameters.

    Args:
        params: The endpoint is rank 0's ``host:port``. Of the settings, ``rank``
            is this node's rank and must be given, ``timeout`` is in seconds
            (600 by default).

    Raises:
        ValueError: A value is missing or wrong.
    """
    if params.min_nodes != params.max_nodes:
        raise ValueError(
            f"The static rendezvous has a fixed number of nodes, and {params.min_nodes} to "
            f"{params.max_nodes} were asked for; give min_nodes = max_nodes, or choose "
            "another backend."
        )
    rank = params.get_as_int("rank")
    if rank is None:
        raise ValueError(
            "The static rendezvous needs this node's rank: give rank=N in RendezvousParameters."
        )
    if not 0 <= rank < params.max_nodes:
        raise ValueError(
            f"The rank {rank} is out of range: with {params.max_nodes} nodes it must be from 0 to "
            f"{params.max_nodes - 1}."
        )
    if not params.endpoint.strip():
        raise ValueError(
            "The static rendezvous needs an endpoint, the host:port of the node of rank 0: give "
            "endpoint='HOST:PORT'."
        )
    host, port = parse_rendezvous_endpoint(params.endpoint, default_port=-1)
    if port == -1:
        raise ValueError(
            f"The endpoint '{params.endpoint}' of the static rendezvous names no port: give "
            f"endpoint='{host}:PORT'."
        )
    if port == 0 and params.max_nodes > 1:
        raise ValueError(
            f"The endpoint '{params.endpoint}' has port 0, a free port that the other "
            f"{params.max_nodes - 1} nodes could not know; give a fixed one."
        )
    timeout = params.get_as_seconds("timeout", _DEFAULT_TIMEOUT)
    return StaticTCPRendezvous(host, port, rank, params.max_nodes, params.run_id, timeout)


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True
