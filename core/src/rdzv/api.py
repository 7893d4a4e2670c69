"""The public interface of a rendezvous, with the names and meanings that torch documents."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, overload

from rdzv.endpoint import default_address, free_port, names_secret, redact, redact_endpoint
from rdzv.errors import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousStateError,
    RendezvousTimeoutError,
    torch_compatible,
)

if TYPE_CHECKING:
    from torch.distributed import Store

__all__ = [
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousHandlerCreator",
    "RendezvousHandlerRegistry",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeoutError",
    "rendezvous_handler_registry",
]

_TRUE = frozenset({"1", "true", "t", "yes", "y"})
_FALSE = frozenset({"0", "false", "f", "no", "n"})

_LONGEST = 1e9
"""Seconds, some thirty years: more than this is nothing to wait for, and overflows clocks."""


@dataclass
class RendezvousStoreInfo:
    """Where the workers of a round find the store that they start from.

    Attributes:
        master_addr: The host name or address of rank 0's machine.
        master_port: The TCP port there.
    """

    MASTER_ADDR_KEY: ClassVar[str] = "MASTER_ADDR"
    MASTER_PORT_KEY: ClassVar[str] = "MASTER_PORT"
    master_addr: str
    master_port: int

    @staticmethod
    def build(
        rank: int,
        store: Store,
        local_addr: str | None,
        server_port: int | None = None,
    ) -> RendezvousStoreInfo:
        """Agree on the address: rank 0 writes it to the store, all others read it.

        Args:
            rank: This node's rank.
            store: A store that the nodes of this round share and no other round
                uses (wrap it in a ``PrefixStore``): the keys are fixed.
            local_addr: The address under which the others reach this node, taken
                as it is; ``None`` to find one out. Only rank 0's counts.
            server_port: The port of a store server that rank 0 runs already;
                without it rank 0 picks a free one.

        Returns:
            The same address on every rank. Ranks other than 0 wait for it as
            long as the store's own timeout allows.

        Raises:
            RendezvousStateError: What stands in the store is no port.
        """
        if rank == 0:
            address = local_addr or default_address()
            port = server_port or free_port()
            # Bytes, as torch passes them: a store written in Python may rely on it.
            store.set(RendezvousStoreInfo.MASTER_ADDR_KEY, address.encode())  # type: ignore[arg-type]
            store.set(RendezvousStoreInfo.MASTER_PORT_KEY, str(port).encode())  # type: ignore[arg-type]

        address_bytes = store.get(RendezvousStoreInfo.MASTER_ADDR_KEY)
        port_bytes = store.get(RendezvousStoreInfo.MASTER_PORT_KEY)
        try:
            return RendezvousStoreInfo(address_bytes.decode(), int(port_bytes))
        except ValueError as error:
            raise torch_compatible(RendezvousStateError)(
                f"The store's keys {RendezvousStoreInfo.MASTER_ADDR_KEY} and "
                f"{RendezvousStoreInfo.MASTER_PORT_KEY} hold {address_bytes[:80]!r} and "
                f"{port_bytes[:80]!r}, not an address and a port. Does something else write to "
                "this store?"
            ) from error


class RendezvousInfo:
    """What ``next_rendezvous`` returns: this node's place in the round.

    Args:
        store: The store that the agents of the round share.
        rank: This node's rank, from 0.
        world_size: The number of nodes in the round.
        bootstrap_store_info: Where the workers find their store.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        bootstrap_store_info: RendezvousStoreInfo,
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._bootstrap_store_info = bootstrap_store_info

    @property
    def store(self) -> Store:
        """The store that the agents of the round share."""
        return self._store

    @property
    def rank(self) -> int:
        """This node's rank, from 0."""
        return self._rank

    @property
    def world_size(self) -> int:
        """The number of nodes in the round."""
        return self._world_size

    @property
    def bootstrap_store_info(self) -> RendezvousStoreInfo | None:
        """Where the workers find their store."""
        return self._bootstrap_store_info

    def __repr__(self) -> str:
        return (
            f"RendezvousInfo(rank={self._rank}, world_size={self._world_size}, "
            f"bootstrap_store_info={self._bootstrap_store_info!r})"
        )


class RendezvousHandler(ABC):
    """One node's way into the rounds of a run."""

    @abstractmethod
    def get_backend(self) -> str:
        """Return the name of the backend."""

    @property
    def use_agent_store(self) -> bool:
        """Whether the workers may use the store server named in the round's bootstrap address.

        Where it is true, that server runs already and lives as long as the
        round; where it is false, the workers' rank 0 starts one at that address.
        """
        return False

    @abstractmethod
    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until it is complete.

        Returns:
            This node's rank, the world size and the stores of the round.

        Raises:
            RendezvousClosedError: The run is closed.
            RendezvousGracefulExitError: The run ended while this node was a spare.
            RendezvousTimeoutError: The round did not complete in time.
            RendezvousConnectionError: The backend cannot be reached.
            RendezvousStateError: What the backend holds is no state of this run.
        """

    @abstractmethod
    def is_closed(self) -> bool:
        """Tell whether the run is known to be closed.

        Others learn of a close a moment later, so this is no means of
        synchronisation; once true it stays true.
        """

    @abstractmethod
    def set_closed(self) -> None:
        """Close the run: no further round will be formed."""

    @abstractmethod
    def num_nodes_waiting(self) -> int:
        """Return a number above zero where this node should join another round.

        It is the number of nodes that wait to be admitted, or at least 1 where
        there is another reason for a new round.
        """

    @abstractmethod
    def get_run_id(self) -> str:
        """Return the id of the run."""

    @abstractmethod
    def shutdown(self) -> bool:
        """Leave, and release everything that was opened for the rendezvous.

        Returns:
            Whether the backend has learnt of it.
        """


class RendezvousParameters:
    """What a handler is made from.

    Args:
        backend: The name of the backend.
        endpoint: Where the backend is, ``host:port`` for most; may be empty.
        run_id: The id of the run; all nodes of a job give the same.
        min_nodes: The least number of nodes in a round, at least 1.
        max_nodes: The greatest number of nodes in a round.
        local_addr: The address under which the others reach this node; ``None``
            to find one out.
        **kwargs: The backend's own settings.

    Attributes:
        config (dict[str, Any]): The backend's own settings.

    Raises:
        ValueError: A value is of the wrong type or out of range.
    """

    def __init__(
        self,
        backend: str,
        endpoint: str,
        run_id: str,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backend, str) or not backend:
            raise ValueError(
                f"The rendezvous backend must be given as a non-empty name, not as {backend!r}."
            )
        for name, text in (("endpoint", endpoint), ("local_addr", local_addr)):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"'{name}' must be a string, not {text!r}.")
        if not isinstance(run_id, str):
            raise ValueError(
                f"The run id must be a string, not {run_id!r}; give one that all nodes know."
            )
        least = _as_count("min_nodes", min_nodes)
        most = _as_count("max_nodes", max_nodes)
        if most < least:
            raise ValueError(
                f"The maximum number of nodes ({most}) is below the minimum ({least}); with "
                f"torchrun write --nnodes={most}:{least}, minimum first."
            )

        self.backend = backend
        self.endpoint = endpoint or ""
        self.run_id = run_id
        self.min_nodes = least
        self.max_nodes = most
        self.config: dict[str, Any] = kwargs
        self.local_addr = local_addr

    def get(self, key: str, default: Any = None) -> Any:
        """Return the setting ``key`` as it was given, or ``default``."""
        return self.config.get(key, default)

    def get_as_bool(self, key: str, default: bool | None = None) -> bool | None:
        """Return the setting ``key`` as a ``bool``, or ``default``.

        Accepted are booleans, 0 and 1, and in any case ``true``, ``t``, ``yes``,
        ``y``, ``1`` and ``false``, ``f``, ``no``, ``n``, ``0``.

        Raises:
            ValueError: The value is none of these.
        """
        value = self.get(key, default)
        if value is None or isinstance(value, bool):
            return value
        text = str(value).strip().lower() if isinstance(value, (int, str)) else ""
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise self._refuse(key, value, "a truth value; write true or false")

    def get_as_int(self, key: str, default: int | None = None) -> int | None:
        """Return the setting ``key`` as an ``int``, or ``default``.

        Raises:
            ValueError: The value is no whole number.
        """
        value = self.get(key, default)
        if value is None:
            return None
        try:
            if isinstance(value, str):
                return int(value)
            if not isinstance(value, bool) and int(value) == value:
                return int(value)
        except (TypeError, ValueError, OverflowError):
            pass
        raise self._refuse(key, value, "a whole number, such as 3")

    @overload
    def get_as_float(self, key: str, default: float) -> float: ...

    @overload
    def get_as_float(self, key: str, default: None = None) -> float | None: ...

    def get_as_float(self, key: str, default: float | None = None) -> float | None:
        """Return the setting ``key`` as a ``float``; ``default`` where it is absent or ``None``.

        Raises:
            ValueError: The value is no finite number.
        """
        value = self.get(key)
        if value is None:
            return default
        number = _as_finite(value)
        if number is None:
            raise self._refuse(key, value, "a number, such as 0.5")
        return number

    @overload
    def get_as_seconds(self, key: str, default: float) -> float: ...

    @overload
    def get_as_seconds(self, key: str, default: None = None) -> float | None: ...

    def get_as_seconds(self, key: str, default: float | None = None) -> float | None:
        """Return the setting ``key`` as a time in seconds.

        Accepted are numbers, fractions included, texts of numbers without a unit,
        and ``timedelta``.

        Returns:
            Seconds, zero or more; ``default`` where the setting is absent or
            ``None``.

        Raises:
            ValueError: The value is no time, a negative one, or above 1e9.
        """
        value = self.get(key)
        if value is None:
            return default
        number = value.total_seconds() if isinstance(value, timedelta) else _as_finite(value)
        if number is None or not 0 <= number <= _LONGEST:
            raise self._refuse(
                key,
                value,
                "a time in seconds; write a number without a unit, zero or more, such as 30 or "
                "0.5, and 1e9 at most",
            )
        return number

    def __repr__(self) -> str:
        shown = {
            "backend": self.backend,
            "endpoint": redact_endpoint(self.endpoint),
            "run_id": self.run_id,
            "min_nodes": self.min_nodes,
            "max_nodes": self.max_nodes,
            "local_addr": self.local_addr,
        }
        fields = [f"{name}={_show(name, value)}" for name, value in shown.items()]
        fields += [f"{name}={_show(name, value)}" for name, value in self.config.items()]
        return f"RendezvousParameters({', '.join(fields)})"

    def _refuse(self, key: str, value: Any, wanted: str) -> ValueError:
        return ValueError(
            f"The rendezvous setting '{key}' of the backend '{self.backend}' is "
            f"{_show(key, value)}; it must be {wanted}."
        )


RendezvousHandlerCreator = Callable[[RendezvousParameters], RendezvousHandler]


class RendezvousHandlerRegistry:
    """Backends that were registered by hand, by name."""

    def __init__(self) -> None:
        self._registry: dict[str, RendezvousHandlerCreator] = {}

    def register(self, backend: str, creator: RendezvousHandlerCreator) -> None:
        """Register a backend.

        Args:
            backend: The name to choose it by.
            creator: Makes a handler from ``RendezvousParameters``.

        Raises:
            ValueError: The name is empty, or registered with another creator.
        """
        if not backend:
            raise ValueError("The name of a rendezvous backend must not be empty.")
        current = self._registry.setdefault(backend, creator)
        if current != creator:
            raise ValueError(
                f"The rendezvous backend '{backend}' is registered with {current!r} already and "
                f"cannot be registered with {creator!r} as well; choose another name."
            )

    def create_handler(self, params: RendezvousParameters) -> RendezvousHandler:
        """Make the handler of the backend that ``params`` names.

        Raises:
            ValueError: No such backend is registered, or it refuses a setting.
            RuntimeError: The handler calls itself by another name.
        """
        handler = self._create(params)
        if handler.get_backend() != params.backend:
            raise RuntimeError(
                f"The handler made for the rendezvous backend '{params.backend}' calls itself "
                f"'{handler.get_backend()}'; its get_backend() must return the name asked for."
            )
        return handler

    def _create(self, params: RendezvousParameters) -> RendezvousHandler:
        creator = self._registry.get(params.backend)
        if creator is None:
            known = ", ".join(sorted(self._registry)) or "none"
            raise ValueError(
                f"The rendezvous backend '{params.backend}' is not registered (registered: "
                f"{known}). Call register() for it first."
            )
        return creator(params)


class _DefaultRegistry(RendezvousHandlerRegistry):
    """The process's own registry, of what was registered by hand and then the plugins."""

    def _create(self, params: RendezvousParameters) -> RendezvousHandler:
        if params.backend in self._registry:
            return super()._create(params)
        # Imported here: a program that registers its own backend needs no plugins.
        from rdzv.registry import create_from_plugin

        return create_from_plugin(params)


rendezvous_handler_registry: RendezvousHandlerRegistry = _DefaultRegistry()
"""The registry of this process, which also finds the backends of installed plugins."""


def _as_count(name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"'{name}' must be a whole number of at least 1, not {value!r}.")
    return count


def _as_finite(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _show(key: str, value: Any) -> str:
    if value is not None and names_secret(key):
        return "'***'"
    return redact(repr(value))
