"""Where a backend under test is: what its author tells the kit."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from _pytest.outcomes import Skipped

from rdzv.api import RendezvousParameters
from rdzv.endpoint import parse_rendezvous_endpoint
from rdzv.plugins import load
from rdzv.registry import check_parameters
from rdzv.specs import BackendSpec
from rdzv.testing.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch.distributed import Store

    from rdzv.dynamic_rendezvous import RendezvousBackend

__all__ = ["Deployment", "Faults", "NotCheckedError", "NotOfferedError"]


class NotCheckedError(Skipped):
    """A promise cannot be checked, since the deployment lacks what it takes. No success."""


class NotOfferedError(Skipped):
    """A promise is not this backend's: it goes with something that it does not have."""


@dataclass(frozen=True)
class Deployment:
    """A backend under test, and the server that its clients share.

    Every client is made by ``create`` of the backend's spec, as in a process of
    its own. All fields but the first are optional; a promise that needs one that
    is not there is reported as not checked.

    Attributes:
        backend: The name of an installed backend, or its spec.
        endpoint: What ``RendezvousParameters.endpoint`` is to be.
        settings: What its other settings are to be.
        title: What the report calls it; by default the backend's name.
        read_raw: Takes a run id; returns what the store holds of the run's state
            or of its document, whichever is there, in whatever form, or ``None``
            where there is nothing. Not through the backend.
        write_raw: Takes a run id and bytes, and puts them wherever the backend
            keeps the run's state and its document (both, where these are two
            places), as somebody else's program might.
        take_ticket: Takes a run id and an epoch; takes the next ticket of the
            roster without writing its record, as a node that dies half way, and
            returns it. Only for a backend where these are two writes.
        leftovers: Takes a run id; returns the names of all that the store holds
            of the run and that does not expire by itself.
        atomic_enter: Whether a ticket and its record are one write, so that there
            are no tickets without a record.
        faults: An object with any of the methods of :class:`rdzv.testing.proxy.Proxy`
            that make trouble, and that do it to the server. Those that it does not have
            are the proxy's, where the endpoint has a host and a port.
        other_processes: Whether another process can make a client with the same
            parameters. By default where the backend is given by its name.
        limit: Seconds after which what has to happen will not happen.
        interval: ``keep_alive_interval`` of the nodes whose end has to be noticed.
    """

    backend: str | BackendSpec
    endpoint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    read_raw: Callable[[str], bytes | None] | None = None
    write_raw: Callable[[str, bytes], None] | None = None
    take_ticket: Callable[[str, str], int] | None = None
    leftovers: Callable[[str], Collection[str]] | None = None
    atomic_enter: bool = False
    faults: object = None
    other_processes: bool | None = None
    limit: float = 30.0
    interval: float = 0.2

    @property
    def spec(self) -> BackendSpec:
        """What the backend says of itself.

        Raises:
            PluginError: It is not installed, or its plugin is broken.
            TypeError: The name is that of a handler, which has no backend.
        """
        if isinstance(self.backend, BackendSpec):
            return self.backend
        spec = load(self.backend)
        if not isinstance(spec, BackendSpec):
            raise TypeError(
                f"'{self.backend}' is a whole handler, not a backend: it has its own protocol, "
                "and this kit has nothing to check it by."
            )
        return spec

    @property
    def name(self) -> str:
        """What the report calls it."""
        named = self.backend if isinstance(self.backend, str) else self.backend.name
        return self.title or named

    def parameters(
        self, run_id: str, min_nodes: int = 1, max_nodes: int = 1, **settings: Any
    ) -> RendezvousParameters:
        """The parameters of one node; ``settings`` override those of the deployment.

        Raises:
            ValueError: A setting is wrong.
        """
        given = {"local_addr": "127.0.0.1", **self.settings, **settings}
        params = RendezvousParameters(
            self.spec.name, self.endpoint, run_id, min_nodes, max_nodes, **given
        )
        check_parameters(self.spec, params)
        return params

    def connect(self, run_id: str, **settings: Any) -> tuple[RendezvousBackend, Store]:
        """Make a client of its own, as another process would."""
        return self.create(self.parameters(run_id, **settings))

    def create(self, params: RendezvousParameters) -> tuple[RendezvousBackend, Store]:
        """Call ``create`` of the backend's spec.

        Raises:
            TypeError: It returns something else than a backend and a store.
        """
        made: object = self.spec.create(params)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(
                f"create of '{self.spec.name}' must return (backend, store); it returned a "
                f"{type(made).__name__}."
            )
        return made

    def out_of_band(self, name: str) -> Callable[..., Any]:
        """One of the optional functions.

        Raises:
            NotCheckedError: The deployment does not have it.
        """
        function: Callable[..., Any] | None = getattr(self, name)
        if function is None:
            raise NotCheckedError(f"No out-of-band access: the deployment has no {name!r}.")
        return function

    @property
    def server(self) -> tuple[str, int] | None:
        """Host and port of the one server that the endpoint names, if it does."""
        authority = re.split(r"[/?#]", self.endpoint.rpartition("://")[2].rpartition("@")[2])[0]
        if not authority or "," in authority:
            return None
        try:
            host, port = parse_rendezvous_endpoint(authority, 0)
        except ValueError:
            return None
        return (host, port) if port else None

    @contextlib.contextmanager
    def trouble(self) -> Iterator[tuple[Deployment, Faults]]:
        """The same deployment with a server that trouble can be made for, until the block ends."""
        server = self.server
        if server is None:
            yield self, Faults(self.faults, None)
            return
        with Proxy(*server) as proxy:
            host, port = server
            # The port after the host, not one that a password happens to end with.
            start = self.endpoint.rindex(f":{port}")
            before = self.endpoint[:start]
            host = f"[{host}]" if before.endswith(f"[{host}]") else host
            endpoint = f"{before.removesuffix(host)}127.0.0.1:{proxy.port}"
            endpoint += self.endpoint[start + len(f":{port}") :]
            yield dataclasses.replace(self, endpoint=endpoint), Faults(self.faults, proxy)


class Faults:
    """The trouble that can be made for one deployment: its own, else that of a proxy."""

    def __init__(self, own: object, proxy: Proxy | None) -> None:
        self._own = own
        self._proxy = proxy

    def make(self, name: str, *arguments: object) -> None:
        """Call the method of this name.

        Raises:
            NotCheckedError: Nobody has it.
        """
        self._find(name)(*arguments)

    @property
    def connections(self) -> int:
        """How many connections are open.

        Raises:
            NotCheckedError: Nobody knows.
        """
        count: int = self._find("connections")
        return count

    def _find(self, name: str) -> Any:
        for one in (self._own, self._proxy):
            if hasattr(one, name):
                return getattr(one, name)
        raise NotCheckedError(
            f"The deployment's faults have no {name!r}, and the endpoint names no server with a "
            "host and a port that a proxy could stand before."
        )

    @contextlib.contextmanager
    def during(self, begin: str, end: str, *arguments: object) -> Iterator[None]:
        """Make trouble for the length of a block."""
        self.make(begin, *arguments)
        try:
            yield
        finally:
            self.make(end, *((0.0,) if begin == end else ()))
