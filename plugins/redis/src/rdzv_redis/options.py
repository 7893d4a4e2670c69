"""Where the server is and how to log in: from the endpoint, the settings, the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from rdzv.api import RendezvousParameters
from rdzv.endpoint import redact_endpoint
from rdzv.options import (
    Login,
    read_count,
    read_file_name,
    read_hosts,
    read_login,
    read_positive,
    written_host,
)
from rdzv.registry import check_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_PORT", "SENTINEL_PORT", "Login", "Options", "read_options"]

DEFAULT_PORT = 6379
"""The port of a server for which the endpoint names none."""

SENTINEL_PORT = 26379
"""The port of a sentinel for which the endpoint names none."""

_VARIABLE = "RDZV_REDIS_"

_SCHEMES = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}

_HOW = (
    "write host:port, [IPv6 address]:port, several of them with commas between, redis://host:port, "
    "rediss:// for TLS, unix:///path/of/the/socket, redis+sentinel://host:port,host:port/service "
    "or redis+cluster://host:port,host:port"
)


@dataclass(frozen=True)
class Options:
    """How to reach a server, and how to keep a run on it. Times are seconds.

    Attributes:
        kind: ``"server"`` (a Cluster's node is found out), ``"unix"``, ``"sentinel"`` or
            ``"cluster"``.
        hosts: Hosts and ports, of the sentinels where there are some.
        path: The socket's path, for ``"unix"``.
        service: What the sentinels call the master.
        tls: Whether to talk TLS.
        where: All that, for people; without secrets.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    service: str
    tls: bool
    where: str
    login: Login
    sentinel_login: Login
    db: int
    ca_cert: str | None
    ssl_cert: str | None
    ssl_cert_key: str | None
    ssl_check_hostname: bool
    connect_timeout: float
    read_timeout: float
    retries: int
    prefix: str
    ttl: float
    wait_replicas: int
    accepts_failover: bool


def read_options(params: RendezvousParameters, environ: Mapping[str, str] | None = None) -> Options:
    """Read all of it; ``environ`` is the process's own by default.

    Settings may also stand in the query of an endpoint that is a URL; one that is
    given in both places is refused.

    Raises:
        ValueError: Something is malformed, missing or contradicts something else.
    """
    environ = os.environ if environ is None else environ
    kind, tls, hosts, path, service, url_login, query = _read_endpoint(params.endpoint)
    both = sorted(query.keys() & {k for k, v in params.config.items() if v is not None})
    if both:
        raise ValueError(f"The setting '{both[0]}' is in the endpoint's URL and given beside it.")
    given = RendezvousParameters(
        params.backend,
        params.endpoint,
        params.run_id,
        params.min_nodes,
        params.max_nodes,
        **{**params.config, **query},
    )
    if query:
        from rdzv_redis.plugin import rdzv_backend

        spec = rdzv_backend("redis")
        if spec is not None:
            check_parameters(spec, given)
    certificate = given.get("ssl_cert")
    ca_cert = given.get("ca_cert")
    if given.get("ssl_cert_key") and not certificate:
        raise ValueError("ssl_cert_key is given without ssl_cert, the certificate that it is for.")
    files = {name: read_file_name(given, name) for name in ("ca_cert", "ssl_cert", "ssl_cert_key")}
    tls = tls or bool(certificate or ca_cert)
    if tls and kind == "unix":
        raise ValueError("A unix socket has no TLS; leave ca_cert and ssl_cert out.")
    where = service and f"the master {service!r} of the sentinels "
    where += path or written_host(hosts)
    return Options(
        kind=kind,
        hosts=hosts,
        path=path,
        service=service,
        tls=tls,
        where=where,
        login=read_login(given, _VARIABLE, environ=environ, in_url=url_login),
        sentinel_login=read_login(given, _VARIABLE, environ=environ, which="sentinel_"),
        db=read_count(given, "db", 0),
        **files,
        ssl_check_hostname=given.get_as_bool("ssl_check_hostname", True) is not False,
        connect_timeout=read_positive(given, "connect_timeout", 5.0),
        read_timeout=read_positive(given, "read_timeout", 5.0),
        retries=read_count(given, "retries", 0),
        prefix=_read_prefix(given),
        ttl=read_positive(given, "ttl", 7200.0),
        wait_replicas=read_count(given, "wait_replicas", 0),
        accepts_failover=str(given.get("failover") or "refuse").strip().lower() == "accept",
    )


_Endpoint = tuple[str, bool, tuple[tuple[str, int], ...], str, str, Login, dict[str, str]]


def _read_endpoint(endpoint: str) -> _Endpoint:
    text = endpoint.strip()
    scheme, mark, rest = text.partition("://")
    if not mark and "@" in text:
        raise _bad(text, "a login stands in a URL only: redis://user:password@host")
    if not mark:
        return "server", False, read_hosts(text, DEFAULT_PORT), "", "", Login(), {}
    kind, tls = _SCHEMES.get(scheme.lower(), ("", False))
    if not kind:
        raise _bad(text, f"the scheme is none of {', '.join(_SCHEMES)}")
    # A password may hold anything but a question mark, which has to be written %3F.
    rest, _, settings = rest.partition("?")
    login, at, rest = rest.rpartition("@")
    user, _, password = login.partition(":")
    known = Login(unquote(user) or None, unquote(password) or None) if at else Login()
    parts = urlsplit("//" + rest)
    query = _read_query(text, settings)
    if parts.fragment or "#" in settings:
        raise _bad(text, "'#' and what follows mean nothing here")
    if kind == "unix":
        path = unquote(parts.netloc + parts.path)
        if not path.startswith("/"):
            raise _bad(text, "the path of the socket must begin with '/'")
        return kind, tls, (), path, "", known, query
    names = [unquote(name) for name in parts.path.split("/") if name]
    service = ""
    if kind == "sentinel":
        if not names:
            raise _bad(text, "the name of the master is missing: …/service")
        service = names.pop(0)
    if names:
        if len(names) > 1 or not names[0].isascii() or not names[0].isdigit():
            raise _bad(text, f"'{'/'.join(names)}' is no number of a database")
        if "db" in query:
            raise _bad(text, "it names the database twice")
        query["db"] = names[0]
    port = SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT
    return kind, tls, read_hosts(parts.netloc, port), "", service, known, query


def _read_query(endpoint: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise _bad(endpoint, "what follows the question mark is not name=value&…") from None
    if len(dict(pairs)) < len(pairs):
        raise _bad(endpoint, "it gives a setting twice")
    return dict(pairs)


def _bad(endpoint: str, why: str) -> ValueError:
    return ValueError(
        f"The endpoint '{redact_endpoint(endpoint)}' of the backend 'redis' cannot be used: {why}. "
        f"Please {_HOW}."
    )


def _read_prefix(params: RendezvousParameters) -> str:
    prefix = str(params.get("prefix") or "rdzv")
    if "{" in prefix or "}" in prefix or any(c.isspace() or not c.isprintable() for c in prefix):
        raise ValueError(
            f"prefix is {prefix!r}; it must have no braces, which name a Cluster's slot, and no "
            "blanks."
        )
    return prefix
