"""The backend ``etcd``: rendezvous on an etcd cluster, by its v3 API."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.backend import Session, SessionBackend, Token

from .options import PREFIX, SHORTEST_LEASE, read_options, read_prefix
from .session import Document, EtcdSession, Run

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv.api import RendezvousParameters

    from .client import EtcdClient
    from .options import Options
    from .seam import Client

__all__ = ["EtcdRendezvousBackend", "create_backend"]


class EtcdRendezvousBackend(SessionBackend):
    """Keeps a run on etcd.

    Args:
        client: An :class:`.client.EtcdClient`, or another one behind the same interface.
        run_id: The run.
        key_prefix: What all keys begin with; ``/rdzv`` by default.
        ttl: Seconds after which the keys of a run that nobody has renewed are gone; two
            hours by default. Whoever is alive renews them.
        lease_ttl: Seconds that a node's lease lives after its last sign of life. By
            default as long as the handler's settings say that a death may go unnoticed.

    Raises:
        ValueError: The run id is empty, the prefix or a time is out of its range.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        key_prefix: str | None = None,
        ttl: float | None = None,
        *,
        lease_ttl: int | None = None,
    ) -> None:
        if not run_id:
            raise ValueError("The run id must be a non-empty string.")
        if ttl is not None and not ttl > 0:
            raise ValueError(f"The time to live is {ttl} s; it must be positive.")
        if lease_ttl is not None and lease_ttl < SHORTEST_LEASE:
            raise ValueError(f"etcd has no leases of less than {SHORTEST_LEASE} s.")
        self.run = Run(
            client,
            run_id,
            prefix=PREFIX if key_prefix is None else read_prefix(key_prefix),
            ttl=7200.0 if ttl is None else ttl,
        )
        self._asked_lease_ttl = lease_ttl
        self._lease_ttl = lease_ttl or 5
        self._state = Document(self.run, "state")

    @property
    def name(self) -> str:
        return "etcd"

    def get_state(self) -> tuple[bytes, Token] | None:
        return self._state.read()

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        found = self._state.swap(state, token)
        return None if found is None else (found[1], found[2], found[0])

    def set_liveness(self, interval: float, attempts: int) -> None:
        """Have leases live as long as a node may be silent, in whole seconds."""
        silence = interval * attempts
        if self._asked_lease_ttl is not None:
            if self._asked_lease_ttl < 2 * interval:
                raise ValueError(
                    f"lease_ttl is {self._asked_lease_ttl} s, and a node gives a sign of life "
                    f"every {interval:g} s (keep_alive_interval): one late beat would be a death. "
                    f"Raise lease_ttl to at least {math.ceil(2 * interval)}, or lower the interval."
                )
        elif silence < SHORTEST_LEASE:
            raise ValueError(
                f"keep_alive_interval x keep_alive_max_attempt is {silence:g} s, and etcd has no "
                f"leases of less than {SHORTEST_LEASE} s: a death cannot be noticed that soon. "
                "Raise one of them."
            )
        else:
            self._lease_ttl = math.ceil(silence)

    def open_session(self) -> Session:
        return EtcdSession(self.run, self._lease_ttl)


def connect(options: Options) -> EtcdClient:
    """A client for these options; it connects when it is first used."""
    from .client import EtcdClient, Tls

    tls = Tls(options.ca_cert, options.ssl_cert, options.ssl_cert_key) if options.tls else None
    return EtcdClient(
        options.endpoints,
        tls=tls,
        username=options.login.username,
        password=options.login.password,
        timeout=options.read_timeout,
        connect_timeout=options.connect_timeout,
    )


def create_backend(params: RendezvousParameters) -> tuple[EtcdRendezvousBackend, Store]:
    """Make the backend and the store of a run from its parameters.

    See ``rdzv backends etcd`` for them.

    Raises:
        ValueError: A parameter or the endpoint is malformed.
        RendezvousConnectionError: etcd cannot be reached, or does not accept or permit what
            is needed.
    """
    from .store import DEFAULT_RETRY_TIMEOUT, EtcdStore

    options = read_options(params)
    client = connect(options)
    backend = EtcdRendezvousBackend(
        client, params.run_id, options.prefix, options.ttl, lease_ttl=options.lease_ttl
    )
    backend.run.probe()
    seconds = params.get_as_seconds("timeout", 600.0)
    patience = timedelta(seconds=params.get_as_seconds("patience", 60.0))
    store = EtcdStore(
        # A client of its own, which connects when it is used: a store keeps itself alive, and
        # what the backend has open is to end with its node.
        connect(options),
        backend.run.root("store"),
        timedelta(seconds=seconds),
        ttl=options.ttl,
        # Nobody is to wait for an etcd that is away for longer than the engine does.
        retry_timeout=min(DEFAULT_RETRY_TIMEOUT, patience),
    )
    return backend, store
