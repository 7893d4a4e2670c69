"""Whether hosts have addresses of both families, and whether this machine's own name has."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rdzv.diagnosis import Finding, Level

from .bounded import LateError, each, reason

__all__ = ["Lookup", "check_hosts", "check_own_name", "families", "look_up"]

_FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}

_SLOW = 1.0
"""Seconds from which on a lookup is slow: each connection of each node waits for one."""

_NOT_THERE = {
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
}
"""Errors that say that there is no such name, or none with an address of that family."""


@dataclass(frozen=True)
class Lookup:
    """What the name service says about a host.

    Attributes:
        addresses: Its addresses, those of IPv4 first; where it is one, that itself.
        failures: Why a family gave none, other than that there are none.
        seconds: How long the slower of the two families took.
    """

    host: str
    addresses: tuple[str, ...]
    failures: tuple[str, ...]
    seconds: float

    @property
    def is_literal(self) -> bool:
        """Whether the host is an address."""
        return _address(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        """Whether it has addresses, and all are this machine's alone."""
        found = [address for address in map(_address, self.addresses) if address is not None]
        return bool(found) and all(address.is_loopback for address in found)


def look_up(hosts: Sequence[str], limit: float) -> list[Lookup]:
    """Ask for the addresses of hosts, all at once and for both families apart."""
    asked = [(host, family) for host in hosts for family in _FAMILIES]
    answers = each(limit, asked, lambda one: _ask(*one))
    found = []
    for place, host in enumerate(hosts):
        addresses: list[str] = []
        failures: list[str] = []
        slowest = 0.0
        for family, answer in zip(_FAMILIES, answers[2 * place : 2 * place + 2], strict=True):
            if isinstance(answer, Exception):
                failures.append(f"{_FAMILIES[family]}: {reason(answer)}")
                slowest = max(slowest, limit if isinstance(answer, LateError) else 0.0)
            else:
                addresses += answer[0]
                slowest = max(slowest, answer[1])
        found.append(Lookup(host, tuple(addresses), tuple(failures), slowest))
    return found


def _ask(host: str, family: socket.AddressFamily) -> tuple[list[str], float]:
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    except socket.gaierror as exc:
        if exc.errno not in _NOT_THERE:
            raise
        addresses = []
    return addresses, time.monotonic() - began


def check_hosts(lookups: Sequence[Lookup]) -> Iterator[Finding]:
    """What there is to say about the hosts of an endpoint."""
    some = any(lookup.addresses for lookup in lookups)
    for lookup in lookups:
        if not lookup.addresses:
            yield _unresolved(lookup, "warning" if some else "error")
            continue
        if not lookup.is_literal:
            yield Finding(
                "name.resolved",
                "ok",
                f"{lookup.host} is {families(lookup.addresses)} ({_ms(lookup.seconds)}).",
            )
        yield from _hints(lookup)


def _unresolved(lookup: Lookup, level: Level) -> Finding:
    if lookup.failures:
        return Finding(
            "name.service",
            level,
            f"The name service gave no answer about {lookup.host} ({'; '.join(lookup.failures)}).",
            "See whether the name servers in /etc/resolv.conf can be reached from this machine, "
            "or give an address instead of a name.",
        )
    return Finding(
        "name.unresolved",
        level,
        f"The name {lookup.host} has no address, neither of IPv4 nor of IPv6.",
        "Check its spelling, and the search domains of /etc/resolv.conf; add it to the name "
        "service or to /etc/hosts on every node, or give its address.",
    )


def _hints(lookup: Lookup) -> Iterator[Finding]:
    if lookup.seconds > _SLOW:
        yield Finding(
            "name.slow",
            "warning",
            f"Looking up {lookup.host} took {_ms(lookup.seconds)}: every connection waits for it."
            + "".join(f" {text}." for text in lookup.failures),
            "Repair the name service (often the first name server of /etc/resolv.conf is dead, or "
            "its search list long), put the name into /etc/hosts, or give the address.",
        )
    found = [address for address in map(_address, lookup.addresses) if address is not None]
    if any(address.is_unspecified for address in found):
        yield Finding(
            "name.unspecified",
            "warning",
            f"{lookup.host} is the address of no machine: from here it leads to this one, and on "
            "any other node to that one.",
            "Give the name or the address by which all nodes reach the server.",
        )
    elif lookup.is_loopback:
        own = lookup.is_literal or lookup.host.lower() == "localhost"
        yield Finding(
            "name.loopback",
            "note" if own else "warning",
            f"{lookup.host} is this machine alone: no other node reaches it by that."
            if own
            else f"{lookup.host} is on the loopback interface ({families(lookup.addresses)}). On "
            "other nodes it has to be another address.",
            ""
            if own
            else "See that the name service and /etc/hosts of all nodes agree: remove the name "
            "from the lines of 127.0.0.1, 127.0.1.1 and ::1, or give the address.",
        )


def check_own_name(limit: float, *, local_run: bool) -> Finding:
    """Whether this machine's own name leads to it from outside.

    Args:
        limit: Seconds that it may take.
        local_run: Whether all nodes are on this machine.
    """
    name = socket.gethostname()
    (lookup,) = look_up([name], limit)
    level: Level = "note" if local_run else "warning"
    interface = "set GLOO_SOCKET_IFNAME to the name of the network interface"
    if not lookup.addresses:
        return Finding(
            "node.name-unresolved",
            level,
            f"This machine's own name, {name}, has no address. rdzv does without it; workers on "
            "gloo may not.",
            f"Add a line with its address and {name} to /etc/hosts, or {interface}.",
        )
    if lookup.is_loopback:
        return Finding(
            "node.name-loopback",
            level,
            f"This machine's own name, {name}, is {families(lookup.addresses)}, the loopback "
            "interface. rdzv does without it; workers on gloo may tell the others to connect to "
            "that.",
            f"In /etc/hosts put {name} on the line of this machine's address instead of 127.0.0.1 "
            f"or (Debian) 127.0.1.1, or {interface}.",
        )
    text = f"This machine's own name, {name}, is {families(lookup.addresses)}."
    return Finding("node.name", "ok", text)


def families(addresses: Sequence[str]) -> str:
    """Addresses with their families, for people."""
    parts = []
    for version, title in ((4, "IPv4"), (6, "IPv6")):
        some = [text for text in addresses if (a := _address(text)) and a.version == version]
        if some:
            more = f" and {len(some) - 3} more" if len(some) > 3 else ""
            parts.append(f"{', '.join(some[:3])}{more} ({title})")
    return " and ".join(parts)


def _ms(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
