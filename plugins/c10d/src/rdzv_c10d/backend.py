"""The c10d backend: rendezvous on a TCPStore or a FileStore."""

from __future__ import annotations

import binascii
import logging
import os
import socket
import tempfile
import threading
import time
from base64 import b64decode, b64encode
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from torch.distributed import FileStore, TCPStore

from rdzv.dynamic_rendezvous.backend import Session, SessionBackend, Token
from rdzv.endpoint import matches_machine, parse_rendezvous_endpoint
from rdzv.errors import (
    RendezvousConnectionError,
    RendezvousStateError,
    StoreGoneError,
    torch_compatible,
)

from .session import Chain, Keys, StoreSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import Store

    from rdzv.api import RendezvousParameters

__all__ = ["DEFAULT_PORT", "C10dRendezvousBackend", "create_backend"]

log = logging.getLogger(__name__)

DEFAULT_PORT = 29400
"""The port of an endpoint that names none, as in torch."""

_CONNECT = 30.0
"""Seconds that one attempt to open a connection may take: the server looks up the name of each
that connects, in its only thread."""

_AT_START = 2
"""Sessions that every node opens; a further one may be opened because a connection broke."""

_PATIENT = 2.0
"""Seconds after which to ask whether there is still anything to connect to: TCPStore tries on."""

_REACH = 5.0
"""Seconds within which a store that is there accepts a connection."""

T = TypeVar("T")


class C10dRendezvousBackend(SessionBackend):
    """Keeps a run on a ``torch.distributed.Store``.

    On a TCPStore every session has a connection of its own, and changes are
    pushed. On a FileStore, which cannot push, changes are looked for; any other
    store is shared by all sessions and looked at.

    Args:
        store: The store.
        run_id: The run.
        is_host: Whether this process hosts the store.

    Raises:
        ValueError: The run id is empty.
    """

    def __init__(self, store: Store, run_id: str, *, is_host: bool = False) -> None:
        if not run_id:
            raise ValueError("The run id must be a non-empty string.")
        self._store: Any = store  # torch's stubs do not know all of its attributes.
        self._run_id = run_id
        self._is_host = is_host
        self._what = _describe(store)
        keys = Keys(store, self._what, pushes=False)
        self._chain = Chain(keys, f"rdzv/{run_id}/state")
        self._opened = 0

    @property
    def name(self) -> str:
        return "c10d"

    @property
    def store(self) -> Any:
        """The store."""
        return self._store

    @property
    def run_id(self) -> str:
        """The run."""
        return self._run_id

    @property
    def is_host(self) -> bool:
        return self._is_host

    def get_state(self) -> tuple[bytes, Token] | None:
        found = self._chain.newest()
        return None if found is None else (self._decoded(found[0]), found[1])

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        if token is not None and (not isinstance(token, int) or token < 1):
            # A token of somebody else's: it names no version here.
            found = self.get_state()
            return None if found is None else (*found, False)
        swapped = self._chain.swap(b64encode(state).decode(), token)
        if swapped is None:
            return None
        won, value, version = swapped
        if not won:
            # A token that is older still has lost to a state that is not stored any more.
            value, version = self._chain.newest() or (value, version)
        return self._decoded(value), version, won

    def _decoded(self, value: str) -> bytes:
        try:
            return b64decode(value, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise torch_compatible(RendezvousStateError)(
                f"The state of the run in {self._what} is damaged ({exc}). Use another run id."
            ) from exc

    def open_session(self) -> Session:
        store = self._store
        if isinstance(store, TCPStore):
            if self._opened >= _AT_START:
                _check_port(store.host, store.port)
            self._opened += 1
            connection = _bounded(
                lambda: _connect(store.host, store.port, _CONNECT),
                _CONNECT + 1,
                self._what,
                lambda: _check_port(store.host, store.port),
            )
            return StoreSession(connection, self._run_id, self._what, pushes=True)
        if isinstance(store, FileStore):
            store = FileStore(_path(store), -1)
        return StoreSession(store, self._run_id, self._what, pushes=False)


def _describe(store: Any) -> str:
    if isinstance(store, TCPStore):
        return f"the TCPStore at {store.host}:{store.port}"
    if isinstance(store, FileStore):
        return f"the FileStore {_path(store)!r}"
    return f"the store {type(store).__name__}"


def _path(store: Any) -> str:
    path: str = store.path
    return path


def _connect(host: str, port: int, seconds: float) -> TCPStore:
    return TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds)
    )


def _check_port(host: str, port: int) -> None:
    """Tell a store whose process has ended from one that is merely out of reach."""
    try:
        socket.create_connection((host, port), timeout=_REACH).close()
    except ConnectionRefusedError as exc:
        raise torch_compatible(StoreGoneError)(
            f"The store at {host}:{port} is gone: nothing listens there any more. The process that "
            "hosted it has ended, and the state of the run with it. Start the job again."
        ) from exc
    except OSError as exc:
        raise torch_compatible(RendezvousConnectionError)(
            f"The store at {host}:{port} cannot be reached: {exc}"
        ) from exc


def _bounded(
    operation: Callable[[], T],
    seconds: float,
    what: str,
    check: Callable[[], None] = lambda: None,
) -> T:
    """Run what may hang on a frozen server, and leave it behind where it does.

    Raises:
        RendezvousConnectionError: It failed, or took longer than ``seconds``, or
            ``check`` said so meanwhile.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(operation())
        except BaseException as exc:  # noqa: BLE001 - handed to the caller below.
            failed.append(exc)

    thread = threading.Thread(target=run, name="rdzv-connect", daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(min(_PATIENT, max(0.0, deadline - time.monotonic())))
        if thread.is_alive():
            check()
    if done:
        return done[0]
    reason = f"no answer within {seconds:.3g} s"
    if failed:
        reason = (str(failed[0]).strip() or type(failed[0]).__name__).splitlines()[0]
    raise torch_compatible(RendezvousConnectionError)(f"Cannot connect to {what}: {reason}") from (
        failed[0] if failed else None
    )


def create_backend(params: RendezvousParameters) -> tuple[C10dRendezvousBackend, Store]:
    """Make the backend and the store of a run from its parameters.

    Read are ``store_type`` (``tcp``, the default, or ``file``), ``read_timeout``
    (seconds for connecting and for each operation, 60 by default) and
    ``is_host`` (whether this process hosts the TCPStore; by default whether the
    endpoint's host is this machine).

    Raises:
        ValueError: A parameter or the endpoint is malformed.
        RendezvousConnectionError: The store cannot be reached, or not opened here.
    """
    store_type = str(params.get("store_type", "tcp")).strip().lower()
    if store_type == "file":
        store: Store = _create_file_store(params)
        return C10dRendezvousBackend(store, params.run_id), store
    if store_type != "tcp":
        raise ValueError(f"store_type is {store_type!r}; it must be 'tcp' or 'file'.")
    tcp_store, is_host = _create_tcp_store(params)
    return C10dRendezvousBackend(tcp_store, params.run_id, is_host=is_host), tcp_store


def _create_file_store(params: RendezvousParameters) -> FileStore:
    path = params.endpoint
    if not path:
        handle, path = tempfile.mkstemp(prefix="rdzv-")
        os.close(handle)
        log.warning(
            "No endpoint was given: the FileStore is %s, which no other node knows of.", path
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise torch_compatible(RendezvousConnectionError)(
            f"The FileStore {path!r} cannot be opened: there is no folder {folder!r}. The endpoint "
            "of store_type=file is a path on a disk that all nodes share."
        )
    if params.get_as_bool("is_host") is False and not os.path.exists(path):
        raise torch_compatible(RendezvousConnectionError)(
            f"There is no FileStore {path!r}, and this process does not make one (is_host=false)."
        )
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise torch_compatible(RendezvousConnectionError)(
            f"The FileStore {path!r} cannot be opened: it is a folder, or not writable."
        )
    try:
        return FileStore(path, -1)
    except (RuntimeError, ValueError) as exc:
        raise torch_compatible(RendezvousConnectionError)(
            f"The FileStore {path!r} cannot be opened: {exc}"
        ) from exc


def _create_tcp_store(params: RendezvousParameters) -> tuple[TCPStore, bool]:
    host, port = parse_rendezvous_endpoint(params.endpoint, DEFAULT_PORT)
    seconds = params.get_as_seconds("read_timeout", 60.0)
    if seconds <= 0:
        raise ValueError(f"read_timeout is {seconds:g} s; it must be positive.")
    join = params.get_as_seconds("join_timeout", 600.0)
    _resolve(host)
    chosen = params.get_as_bool("is_host")
    hosts = matches_machine(host) if chosen is None else chosen
    taken: RendezvousConnectionError | None = None
    if hosts:
        try:
            return _host(host, port, seconds), True
        except RendezvousConnectionError as exc:
            # Another process of this machine may host it already.
            if chosen is not None or port == 0:
                raise
            taken = exc
            log.warning(
                "Port %d of this machine is taken: this node uses the store that is there. If it "
                "belongs to another job, give this one a port of its own.",
                port,
            )
    if port == 0:
        raise ValueError(
            f"The endpoint {params.endpoint!r} has port 0, which lets the host choose one; a node "
            "that is not the host cannot know it. Give the port."
        )
    try:
        return _join_host(host, port, seconds, min(seconds, join)), False
    except RendezvousConnectionError as exc:
        if taken is None:
            raise
        raise torch_compatible(RendezvousConnectionError)(
            f"Port {port} of this machine is taken by something that does not answer as a store. "
            f"End it, or choose another port in the endpoint. ({exc})"
        ) from taken


def _resolve(host: str) -> None:
    try:
        socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as exc:
        raise torch_compatible(RendezvousConnectionError)(
            f"The host {host!r} of the endpoint cannot be resolved: {exc}. Check its spelling and "
            "the name service of this machine, or give its address."
        ) from exc


def _host(host: str, port: int, seconds: float) -> TCPStore:
    try:
        store = TCPStore(
            host,
            port,
            is_master=True,
            multi_tenant=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )
    except (RuntimeError, ValueError) as exc:
        raise torch_compatible(RendezvousConnectionError)(
            f"This process cannot host the store on port {port}, which is in use or not permitted. "
            f"Choose another port, or end what holds it. ({str(exc).splitlines()[0]})"
        ) from exc
    log.info("This process hosts the store of the run on port %d.", store.port)
    return store


def _join_host(host: str, port: int, timeout: float, patience: float) -> TCPStore:
    """Connect to the store; its host may come later than this node."""
    deadline = time.monotonic() + patience
    pause = 0.05
    while True:
        try:
            # Looked at first: TCPStore's own connecting is deaf to a shorter deadline.
            left = max(0.1, deadline - time.monotonic())
            socket.create_connection((host, port), timeout=left).close()
            break
        except OSError as exc:
            if time.monotonic() + pause >= deadline:
                raise torch_compatible(RendezvousConnectionError)(
                    f"No store answers at {host}:{port} within {patience:g} s: {exc}. Start the "
                    "node that hosts it, check the endpoint and that the port is open from this "
                    "node, give is_host=true on the node that is to host it, or raise read_timeout "
                    "to wait for it longer."
                ) from exc
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
    left = max(1.0, deadline - time.monotonic())
    return _bounded(lambda: _connect(host, port, timeout), left, f"the store at {host}:{port}")
