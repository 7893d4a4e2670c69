"""Whether a TCP connection can be made to every address of every target."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdzv.diagnosis import Finding, Level, Target
from rdzv.options import written_host

from .bounded import LateError, each, reason

if TYPE_CHECKING:
    from .names import Lookup

__all__ = ["Attempt", "check_ports", "connect", "try_ports", "why_not"]

_REMEDIES = {
    "refused": "See whether the server runs, and on which port and address it listens (ss -ltn "
    "there): one that listens on 127.0.0.1 alone is refused to all others. A firewall may refuse, "
    "too.",
    "timeout": "Something on the way drops the packets: open the port in the firewall or security "
    "group of the server and of this machine, and see whether the address is right and its machine "
    "is up.",
    "unreachable": "This machine has no route there: check the address, the network that this "
    "machine is in, VPNs, and (for IPv6) whether this machine has an address of that family at "
    "all.",
    "failed": "Look at the error; it is this machine's own.",
}

_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True)
class Attempt:
    """What came of a connection to one address of a target.

    Attributes:
        outcome: ``"open"``, ``"refused"``, ``"timeout"``, ``"unreachable"`` or ``"failed"``.
        text: The system's words where it is not open.
        seconds: How long it took.
    """

    target: Target
    address: str
    outcome: str
    text: str
    seconds: float


def connect(address: str, port: int, limit: float) -> socket.socket:
    """Connect to an address; raises ``OSError``, of which a ``TimeoutError`` is one."""
    return socket.create_connection((address, port), timeout=limit)


def why_not(exc: Exception) -> str:
    """The outcome that an error of ``connect`` stands for."""
    if isinstance(exc, ConnectionRefusedError):
        return "refused"
    if isinstance(exc, (TimeoutError, LateError)):
        return "timeout"
    if isinstance(exc, OSError) and exc.errno in _UNREACHABLE:
        return "unreachable"
    return "failed"


def try_ports(targets: Sequence[Target], lookups: Sequence[Lookup], limit: float) -> list[Attempt]:
    """Connect to all addresses of all targets at once, and end the connections."""
    known = {lookup.host: lookup.addresses for lookup in lookups}
    places = [(target, address) for target in targets for address in known[target.host]]

    def attempt(place: tuple[Target, str]) -> float:
        target, address = place
        began = time.monotonic()
        connect(address, target.port, limit).close()
        return time.monotonic() - began

    attempts = []
    for (target, address), came in zip(places, each(limit + 1, places, attempt), strict=True):
        if isinstance(came, Exception):
            attempts.append(Attempt(target, address, why_not(came), reason(came), 0.0))
        else:
            attempts.append(Attempt(target, address, "open", "", came))
    return attempts


def check_ports(attempts: Sequence[Attempt], limit: float) -> list[Finding]:
    """What there is to say of them.

    A target with one address that answers is there, and of several targets one is enough.
    """
    reached = {attempt.target for attempt in attempts if attempt.outcome == "open"}
    return [_finding(attempt, reached, limit) for attempt in attempts]


def _finding(attempt: Attempt, reached: set[Target], limit: float) -> Finding:
    where = written_host([(attempt.address, attempt.target.port)])
    if attempt.address != attempt.target.host:
        where += f" ({attempt.target.host})"
    if attempt.outcome == "open":
        text = f"{where} accepts connections ({attempt.seconds * 1000:.1f} ms)."
        return Finding("port.open", "ok", text)
    seen = {
        "refused": f"{where} refuses the connection: its machine is there, and nothing listens "
        "on that port.",
        "timeout": f"{where} does not answer within {limit:g} s.",
        "unreachable": f"{where} cannot be reached: {attempt.text}.",
        "failed": f"No connection to {where}: {attempt.text}.",
    }[attempt.outcome]
    level: Level = "warning" if reached else "error"
    if attempt.target in reached:
        seen += " Another address of that name answers; clients that try this one first wait."
    elif reached:
        seen += " Another server of the endpoint answers."
    return Finding(f"port.{attempt.outcome}", level, seen, _REMEDIES[attempt.outcome])
