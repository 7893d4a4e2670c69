"""The checks of ``rdzv doctor``, in order: what makes later ones pointless comes first."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from rdzv import plugins
from rdzv.api import RendezvousParameters
from rdzv.diagnosis import Diagnosis, Finding, Target
from rdzv.dynamic_rendezvous.backend import RendezvousBackend, SessionBackend
from rdzv.dynamic_rendezvous.settings import RendezvousSettings, RendezvousTimeout, check
from rdzv.endpoint import default_address, host_of, names_secret, parse_rendezvous_endpoint, redact
from rdzv.errors import PluginError
from rdzv.registry import check_parameters
from rdzv.specs import BackendSpec, HandlerSpec
from rdzv.torchrun import torchrun_name

from .bounded import LateError, reason, within
from .names import Lookup, check_hosts, check_own_name, look_up
from .node import Listener, check_address
from .peer import Peers, peer_run
from .ports import Attempt, check_ports, try_ports
from .scratch import OperationError, Operations, latencies
from .tls import check_tls

__all__ = ["Checked", "Examination", "examine"]

_IMPORTING = 120.0
"""Seconds that importing torch may take; from a network disk it can be many."""

_PAUSE = 0.2
"""Seconds between two looks whether the other doctor hosts the store by now."""

_SECRET = 4
"""The shortest value that is hidden wherever it stands: shorter ones stand in other words."""

_SCRATCH = "rdzv-doctor"


@dataclass(frozen=True)
class Examination:
    """What is to be examined.

    Attributes:
        backend: The name of the backend, the one that torchrun has for it included.
        endpoint: Where it is; as for a job.
        settings: The settings of a job.
        run_id: The run; nothing of it is touched. Peers find each other by it.
        local_addr: The address that the user gives for this node.
        limit: Seconds that one step may take.
        tries: How often each operation is timed.
        host: Whether this node may host the store for the time of the examination.
        peer: Whether to look for the doctors of other nodes.
        wait: Seconds to wait for one of them.
        port: The port at which this node is to be reached, 0 for a free one.
    """

    backend: str
    endpoint: str
    settings: dict[str, Any] = field(default_factory=dict)
    run_id: str = _SCRATCH
    local_addr: str | None = None
    limit: float = 5.0
    tries: int = 50
    host: bool = False
    peer: bool = False
    wait: float = 60.0
    port: int = 0

    def parameters(self, backend: str) -> RendezvousParameters:
        """Those of a job of two nodes.

        Args:
            backend: The backend's own name, which torchrun may have another one for.

        Raises:
            ValueError: One is malformed.
        """
        return RendezvousParameters(
            backend, self.endpoint, self.run_id, 2, 2, self.local_addr, **self.settings
        )


@dataclass(frozen=True)
class Checked:
    """A finding and the check that it belongs to, such as ``"names"``."""

    check: str
    finding: Finding


def examine(examination: Examination) -> Iterator[Checked]:
    """Do all checks. Whatever goes wrong is a finding; secrets are hidden in each."""
    with contextlib.closing(_Doctor(examination)) as doctor:
        for check_, finding in doctor.checks():
            seen, remedy = doctor.hidden(finding.seen), doctor.hidden(finding.remedy)
            yield Checked(check_, replace(finding, seen=seen, remedy=remedy))


_Found = Iterator[tuple[str, Finding]]


class _Doctor:
    def __init__(self, examination: Examination) -> None:
        self._what = examination
        self._limit = examination.limit
        self._diagnosis = Diagnosis()
        self._spec: BackendSpec | HandlerSpec | None = None
        self._params: RendezvousParameters | None = None
        self._lookups: Sequence[Lookup] = ()
        self._attempts: Sequence[Attempt] = ()
        self._ending = contextlib.ExitStack()
        self._is_host = False
        self._obstacle = ""
        """Why the backend cannot be used, once that is known."""

    def close(self) -> None:
        self._ending.close()

    def hidden(self, text: str) -> str:
        """A text without what is secret by its form, and without the values of secret settings."""
        declared = self._spec.parameters if self._spec else ()
        secret = {name for one in declared if one.secret for name in (one.name, *one.aliases)}
        for name, value in self._what.settings.items():
            if len(str(value)) >= _SECRET and (name in secret or names_secret(name)):
                text = text.replace(str(value), "***")
        return redact(text)

    def checks(self) -> _Found:
        yield from (("backend", finding) for finding in self._backend())
        if self._params is not None:
            yield from (("names", finding) for finding in self._names())
            yield from (("ports", finding) for finding in self._ports())
            yield from (("tls", finding) for finding in self._tls())
            yield from self._operations()
            # Of what follows nothing but the peers depends on the backend.
            yield from self._node()

    # ------------------------------------------------------------ the plugin and its settings

    def _backend(self) -> Iterator[Finding]:
        found = plugins.installed()
        name = next(
            (one.name for one in found if torchrun_name(one.name) == self._what.backend),
            self._what.backend,
        )
        try:
            spec = plugins.load(name)
        except PluginError as exc:
            self._obstacle = "there is no such backend"
            yield Finding(
                "backend.unavailable",
                "error",
                str(exc),
                "`rdzv backends` lists what is installed here, and what is wrong with it.",
            )
            return
        try:
            params = self._what.parameters(name)
            check_parameters(spec, params)
            if isinstance(spec, BackendSpec):
                _check_engine(params)
            told = self._diagnosed(spec, params)
        except ValueError as exc:
            self._spec = spec  # It says which settings are secret.
            self._obstacle = "the settings or the endpoint are wrong"
            yield self._wrong_settings(exc)
            return
        self._spec, self._params = spec, params
        offered = next((one for one in found if one.name == name), None)
        yield Finding("backend.loaded", "ok", f"{name} of {offered or 'its plugin'} loads.")
        yield Finding("settings.valid", "ok", "The endpoint and the settings are well-formed.")
        if told is not None:
            yield told

    def _diagnosed(
        self, spec: BackendSpec | HandlerSpec, params: RendezvousParameters
    ) -> Finding | None:
        """Ask the plugin; what there is to say where it tells nothing."""
        self._diagnosis = Diagnosis(_targets(params.endpoint))
        if isinstance(spec, HandlerSpec):
            return None
        unseen = "TLS, and the server's version and settings, are not looked at"
        if spec.diagnose is None:
            text = f"Its plugin tells the doctor nothing about it: {unseen}."
            return Finding("backend.tells-nothing", "note", text)
        try:
            self._diagnosis = spec.diagnose(params)
        except ValueError:
            raise
        except Exception as exc:  # noqa: BLE001 - a plugin may raise anything
            return Finding(
                "backend.undiagnosed",
                "warning",
                f"Its plugin failed to tell about it ({type(exc).__name__}: {reason(exc)}): "
                f"{unseen}.",
                "Install what the plugin needs, or another version of it, or tell its authors.",
            )
        return None

    def _wrong_settings(self, exc: ValueError) -> Finding:
        return Finding(
            "settings.wrong",
            "error",
            str(exc),
            f"Correct --conf or --endpoint; `rdzv backends {self._what.backend}` lists all "
            "settings.",
        )

    # ------------------------------------------------------------ the way to the server

    def _names(self) -> Iterator[Finding]:
        hosts = list(dict.fromkeys(target.host for target in self._diagnosis.targets))
        self._lookups = look_up(hosts, self._limit)
        yield from check_hosts(self._lookups)
        if hosts and not any(lookup.addresses for lookup in self._lookups):
            self._obstacle = "no host of the endpoint has an address"

    def _ports(self) -> Iterator[Finding]:
        targets = self._diagnosis.targets
        if not targets:
            yield Finding("port.none", "note", "The endpoint names no port: nothing to connect to.")
            return
        if self._obstacle:
            yield _skipped("port", self._obstacle)
            return
        self._attempts = self._try_ports(targets)
        outcomes = {attempt.outcome for attempt in self._attempts}
        if outcomes == {"refused"} and self._diagnosis.absent is not None:
            findings = list(self._diagnosis.absent())
            self._obstacle = "" if self._hosts() else "there is no store"
            yield from findings
            return
        if outcomes == {"refused"} and isinstance(self._spec, HandlerSpec):
            self._obstacle = "nothing listens there"
            yield Finding(
                "port.nobody-yet",
                "warning",
                "Nothing listens at the endpoint (yet). Where a node of the job does, it has to "
                "be started first.",
                "Start that node, and this doctor again; or see why its server does not run.",
            )
            return
        yield from check_ports(self._attempts, self._limit)
        if "open" not in outcomes:
            self._obstacle = "no server of the endpoint accepts connections"

    def _try_ports(self, targets: Sequence[Target]) -> list[Attempt]:
        until = time.monotonic() + self._what.wait
        pause = threading.Event()
        while True:
            attempts = try_ports(targets, self._lookups, self._limit)
            # The store may be the other doctor's, which comes at the same time.
            waits = self._what.peer and self._diagnosis.absent is not None and not self._hosts()
            refused = {attempt.outcome for attempt in attempts} == {"refused"}
            if not (waits and refused and time.monotonic() < until):
                return attempts
            pause.wait(_PAUSE)

    def _hosts(self) -> bool:
        return self._what.host and self._diagnosis.hosting is not None

    def _tls(self) -> Iterator[Finding]:
        looked: set[Target] = set()
        sound: list[bool] = []
        for attempt in self._attempts:
            if attempt.outcome != "open" or attempt.target in looked:
                continue
            looked.add(attempt.target)
            findings = list(check_tls(attempt.target, attempt.address, self._limit))
            sound.append(not any(finding.level == "error" for finding in findings))
            yield from findings
        if sound and not any(sound):
            self._obstacle = "TLS does not work"

    # ------------------------------------------------------------ the backend at work

    def _operations(self) -> _Found:
        if isinstance(self._spec, HandlerSpec):
            yield (
                "operations",
                Finding(
                    "operation.skipped",
                    "note",
                    f"Not tried: {self._what.backend} is a handler of its own, and does without "
                    "rdzv's backends.",
                ),
            )
            return
        if self._obstacle:
            yield "operations", _skipped("operation", self._obstacle)
            return
        try:
            yield from (("operations", finding) for finding in self._host_store())
            backend, store = self._connected(f"{_SCRATCH}-{uuid.uuid4().hex[:12]}")
        except Exception as exc:  # noqa: BLE001 - whatever a backend raises is a finding
            self._obstacle = "the backend cannot be used"
            yield "operations", self._explained(exc)
            return
        operations = Operations(backend, store, self._limit)
        latency = None
        try:
            yield from (("operations", finding) for finding in operations.run())
            measured = latencies(operations, self._what.tries)
            latency = _latency(measured, self._liveness()[0])
        except OperationError as exc:
            self._obstacle = f"{exc.operation} does not work"
            yield "operations", self._explained(exc.cause or exc, f"{exc.operation}: ")
        except Exception as exc:  # noqa: BLE001 - as above
            latency = self._explained(exc)
        finally:
            operations.close()
        yield "operations", self._cleaned(backend)
        if latency is not None:
            yield "latency", latency
        yield from (("server", finding) for finding in self._server(backend))

    def _host_store(self) -> Iterator[Finding]:
        if not self._what.host or any(one.outcome == "open" for one in self._attempts):
            return
        if not self._hosts():
            yield Finding("store.not-hosted", "note", "This node hosts no store: --host is idle.")
            return
        made = self._made(self._diagnosis.hosting, _SCRATCH)
        self._ending.callback(lambda: made)  # It is there until the end.
        self._is_host = True
        yield Finding(
            "store.hosted",
            "note",
            "This node hosts the store until this examination is over (--host): start no job "
            "meanwhile.",
        )

    def _connected(self, run_id: str) -> tuple[RendezvousBackend, Any]:
        backend, store = self._made(self._diagnosis.scratch, run_id)
        if isinstance(backend, SessionBackend):
            backend.set_liveness(*self._liveness())
        return backend, store

    def _liveness(self) -> tuple[float, int]:
        return (1.0, 5) if self._params is None else _liveness(self._params)

    def _made(self, parameters: Any, run_id: str) -> tuple[RendezvousBackend, Any]:
        spec, params = self._spec, self._params
        if not isinstance(spec, BackendSpec) or params is None:
            raise AssertionError("there is no backend")
        # Its import is no part of what is timed.
        with contextlib.suppress(ImportError):
            within(_IMPORTING, partial(importlib.import_module, "torch.distributed"))
        made_of = parameters or partial(_renamed, params)
        return within(2 * self._limit + 1, lambda: spec.create(made_of(run_id)))

    def _explained(self, exc: Exception, operation: str = "") -> Finding:
        known = None
        if isinstance(exc, ValueError) and not operation:
            return self._wrong_settings(exc)
        if self._diagnosis.explain is not None:
            with contextlib.suppress(Exception):
                known = self._diagnosis.explain(exc)
        if known is not None:
            return replace(known, seen=operation + known.seen)
        if isinstance(exc, ModuleNotFoundError):
            return Finding(
                "backend.unavailable",
                "error",
                f"The backend needs a package that is not installed here: {reason(exc)}.",
                "Install what its plugin needs; for torch see pytorch.org.",
            )
        if operation:
            return Finding(
                "operation.failed",
                "error",
                f"{operation}{reason(exc)}",
                "Look at the server's log. If the server is sound it may be the plugin: "
                "`rdzv conformance` checks it as a whole.",
            )
        late = isinstance(exc, LateError)
        return Finding(
            "operation.no-connection",
            "error",
            f"The backend cannot be used: {reason(exc)}",
            "See whether the server is frozen or overloaded." if late else "Look at its log.",
        )

    def _cleaned(self, backend: RendezvousBackend) -> Finding:
        clean = self._diagnosis.clean
        if clean is None:
            return Finding(
                "scratch.left",
                "note",
                f"The plugin cannot remove the scratch run ({_SCRATCH}-…): what it has stored "
                "stays until the backend drops it.",
            )
        try:
            within(self._limit, partial(clean, backend))
        except Exception as exc:  # noqa: BLE001 - as above
            return Finding(
                "scratch.left",
                "note",
                f"The scratch run ({_SCRATCH}-…) could not be removed ({reason(exc)}): what it has "
                "stored stays until the backend drops it.",
            )
        return Finding("scratch.removed", "ok", "The scratch run is removed again.")

    def _server(self, backend: RendezvousBackend) -> Iterator[Finding]:
        look = self._diagnosis.examine
        if look is None:
            return
        try:
            yield from within(self._limit, lambda: list(look(backend)))
        except Exception as exc:  # noqa: BLE001 - as above
            yield Finding(
                "server.unknown", "note", f"The server does not tell about itself: {reason(exc)}."
            )

    # ------------------------------------------------------------ this node, and others

    def _node(self) -> _Found:
        given = self._what.local_addr
        local = bool(self._lookups) and all(one.is_loopback for one in self._lookups)
        yield "node", check_own_name(self._limit, local_run=local)
        try:
            address = given or within(
                self._limit, lambda: default_address(host_of(self._what.endpoint))
            )
            listener = Listener(self._what.port)
        except (OSError, LateError) as exc:
            yield (
                "node",
                Finding(
                    "node.no-socket",
                    "error",
                    f"This node cannot listen on a port of its own: {reason(exc)}.",
                    "Choose another --port, or see what keeps this machine from it.",
                ),
            )
            return
        self._ending.callback(listener.close)
        for finding in check_address(
            address, listener, self._limit, given=bool(given), local_run=local
        ):
            yield "node", finding
        if self._what.peer:
            yield from (("peer", finding) for finding in self._peers(address, listener))
        elif not local:
            yield (
                "peer",
                Finding(
                    "peer.not-checked",
                    "note",
                    f"Whether other nodes reach {address} was not checked. For that run this "
                    "command with --peer and the same --run-id on two nodes at the same time.",
                ),
            )

    def _peers(self, address: str, listener: Listener) -> Iterator[Finding]:
        if self._obstacle or not isinstance(self._spec, BackendSpec):
            obstacle = self._obstacle or "doctors find each other through a backend"
            yield _skipped("peer", obstacle, "error")
            return
        try:
            backend, _ = self._connected(peer_run(self._what.run_id))
            peers = Peers(backend, address, listener, self._limit, self._what.wait)
            yield from peers.meet()
            # What was seen stays true, whatever comes of the rest.
            with contextlib.suppress(Exception):
                clean = self._diagnosis.clean
                if peers.leave(last=self._is_host) and clean is not None:
                    within(self._limit, partial(clean, backend))
        except Exception as exc:  # noqa: BLE001 - as above
            yield self._explained(exc)


def _check_engine(params: RendezvousParameters) -> None:
    """As the handler checks them; raises ``ValueError``."""
    interval, attempts = _liveness(params)
    settings = RendezvousSettings(
        params.run_id, 2, 2, RendezvousTimeout(), timedelta(seconds=interval), attempts
    )
    check(settings, params.get_as_seconds("patience", 60.0))


def _liveness(params: RendezvousParameters) -> tuple[float, int]:
    attempts = params.get_as_int("keep_alive_max_attempt", 5)
    return params.get_as_seconds("keep_alive_interval", 1.0), 5 if attempts is None else attempts


def _renamed(params: RendezvousParameters, run_id: str) -> RendezvousParameters:
    return RendezvousParameters(
        params.backend, params.endpoint, run_id, 2, 2, params.local_addr, **params.config
    )


def _targets(endpoint: str) -> tuple[Target, ...]:
    """The hosts with ports in an endpoint that nobody else explains."""
    place = endpoint.strip().rpartition("://")[2].partition("?")[0].rpartition("@")[2]
    targets = []
    for part in place.partition("/")[0].split(","):
        with contextlib.suppress(ValueError):
            host, port = parse_rendezvous_endpoint(part, 0) if part.strip() else ("", 0)
            if port:
                targets.append(Target(host, port))
    return tuple(targets)


def _skipped(subject: str, why: str, level: Any = "note") -> Finding:
    remedy = "" if level == "note" else "See above."
    return Finding(f"{subject}.skipped", level, f"Not tried, since {why}.", remedy)


def _latency(measured: list[tuple[str, list[float]]], interval: float) -> Finding:
    parts = [
        f"{operation} {_at(times, 0.5) * 1000:.1f} / {_at(times, 0.99) * 1000:.1f} ms "
        f"({len(times)} times)"
        for operation, times in measured
        if times
    ]
    seen = f"p50 / p99: {', '.join(parts)}."
    if max(_at(times, 0.99) for _, times in measured if times) < interval / 2:
        return Finding("latency.measured", "ok", seen)
    return Finding(
        "latency.slow",
        "warning",
        f"{seen} A node gives a sign of life every {interval:g} s (keep_alive_interval).",
        "Use a server that is nearer or less busy, or raise keep_alive_interval: a node whose "
        "signs of life come too late counts as lost.",
    )


def _at(times: list[float], part: float) -> float:
    return times[min(len(times) - 1, int(part * len(times)))]
