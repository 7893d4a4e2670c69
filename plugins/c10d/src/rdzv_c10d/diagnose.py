"""What ``rdzv doctor`` is told about ``c10d``: where its store is, who hosts it, what is in it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from rdzv.api import RendezvousParameters
from rdzv.diagnosis import Diagnosis, Finding, Target
from rdzv.endpoint import matches_machine, parse_rendezvous_endpoint
from rdzv.errors import RendezvousConnectionError

if TYPE_CHECKING:
    from rdzv.dynamic_rendezvous.backend import RendezvousBackend

    from .backend import C10dRendezvousBackend

__all__ = ["DEFAULT_PORT", "diagnose"]

DEFAULT_PORT = 29400
"""As in backend.py, which imports torch."""

_LIMIT = 5.0
"""Seconds that a connection to a store that is there may take, and an operation on it."""

_SLOW = 0.5
"""Seconds from which on looking up the name of who connects is slow: one waits for the other."""

_RUN = re.compile(r"rdzv/(.+)/(?:document|state)/[0-9]+")


def diagnose(params: RendezvousParameters) -> Diagnosis:
    """How the doctor is to look at a rendezvous on a TCPStore or a FileStore.

    Raises:
        ValueError: The endpoint is malformed.
    """
    if str(params.get("store_type", "tcp")).strip().lower() == "file":
        return Diagnosis(scratch=partial(_beside, params), clean=_remove_file)
    host, port = parse_rendezvous_endpoint(params.endpoint, DEFAULT_PORT)
    if port == 0:
        raise ValueError(
            f"The endpoint {params.endpoint!r} has port 0, which lets the host choose one; no "
            "other node can know it. Give the port."
        )
    chosen = params.get_as_bool("is_host")
    hosts = matches_machine(host) if chosen is None else chosen
    return Diagnosis(
        (Target(host, port),),
        scratch=partial(_joining, params),
        hosting=partial(_with, params, is_host=True) if hosts else None,
        absent=partial(_absent, host, port, hosts=hosts),
        explain=partial(_explain, f"{host}:{port}"),
        examine=partial(_examine, params.run_id, hosts=hosts),
        clean=_remove_keys,
    )


def _with(params: RendezvousParameters, run_id: str, **settings: Any) -> RendezvousParameters:
    return RendezvousParameters(
        params.backend,
        params.endpoint,
        run_id,
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        **{**params.config, **settings},
    )


def _joining(params: RendezvousParameters, run_id: str) -> RendezvousParameters:
    # Never the host: nodes of a real run would come, and lose it with the doctor.
    limit = min(params.get_as_seconds("read_timeout", 60.0), _LIMIT)
    return _with(params, run_id, is_host=False, read_timeout=limit)


def _beside(params: RendezvousParameters, run_id: str) -> RendezvousParameters:
    """A file of its own in the same folder: a FileStore reads all of its file."""
    made = _with(params, run_id)
    if params.endpoint:
        made.endpoint = f"{params.endpoint}.{run_id}"
    return made


def _remove_file(backend: RendezvousBackend) -> None:
    os.unlink(_ours(backend).store.path)


def _remove_keys(backend: RendezvousBackend) -> None:
    ours = _ours(backend)
    root = f"rdzv/{ours.run_id}/"
    for key in _keys(ours.store):
        if key.startswith(root):
            ours.store.delete_key(key)


def _ours(backend: RendezvousBackend) -> C10dRendezvousBackend:
    return cast("C10dRendezvousBackend", backend)


def _keys(store: Any) -> list[str]:
    if not hasattr(store, "list_keys"):
        raise RuntimeError("this torch cannot list the keys of a store")
    keys: list[str] = store.list_keys()
    return keys


def _absent(host: str, port: int, *, hosts: bool) -> Iterator[Finding]:
    nobody = f"No agent of this run hosts the store (yet): nothing listens at {host}:{port}."
    if not hosts:
        yield Finding(
            "c10d.no-host",
            "warning",
            f"{nobody} The store lives in the agent of that node.",
            "Start the agent there (torchrun), or this doctor with --host, and this doctor again. "
            "If it does run there, it listens on another port, or a firewall refuses this one.",
        )
        return
    yield Finding("c10d.no-host", "note", f"{nobody} This node would host it.")
    try:
        # What TCPStore does.
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as exc:
        yield Finding(
            "c10d.cannot-host",
            "error",
            f"This node could not host the store: port {port} cannot be listened on ({exc}).",
            "Choose another port in the endpoint, 1024 or above, or end what holds it (ss -ltnp).",
        )
        return
    yield Finding("c10d.can-host", "ok", f"This node can host the store: port {port} is free.")


def _explain(where: str, exc: Exception) -> Finding | None:
    if not isinstance(exc, RendezvousConnectionError | TimeoutError):
        return None
    return Finding(
        "c10d.no-store",
        "error",
        f"What listens at {where} does not answer as a store does: {exc}",
        "See what it is (ss -ltnp there). Choose another port in the endpoint, or end it; an agent "
        "that is frozen does not answer either.",
    )


def _examine(run_id: str, backend: RendezvousBackend, *, hosts: bool) -> Iterator[Finding]:
    store = _ours(backend).store
    yield Finding(
        "c10d.store",
        "ok",
        f"A TCPStore answers at {store.host}:{store.port} "
        f"({'libuv' if store.libuvBackend else 'without libuv'}).",
    )
    if hosts and not store.libuvBackend:
        yield Finding(
            "c10d.no-libuv",
            "warning",
            "torch's newer server, on libuv, is switched off on this node, which hosts the store: "
            "the older one is slow with many nodes.",
            "Unset USE_LIBUV in the environment of the agents.",
        )
    with contextlib.suppress(RuntimeError):
        runs = {m[1] for m in map(_RUN.match, _keys(store)) if m}
        others = sorted(run for run in runs - {run_id} if not run.startswith("rdzv-doctor"))
        if others:
            shown = ", ".join(repr(run) for run in others[:5])
            yield Finding(
                "c10d.other-runs",
                "note",
                f"The store holds {'runs' if len(others) > 1 else 'the run'} {shown}. A job of "
                "another id needs a port of its own: with this one's agent it would end.",
            )
    if hosts:
        yield from _reverse_lookup(store)


def _reverse_lookup(store: Any) -> Iterator[Finding]:
    began = time.monotonic()
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(store.host, store.port, type=socket.SOCK_STREAM)
        socket.getnameinfo(found[0][4], 0)
    took = time.monotonic() - began
    if took > _SLOW:
        yield Finding(
            "c10d.slow-lookup",
            "warning",
            f"Finding the name of an address took {took:.1f} s here. TCPStore does that for every "
            "connection that it accepts, one after the other.",
            "Put the nodes' addresses and names into /etc/hosts of this node, which hosts the "
            "store, or repair the name service's reverse lookups.",
        )
