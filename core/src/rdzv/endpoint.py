"""Endpoints: reading ``host:port``, whose address it is, and keeping secrets out of texts."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any

__all__ = [
    "default_address",
    "free_port",
    "hold_port",
    "host_of",
    "matches_machine",
    "names_secret",
    "parse_rendezvous_endpoint",
    "redact",
    "redact_endpoint",
]

_PORT = re.compile(r"[0-9]{1,5}")
_GREATEST_PORT = 65535
_HOST = re.compile(r"[\w.-]+")
_ZONE = re.compile(r"[\w.:-]+")
_HOW = "write it as host, host:port, an IPv4 address or [IPv6 address]:port"

# Addresses of the documentation ranges (RFC 5737, RFC 3849): nobody has them, so
# the route towards them is the one towards the rest of the world.
_ELSEWHERE = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))

_SECRET_WORDS = frozenset(
    {
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "pass",
        "passphrase",
        "passwd",
        "password",
        "pw",
        "pwd",
        "secret",
        "token",
    }
)
_HIDDEN = "***"

# Host, port, and for IPv6 the flow and the zone.
_SocketAddress = tuple[Any, ...]

# Of a length that is never reached: a long text of letters is not to be read again from each.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,30}://"
_WORD = re.compile(r"\S+")
# Within a word. A password may hold unescaped "@", "/", "," or "://": everything up to the first
# "@", and to the last one before the next URL, goes, since hiding too much does no harm.
_USERINFO = re.compile(
    rf"(?P<scheme>{_SCHEME}|(?<![^\s,'\"(<=])//)\S*?@(?:(?:(?![,;]{_SCHEME})\S)*@)?"
    r"|(?<![^\s,'\"(<=])[^\s/@:'\"(<=]*:(?!//)\S*@"
)
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z][\w.-]*)=(?P<value>[^\s&,;'\")]+)")


def parse_rendezvous_endpoint(endpoint: str | None, default_port: int) -> tuple[str, int]:
    """Split an endpoint into its host and its port.

    Args:
        endpoint: ``host``, ``host:port``, an address, ``[IPv6 address]`` or
            ``[IPv6 address]:port``; blank or ``None`` stands for ``localhost``.
        default_port: The port of an endpoint that names none.

    Returns:
        The host, without brackets, and the port, 0 to 65535. Port 0 means a free
        port, chosen by whoever hosts the store.

    Raises:
        ValueError: The endpoint is malformed.

    The meaning is torch's, with these differences. torch cuts a bare IPv6
    address at its last colon: ``::1`` is host ``:`` and port 1 there, and the
    address ``::1`` with the default port here. A text that is an IPv6 address
    as a whole and also up to its last colon, such as ``fe80::1:2940``, is
    refused with the two ways to write it. A host with a colon that is no IPv6
    address is refused, and an address may carry a zone (``fe80::1%eth0``).
    """
    text = (endpoint or "").strip()
    if not text:
        return "localhost", default_port
    if "://" in text or "@" in text or "/" in text:
        raise _bad(text, "it is a URL or a path, not a host and a port")
    if any(character.isspace() for character in text):
        raise _bad(text, "it contains blanks")

    host, port = _split(text)
    if not host:
        raise _bad(text, "the host is missing")
    if not _is_ipv6(host):
        if ":" in host:
            raise _bad(text, f"'{host}' is no IPv6 address")
        if not _HOST.fullmatch(host):
            raise _bad(text, f"'{host}' is no host name or address")
    elif "%" in host and not _ZONE.fullmatch(host.partition("%")[2]):
        raise _bad(text, f"'{host}' has a zone that is no name of a network card")
    if port is None:
        return host, default_port
    if not port:
        raise _bad(text, "the port after the colon is missing")
    if not _PORT.fullmatch(port) or int(port) > _GREATEST_PORT:
        raise _bad(text, f"the port '{port}' is no whole number from 0 to {_GREATEST_PORT}")
    return host, int(port)


def matches_machine(host: str) -> bool:
    """Tell whether a host name or address is one of this machine's.

    It is where a socket can be bound to one of the addresses that the host
    resolves to, so aliases (CNAME) and second network cards are recognised. A
    name that stands for several machines at once matches each of them.

    Args:
        host: A host name or an address, without brackets.

    Returns:
        ``False`` also where the host does not resolve.
    """
    if host.lower() == "localhost":
        return True
    return any(
        _can_bind(family, address)
        for family, address in _resolve(host)
        if not _is_group_address(address[0])
    )


def default_address(endpoint_host: str | None = None) -> str:
    """Choose the address under which other nodes can reach this one.

    No packet is sent, apart from what a name lookup needs.

    Args:
        endpoint_host: The host of the run's endpoint, or ``None`` where the
            endpoint tells nothing about the network (a file).

    Returns:
        For an endpoint on the loopback interface, the loopback address: the run
        is on one machine. For any other, the address that this machine uses
        towards it; or the endpoint's host itself, where that is a name which
        this machine resolves to loopback (its own name, on Debian), because the
        others reach this machine by it. With no endpoint, or one that does not
        resolve: the machine's full name where it resolves to more than loopback,
        else the address of the interface that leads outside, else whatever
        works on this machine alone.
    """
    if endpoint_host:
        literal = _ip_address(endpoint_host)
        if endpoint_host.lower() == "localhost":
            return _loopback()
        if literal is not None and (literal.is_loopback or literal.is_unspecified):
            return "::1" if literal.version == 6 else "127.0.0.1"
        for family, address in _resolve(endpoint_host):
            source = _source_address(family, address)
            if source is not None:
                return endpoint_host if _is_loopback(source) else source
    return _address_without_endpoint()


def host_of(endpoint: str) -> str | None:
    """The host that an endpoint names, the first of several; ``None`` where it names none.

    What an endpoint is made of is its backend's business: ``host:port``, several of
    them with commas between, the same after a scheme and a login, a path.
    """
    place = endpoint.strip().partition("://")[2] if "://" in endpoint else endpoint.strip()
    place = place.partition("?")[0].rpartition("@")[2]
    first = place.split(",")[0].partition("/")[0]
    try:
        return parse_rendezvous_endpoint(first, 0)[0] if first else None
    except ValueError:
        return None


def free_port() -> int:
    """Return a TCP port that is free on this machine at the moment.

    Somebody else may take it before the caller does; where the caller can bind
    to port 0 itself, that is better.

    Raises:
        OSError: There is none.
    """
    with hold_port() as held:
        return int(held.getsockname()[1])


def hold_port() -> socket.socket:
    """Take a free TCP port; nobody else gets it until the socket is closed.

    The socket does not listen: who connects to the port is refused, and may try again.

    Raises:
        OSError: There is none.
    """
    dual = socket.has_dualstack_ipv6()
    held = socket.socket(socket.AF_INET6 if dual else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if dual:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind(("", 0))
    except OSError:
        held.close()
        raise
    return held


def names_secret(key: str) -> bool:
    """Tell whether the name of a setting says that its value is a secret.

    The name is split into words at everything that is no letter or digit:
    ``redis_password`` and ``ssl-key`` are secret, ``keep_alive_interval`` and
    ``monkey`` are not.
    """
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", key.lower()))


def redact(text: str) -> str:
    """Return a text with the secrets in it hidden.

    Hidden are user names and passwords in URLs, with or without their scheme
    (``redis://user:word@host``), and the values of assignments whose name says
    that they are secret (``?password=word``). In doubt more is hidden.
    """
    text = _WORD.sub(_hide_logins, text)
    if "=" in text:
        text = _ASSIGNMENT.sub(
            lambda match: f"{match['name']}={_HIDDEN}" if names_secret(match["name"]) else match[0],
            text,
        )
    return text


def _hide_logins(word: re.Match[str]) -> str:
    if "@" not in word[0]:
        return word[0]
    return _USERINFO.sub(lambda match: f"{match['scheme'] or ''}{_HIDDEN}@", word[0])


def redact_endpoint(endpoint: str) -> str:
    """Return an endpoint with the secrets in it hidden, whatever is wrong with it.

    Unless it is a list of URLs that have a login each, all before its last ``@`` may be one login.
    """
    endpoint = endpoint.strip()
    urls = endpoint.split(",")
    if not all(re.match(_SCHEME, url) and url.count("@") == 1 for url in urls):
        urls = [endpoint]
    return ",".join(map(_without_login, urls))


def _without_login(url: str) -> str:
    login, at, place = url.rpartition("@")
    if at:
        scheme = re.match(_SCHEME, login)
        url = f"{scheme[0] if scheme else ''}{_HIDDEN}@{place}"
    return redact(url)


def _bad(endpoint: str, why: str) -> ValueError:
    return ValueError(
        f"The rendezvous endpoint '{redact_endpoint(endpoint)}' cannot be used: {redact(why)}. "
        f"Please {_HOW}."
    )


def _split(text: str) -> tuple[str, str | None]:
    """Return the host without brackets, and what stands where the port should."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise _bad(text, "the closing bracket is missing")
        if rest and not rest.startswith(":"):
            raise _bad(text, "only a colon and a port may follow the closing bracket")
        return host, rest[1:] if rest else None
    head, colon, tail = text.rpartition(":")
    if _is_ipv6(text):
        if _is_ipv6(head) and _PORT.fullmatch(tail):
            raise ValueError(
                f"The rendezvous endpoint '{text}' can be read in two ways: write '[{text}]' for "
                f"the whole address, or '[{head}]:{tail}' for port {tail}."
            )
        return text, None
    return (head, tail) if colon else (text, None)


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_ipv6(text: str) -> bool:
    address = _ip_address(text)
    return address is not None and address.version == 6


def _is_loopback(text: str) -> bool:
    address = _ip_address(text)
    return address is not None and address.is_loopback


def _is_group_address(text: str) -> bool:
    # A socket can be bound to these too, and they are no machine's own.
    address = _ip_address(text)
    return address is not None and (address.is_multicast or text == "255.255.255.255")


def _resolve(host: str) -> list[tuple[int, _SocketAddress]]:
    """Return (family, socket address) pairs, none where the host does not resolve."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # UnicodeError: a label that IDNA cannot encode
        return []
    return [
        (family, address)
        for family, _, _, _, address in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


def _can_bind(family: int, address: _SocketAddress) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _source_address(family: int, address: _SocketAddress) -> str | None:
    """Return the address that packets to ``address`` would leave from, sending none."""
    host, _, *zone = address
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Port 9 (discard): connecting to port 0 fails on some systems.
            probe.connect((host, 9, *zone))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _loopback() -> str:
    return "127.0.0.1" if _can_bind(socket.AF_INET, ("127.0.0.1", 0)) else "::1"


def _address_without_endpoint() -> str:
    name = socket.getfqdn()
    resolved = [address[0] for _, address in _resolve(name)]
    if any(not _is_loopback(address) for address in resolved):
        return name
    for host, family in _ELSEWHERE:
        source = _source_address(family, (host, 0))
        if source is not None and not _is_loopback(source):
            return source
    return name if resolved else _loopback()
