"""An operator's way to a run: sessions of its backend, in a process that is no node."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rdzv.api import RendezvousParameters
from rdzv.dynamic_rendezvous.backend import RendezvousBackend, Session, SessionBackend, Token
from rdzv.dynamic_rendezvous.roster import DocumentSession
from rdzv.errors import RendezvousError
from rdzv.plugins import load
from rdzv.registry import check_parameters
from rdzv.specs import BackendSpec
from rdzv.torchrun import backend_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Access", "RunNotFoundError", "connect"]

_REACH = 3.0
"""Seconds within which a store has to be there: nobody waits for a node that is to host it."""


class RunNotFoundError(RendezvousError):
    """The store has no run of this name."""


class _Looking(DocumentSession):
    """Only looks: where a read is old, a node writes to find out what there is."""

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:  # noqa: ARG002
        return super().read(None)


class Access:
    """A backend that was opened for a run.

    Args:
        backend: The backend.
        run_id: The run.
        attempts: How many beats in a row a node has to miss before it counts as lost.
        keep: What has to live as long as this.
    """

    def __init__(
        self, backend: RendezvousBackend, run_id: str, attempts: int = 5, keep: object = None
    ) -> None:
        self.run_id = run_id
        self.attempts = attempts
        self._backend = backend
        self._keep = keep
        self._lock = threading.Lock()

    def reader(self) -> Session:
        """Open a session that only reads, if it is only asked to."""
        if isinstance(self._backend, SessionBackend):
            return self._backend.open_session()
        return _Looking(self._backend, self._lock)

    def writer(self) -> Session:
        """Open a session for changes of the document."""
        if isinstance(self._backend, SessionBackend):
            return self._backend.open_session()
        return DocumentSession(self._backend, self._lock)


def connect(
    backend: str, endpoint: str, run_id: str, settings: Mapping[str, Any] | None = None
) -> Access:
    """Connect to the store of a run, as a client: nothing is hosted, made or joined.

    Args:
        backend: Its name, in rdzv or in torchrun.
        endpoint: Where its server is; as for a job.
        run_id: The run.
        settings: The backend's and the engine's settings; as for a job.

    Raises:
        PluginError: The backend is not installed, or its plugin is broken.
        ValueError: A setting or the endpoint is wrong, or the backend keeps no such runs.
        RendezvousConnectionError: The store cannot be reached.
    """
    name = backend_name(backend)
    spec = load(name)
    if not isinstance(spec, BackendSpec):
        raise ValueError(
            f"The backend '{name}' does without rdzv's engine: it keeps no run that could be "
            "looked at or changed."
        )
    # How long a job's nodes would wait for each other, and for the store, is not of interest.
    given = {**(settings or {}), "join_timeout": _REACH}
    if any(parameter.name == "is_host" for parameter in spec.parameters):
        given["is_host"] = False
    params = RendezvousParameters(name, endpoint, run_id, 1, 1, **given)
    check_parameters(spec, params)
    made, store = spec.create(params)
    attempts = params.get_as_int("keep_alive_max_attempt", 5)
    return Access(made, run_id, 5 if attempts is None else max(2, attempts), store)
