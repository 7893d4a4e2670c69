"""The redis backend: rendezvous on a Redis or Valkey server."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.backend import Session, SessionBackend, Token

from .connect import connect
from .options import read_options
from .session import Document, RedisSession, Run

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv.api import RendezvousParameters

    from .connect import Client

__all__ = ["RedisRendezvousBackend", "create_backend"]


class RedisRendezvousBackend(SessionBackend):
    """Keeps a run on a Redis server.

    Args:
        client: Reaches the server; ``decode_responses`` must be off.
        run_id: The run.
        where: Which server it is, for errors.
        prefix: What all keys begin with; must have no braces.
        ttl: How long the keys of a run live in which nobody is alive (seconds).
        wait_replicas: How many replicas have to confirm a write of the run's state.
        confirm_within: Within which they have to, and a subscription is answered (seconds).

    Raises:
        ValueError: The run id is empty.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        where: str = "",
        *,
        prefix: str = "rdzv",
        ttl: float = 7200.0,
        wait_replicas: int = 0,
        confirm_within: float = 5.0,
    ) -> None:
        if not run_id:
            raise ValueError("The run id must be a non-empty string.")
        self.run = Run(
            client,
            run_id,
            where or type(client).__name__,
            prefix=prefix,
            ttl=ttl,
            wait_replicas=wait_replicas,
            confirm_within=confirm_within,
        )
        self._state = Document(self.run, "state")

    @property
    def name(self) -> str:
        return "redis"

    def get_state(self) -> tuple[bytes, Token] | None:
        return self._state.read()

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        found = self._state.swap(state, token)
        return None if found is None else (found[1], found[2], found[0])

    def open_session(self) -> Session:
        return RedisSession(self.run)


def create_backend(params: RendezvousParameters) -> tuple[RedisRendezvousBackend, Store]:
    """Make the backend and the store of a run from its parameters.

    See ``rdzv backends redis`` for them.

    Raises:
        ValueError: A parameter or the endpoint is malformed.
        RendezvousConnectionError: The server cannot be reached, does not accept or permit what
            is needed, or could lose what it has acknowledged and nobody has accepted that.
    """
    from .store import RedisStore

    options = read_options(params)
    if not params.run_id:
        raise ValueError("The run id must be a non-empty string.")
    names = Run.names(params.run_id, options.prefix)
    client, patient, _ = connect(options, names("document"))
    backend = RedisRendezvousBackend(
        client,
        params.run_id,
        options.where,
        prefix=options.prefix,
        ttl=options.ttl,
        wait_replicas=options.wait_replicas,
        confirm_within=options.read_timeout,
    )
    backend.run.probe()
    seconds = params.get_as_seconds("timeout", 600.0)
    store = RedisStore(patient, names("store"), timedelta(seconds=seconds), ttl=options.ttl)
    return backend, store
