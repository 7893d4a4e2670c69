"""Where etcd is and how to log in: from the endpoint, the settings, the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from rdzv.endpoint import redact, redact_endpoint
from rdzv.options import (
    Login,
    read_file_name,
    read_hosts,
    read_login,
    read_positive,
    written_host,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rdzv.api import RendezvousParameters

__all__ = ["DEFAULT_PORT", "PREFIX", "SHORTEST_LEASE", "Options", "read_options", "read_prefix"]

DEFAULT_PORT = 2379
"""The port of a member for which the endpoint names none."""

PREFIX = "/rdzv"
"""What all keys begin with, where nothing else is said."""

SHORTEST_LEASE = 2
"""Seconds of the shortest lease: etcd makes none that is shorter than 1.5 of its elections."""

_VARIABLE = "RDZV_ETCD_"

_HOW = (
    "write host:port, [IPv6 address]:port, several of them with commas between, or the same after "
    "http:// or https://"
)


@dataclass(frozen=True)
class Options:
    """How to reach etcd, and how to keep a run on it. Times are seconds.

    Attributes:
        endpoints: ``host:port`` of each member that is to be tried.
        lease_ttl: How long a node's lease lives; ``None``: as the engine's settings ask.
    """

    endpoints: tuple[str, ...]
    tls: bool
    login: Login
    ca_cert: str | None
    ssl_cert: str | None
    ssl_cert_key: str | None
    connect_timeout: float
    read_timeout: float
    prefix: str
    ttl: float
    lease_ttl: int | None


def read_options(params: RendezvousParameters, environ: Mapping[str, str] | None = None) -> Options:
    """Read all of it; ``environ`` is the process's own by default.

    Raises:
        ValueError: Something is malformed, missing or contradicts something else.
    """
    protocol, hosts, in_url = _read_endpoint(params.endpoint)
    files = {name: read_file_name(params, name) for name in ("ca_cert", "ssl_cert", "ssl_cert_key")}
    if files["ssl_cert_key"] and not files["ssl_cert"]:
        raise ValueError("ssl_cert_key is given without ssl_cert, the certificate that it is for.")
    said = str(params.get("protocol") or "").strip().lower()
    if said not in ("", "http", "https"):
        raise ValueError(f"protocol is {said!r}; it must be 'http' or 'https'.")
    if said and protocol and said != protocol:
        raise ValueError(f"The endpoint says {protocol}://, and protocol is {said!r}.")
    protocol = said or protocol or ("https" if any(files.values()) else "http")
    if protocol == "http" and any(files.values()):
        given = next(name for name, file in files.items() if file)
        raise ValueError(f"{given} is given, and http is spoken, which has no TLS: use https.")
    login = read_login(params, _VARIABLE, environ=environ, in_url=in_url)
    if bool(login.username) != bool(login.password):
        missing, given = ("password", "username") if login.username else ("username", "password")
        raise ValueError(
            f"A {given} is given without a {missing}: give both, also as {_VARIABLE}USERNAME and "
            f"{_VARIABLE}PASSWORD in the environment."
        )
    return Options(
        endpoints=tuple(written_host([host]) for host in hosts),
        tls=protocol == "https",
        login=login,
        connect_timeout=read_positive(params, "connect_timeout", 5.0),
        read_timeout=read_positive(params, "read_timeout", 5.0),
        prefix=read_prefix(str(params.get("prefix") or PREFIX)),
        ttl=read_positive(params, "ttl", 7200.0),
        lease_ttl=_read_lease(params),
        **files,
    )


def _read_endpoint(endpoint: str) -> tuple[str, tuple[tuple[str, int], ...], Login]:
    """The protocol, if it is said; the hosts; the login, if it is there."""
    protocols = set()
    logins = []
    places = []
    for part in endpoint.strip().split(","):
        scheme, mark, rest = part.strip().partition("://")
        if not mark:
            scheme, rest = "", scheme
        elif scheme.lower() not in ("http", "https"):
            # With a comma in a password, it may be a part of that.
            said = "what stands before ://" if "@" in endpoint else f"'{redact(scheme)}://'"
            raise _bad(endpoint, f"{said} is neither http:// nor https://")
        else:
            protocols.add(scheme.lower())
        user, at, rest = rest.rpartition("@")
        if at:
            name, _, password = user.partition(":")
            login = Login(unquote(name) or None, unquote(password) or None)
            if login not in logins:
                logins.append(login)
        rest = rest.removesuffix("/")
        if any(sign in rest for sign in "/?#"):
            raise _bad(endpoint, "what follows the port means nothing here")
        places.append(rest)
    if len(protocols) > 1:
        raise _bad(endpoint, "it names http:// and https://")
    if len(logins) > 1:
        raise _bad(endpoint, "it holds two logins, and all members have the same users")
    try:
        hosts = read_hosts(",".join(places), DEFAULT_PORT)
    except ValueError:
        if not logins:
            raise
        # What was read as a host may be half a password.
        raise _bad(
            endpoint, "a host or a port is malformed; a comma in a password is written %2C"
        ) from None
    return next(iter(protocols), ""), hosts, logins[0] if logins else Login()


def _bad(endpoint: str, why: str) -> ValueError:
    return ValueError(
        f"The endpoint '{redact_endpoint(endpoint)}' of the backend 'etcd' cannot be used: {why}. "
        f"Please {_HOW}."
    )


def read_prefix(prefix: str) -> str:
    """What all keys begin with, without a slash at its end.

    Raises:
        ValueError: It has blanks, or is nothing but slashes.
    """
    if any(c.isspace() or not c.isprintable() for c in prefix) or not prefix.strip("/"):
        raise ValueError(f"prefix is {prefix!r}; it must have no blanks, and be a path like /rdzv.")
    return prefix.rstrip("/")


def _read_lease(params: RendezvousParameters) -> int | None:
    lease = params.get_as_int("lease_ttl")
    if lease is not None and lease < SHORTEST_LEASE:
        raise ValueError(
            f"lease_ttl is {lease} s; etcd has no leases of less than {SHORTEST_LEASE} s."
        )
    return lease
