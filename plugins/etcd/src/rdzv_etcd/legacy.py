"""The interface of torch's legacy handler for etcd, on this package's backend."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from rdzv.api import RendezvousHandler, RendezvousInfo, RendezvousParameters
from rdzv.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from rdzv.endpoint import default_address, host_of
from rdzv.errors import RendezvousClosedError, RendezvousTimeoutError

from .backend import EtcdRendezvousBackend, connect
from .options import read_options
from .plugin import LEGACY
from .store import EtcdStore

if TYPE_CHECKING:
    from .seam import Client

__all__ = ["EtcdRendezvous", "EtcdRendezvousHandler", "create_rdzv_handler", "read_url"]

log = logging.getLogger(__name__)

_PREFIX = "/torchelastic/p2p"

_ADVICE = (
    "The handler 'etcd-legacy' is there for programs that were written for torch's legacy handler; "
    "use the backend 'etcd' instead (RendezvousParameters(backend='etcd', …), or "
    "--rdzv-backend=rdzv-etcd under torchrun)."
)

# What torch's legacy handler calls otherwise.
_NAMES = {alias: each.name for each in LEGACY.parameters for alias in each.aliases}


class EtcdRendezvous:
    """The rendezvous of one node, as torch's class of that name has it.

    Under it is the engine that serves every backend, so it also re-forms where torch's does
    not. What torch's tells of the state in etcd (``get_rdzv_state`` and so on) is not there: the
    state is another one.

    Args:
        client: An :class:`.client.EtcdClient`.
        prefix: What all keys begin with.
        run_id: The run.
        num_min_workers: The fewest nodes of a round.
        num_max_workers: The most nodes of a round.
        timeout: Seconds within which a round has to complete.
        last_call_timeout: Seconds to wait for more nodes once the fewest are here.
        local_addr: The address under which the others reach this node; found out by
            default.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        client: Client,
        prefix: str,
        run_id: str,
        num_min_workers: int,
        num_max_workers: int,
        timeout: float,
        last_call_timeout: float,
        local_addr: str | None = None,
    ) -> None:
        self.client = client
        self._run_id = run_id
        # As wherever a run's parameters are given; the endpoint is the client's.
        given = RendezvousParameters("etcd-legacy", "", run_id, num_min_workers, num_max_workers)
        self._limits = given.min_nodes, given.max_nodes
        self.backend = EtcdRendezvousBackend(client, run_id, prefix)
        self._timeout = RendezvousTimeout(
            join=timedelta(seconds=timeout), last_call=timedelta(seconds=last_call_timeout)
        )
        self.local_addr = local_addr
        self._made: DynamicRendezvousHandler | None = None

    @property
    def handler(self) -> DynamicRendezvousHandler:
        """The handler that does the work; made when it is first needed."""
        if self._made is None:
            self._made = DynamicRendezvousHandler.from_backend(
                self._run_id,
                # Each round has a store of its own, which is made when its number is known.
                self._store("rdzv"),
                self.backend,
                *self._limits,
                local_addr=self.local_addr,
                timeout=self._timeout,
            )
        return self._made

    def rendezvous_barrier(self) -> tuple[int, int, int]:
        """Take part in the next round; returns its number, this node's rank and how many there are.

        Raises:
            RendezvousTimeoutError: No round completed in time.
            RendezvousClosedError: The run is closed.
            RendezvousConnectionError: etcd cannot be reached.
            RendezvousStateError: etcd holds what cannot be.
        """
        number, info = self.join()
        return number, info.rank, info.world_size

    def join(self) -> tuple[int, RendezvousInfo]:
        """Do so, and return all that is known of the round, and its number."""
        info = self.handler.next_rendezvous()
        return self.handler.round, info

    def set_closed(self) -> None:
        """Close the run: nobody can join it any more."""
        self.handler.set_closed()

    def setup_kv_store(self, rdzv_version: int) -> EtcdStore:
        """The store of a round."""
        return self._store("rdzv", f"v_{rdzv_version}", "kv")

    def store_extra_data(self, rdzv_version: int, key: str, value: Any) -> None:
        """Write a value, anything that JSON has, beside a round's store."""
        self._extra(rdzv_version).set(key, json.dumps(value))

    def load_extra_data(self, rdzv_version: int, key: str, timeout: float | None = None) -> Any:
        """Read such a value; waits for it, for ``timeout`` seconds if that is given.

        Raises:
            RendezvousTimeoutError: It was not written in time.
            RendezvousClosedError: The run was closed meanwhile.
        """
        store = self._extra(rdzv_version)
        left = timedelta(seconds=timeout) if timeout is not None else timedelta(days=365)
        try:
            store.wait([key], left)
        except RuntimeError as exc:
            if self.handler.is_closed():
                raise RendezvousClosedError(f"The run '{self._run_id}' is closed.") from exc
            raise RendezvousTimeoutError(
                f"Nobody has stored '{key}' for round {rdzv_version} within {timeout} s."
            ) from exc
        return json.loads(store.get(key))

    def _extra(self, rdzv_version: int) -> EtcdStore:
        return self._store("rdzv", f"v_{rdzv_version}", "extra_data")

    def _store(self, *names: str) -> EtcdStore:
        return EtcdStore(self.client, self.backend.run.root(*names), self._timeout.join)


class EtcdRendezvousHandler(RendezvousHandler):
    """torch's legacy handler for etcd; use the backend ``etcd`` instead.

    What a node does about others' deaths, returns and arrivals is what the backend ``etcd`` does.

    Args:
        rdzv_impl: The rendezvous.
        local_addr: The address under which the others reach this node; found out by
            default.
        backend: What :meth:`get_backend` returns; ``etcd``, as torch's, by default.
    """

    def __init__(
        self, rdzv_impl: EtcdRendezvous, local_addr: str | None = None, *, backend: str = "etcd"
    ) -> None:
        warnings.warn(_ADVICE, DeprecationWarning, stacklevel=2)
        log.warning(_ADVICE)
        self._rdzv_impl = rdzv_impl
        self._backend = backend
        if local_addr is not None:
            rdzv_impl.local_addr = local_addr

    @property
    def use_agent_store(self) -> bool:
        return self._rdzv_impl.handler.use_agent_store

    def get_backend(self) -> str:
        return self._backend

    def get_run_id(self) -> str:
        return self._rdzv_impl.handler.get_run_id()

    def next_rendezvous(self) -> RendezvousInfo:
        number, info = self._rdzv_impl.join()
        store = self._rdzv_impl.setup_kv_store(number)
        where = info.bootstrap_store_info  # The engine always says it.
        return RendezvousInfo(store, info.rank, info.world_size, where)  # type: ignore[arg-type]

    def is_closed(self) -> bool:
        return self._rdzv_impl.handler.is_closed()

    def set_closed(self) -> None:
        self._rdzv_impl.set_closed()

    def num_nodes_waiting(self) -> int:
        return self._rdzv_impl.handler.num_nodes_waiting()

    def shutdown(self) -> bool:
        return self._rdzv_impl.handler.shutdown()


def read_url(url: str) -> RendezvousParameters:
    """Read ``etcd://host:port/run?min_workers=1&max_workers=3``, as torch's handler documents it.

    ``max_workers`` is ``min_workers`` by default; ``timeout``, ``last_call_timeout`` and
    ``etcd_prefix`` may be given in the same way, and several hosts with commas between.

    Raises:
        ValueError: It is no such URL.
    """
    parts = urlsplit(url)
    run_id = unquote(parts.path.strip("/"))
    form = "etcd://host:port/run?min_workers=1&max_workers=3"
    if parts.scheme != "etcd" or not parts.netloc or not run_id:
        raise ValueError(f"The URL of the legacy handler must look like {form}.")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        settings: dict[str, Any] = dict(pairs)
        fewest = int(settings.pop("min_workers"))
        most = int(settings.pop("max_workers", fewest))
    except (KeyError, ValueError):
        raise ValueError(
            f"The URL of the legacy handler must give whole numbers as min_workers and "
            f"max_workers: {form}."
        ) from None
    return RendezvousParameters("etcd-legacy", parts.netloc, run_id, fewest, most, **settings)


def _with_url(params: RendezvousParameters) -> RendezvousParameters:
    """What the endpoint says, where it is a URL of the legacy kind, and what stands beside it."""
    if not params.endpoint.strip().startswith("etcd://"):
        return params
    if not urlsplit(params.endpoint).query:
        # Without limits, which stand beside it then.
        parts = urlsplit(params.endpoint)
        run_id = parts.path.strip("/") or quote(params.run_id, safe="")
        said = RendezvousParameters(
            params.backend, parts.netloc, unquote(run_id), params.min_nodes, params.max_nodes
        )
    else:
        said = read_url(params.endpoint)
    for name, one, other in (
        ("run id", said.run_id, params.run_id),
        ("min_workers", said.min_nodes, params.min_nodes),
        ("max_workers", said.max_nodes, params.max_nodes),
    ):
        if one != other:
            raise ValueError(f"The endpoint's URL says {name}={one}, and beside it is {other}.")
    return RendezvousParameters(
        params.backend,
        said.endpoint,
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        **{**said.config, **params.config},
    )


def create_rdzv_handler(params: RendezvousParameters) -> EtcdRendezvousHandler:
    """Make the handler of a run from its parameters, as torch's function of that name does.

    The endpoint is ``host:port``, several of them with commas between, or a URL as in
    :func:`read_url` that agrees with what stands beside it. See ``rdzv backends etcd-legacy`` for
    the parameters; torch's names for files (``cacert``, ``cert``, ``key``) are understood.

    Raises:
        ValueError: A parameter or the endpoint is malformed.
        RendezvousConnectionError: etcd cannot be reached, or does not permit what is needed.
    """
    params = _with_url(params)
    renamed = {_NAMES.get(name, name): value for name, value in params.config.items()}
    options = read_options(
        RendezvousParameters(
            params.backend,
            params.endpoint,
            params.run_id,
            params.min_nodes,
            params.max_nodes,
            params.local_addr,
            **renamed,
        )
    )
    rendezvous = EtcdRendezvous(
        connect(options),
        params.get("etcd_prefix") or _PREFIX,
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        params.get_as_seconds("timeout", 600.0),
        params.get_as_seconds("last_call_timeout", 30.0),
        params.local_addr or default_address(host_of(params.endpoint)),
    )
    rendezvous.backend.run.probe()
    return EtcdRendezvousHandler(rendezvous, backend=params.backend)
