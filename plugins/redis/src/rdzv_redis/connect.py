"""Makes the client: one server, a socket, sentinels or a Cluster, as the options say."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    NoPermissionError,
    ResponseError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from rdzv.errors import RendezvousConnectionError, torch_compatible

from .errors import call

if TYPE_CHECKING:
    from .options import Options

__all__ = ["Client", "Server", "config", "connect", "node_of"]

log = logging.getLogger(__name__)

Client = Redis | RedisCluster

_Make = Callable[[int], Client]
"""Makes a client that sends a command again so often, after its connection broke."""


@dataclass(frozen=True)
class Server:
    """What a server says of itself, as far as it tells.

    Attributes:
        version: Its version.
        mode: ``"standalone"``, ``"cluster"`` or ``"sentinel"``.
        role: ``"master"`` or ``"slave"``.
        replicas: How many replicas are connected.
        least_replicas: ``min-replicas-to-write``; ``None`` where it does not tell.
        evicts: The policy by which it may drop the run's keys when its memory is full, if any.
    """

    version: str
    mode: str
    role: str
    replicas: int
    least_replicas: int | None
    evicts: str | None


def connect(options: Options, run_key: str) -> tuple[Client, Client, Server]:
    """Connect, and look at the server that has ``run_key``.

    Returns:
        A client that sends nothing twice: the engine has to know of each connection that broke.
        One that tries again, for the store, whose callers do not. And what the server is.

    Raises:
        RendezvousConnectionError: It cannot be reached, does not accept the login, or is not
            one that a run can be kept on; the text says what to do.
    """
    if options.kind == "sentinel":
        found = _look(functools.partial(_by_sentinels, options), run_key, options.where)
    elif options.kind == "cluster":
        found = _look(functools.partial(_cluster, options), run_key, options.where)
    else:
        found = _first_master(options, run_key)
    _check(found.server, options)
    return (
        found.client,
        call(options.where, lambda: found.make(options.retries)),
        found.server,
    )


class _Found(NamedTuple):
    """A server that was looked at, the client that did, and what makes more of its kind."""

    make: _Make
    client: Client
    server: Server


def _look(make: _Make, run_key: str, where: str) -> _Found:
    client = call(where, lambda: make(0))
    return _Found(make, client, _inspect(client, run_key, where))


def _first_master(options: Options, run_key: str) -> _Found:
    """The one of several hosts that says that it is a master."""
    masters: list[tuple[_Found, str]] = []
    failures: list[str] = []
    cause: Exception | None = None
    for host in options.hosts or (("", 0),):
        where = options.path or f"{host[0]}:{host[1]}"
        try:
            found = _look(functools.partial(_single, options, host), run_key, where)
        except RendezvousConnectionError as exc:
            failures.append(str(exc))
            cause = exc
            continue
        if found.server.mode == "cluster":
            return _look(functools.partial(_cluster, options), run_key, options.where)
        if found.server.role == "master":
            masters.append((found, where))
        else:
            failures.append(f"{where} is a read-only replica.")
    if not masters:
        raise torch_compatible(RendezvousConnectionError)(
            " ".join(failures)
            + (
                ""
                if cause is not None
                else " Name the master in the endpoint, or the sentinels that know it "
                "(redis+sentinel://…)."
            )
        ) from (cause.__cause__ or cause if cause is not None else None)
    if len(masters) > 1:
        raise torch_compatible(RendezvousConnectionError)(
            f"{masters[0][1]} and {masters[1][1]} are two masters, and nodes of one run could "
            "choose different ones. Name one of them."
        )
    return masters[0][0]


# ---------------------------------------------------------------- clients


def _settings(options: Options) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "username": options.login.username,
        "password": options.login.password,
        "socket_timeout": options.read_timeout,
        "socket_connect_timeout": options.connect_timeout,
        # RESP3 would only cost one more request for each connection.
        "protocol": 2,
    }
    if options.kind != "unix":
        settings["socket_keepalive"] = True
    if options.tls:
        settings |= {
            "ssl": True,
            "ssl_ca_certs": options.ca_cert,
            "ssl_certfile": options.ssl_cert,
            "ssl_keyfile": options.ssl_cert_key or options.ssl_cert,
            "ssl_check_hostname": options.ssl_check_hostname,
        }
    return settings


def _retry(retries: int) -> Retry:
    return Retry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries)


def _single(options: Options, host: tuple[str, int], retries: int) -> Redis:
    settings = _settings(options) | {"db": options.db, "retry": _retry(retries)}
    if options.kind == "unix":
        return Redis(unix_socket_path=options.path, **settings)
    return Redis(host=host[0], port=host[1], **settings)


def _by_sentinels(options: Options, retries: int) -> Redis:
    settings = _settings(options)
    login = {
        "username": options.sentinel_login.username,
        "password": options.sentinel_login.password,
    }
    sentinel = Sentinel(
        list(options.hosts),
        sentinel_kwargs={**settings, **login, "retry": _retry(0)},
    )
    master: Redis = sentinel.master_for(
        options.service, db=options.db, retry=_retry(retries), **settings
    )
    return master


def _cluster(options: Options, retries: int) -> RedisCluster:
    if options.db:
        raise torch_compatible(RendezvousConnectionError)(
            f"The server at {options.where} belongs to a Cluster, which has no database "
            f"{options.db}: leave db out."
        )
    if not options.hosts:
        raise torch_compatible(RendezvousConnectionError)(
            f"The server at {options.where} belongs to a Cluster, whose other servers a socket "
            "does not reach: write its host and port."
        )
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in options.hosts],
        retry=_retry(retries),
        **_settings(options),
    )


# ---------------------------------------------------------------- what the server is


def _inspect(client: Client, run_key: str, where: str) -> Server:
    def ask() -> Server:
        one = node_of(client, run_key)
        info = one.info("server")
        mode = str(info.get("redis_mode") or info.get("server_mode") or "standalone")
        if mode == "sentinel":
            return Server(str(info.get("redis_version")), mode, "sentinel", 0, None, None)
        replication = one.info("replication")
        return Server(
            version=str(info.get("redis_version", "?")),
            mode=mode,
            role=str(replication.get("role", "master")),
            replicas=int(replication.get("connected_slaves", 0)),
            least_replicas=_number(config(one, "min-replicas-to-write")),
            evicts=_eviction(one),
        )

    server = call(where, ask)
    if server.mode == "sentinel":
        raise torch_compatible(RendezvousConnectionError)(
            f"{where} is a sentinel. Write the endpoint as redis+sentinel://{where}/<service>, "
            "with the name that the sentinels have for the master."
        )
    return server


def node_of(client: Client, key: str) -> Redis:
    """The client of the one server that has ``key``.

    Raises:
        redis.RedisError: No server of the Cluster has its slot.
    """
    if not isinstance(client, RedisCluster):
        return client
    node = client.get_node_from_key(key)
    if node is None:
        raise RedisConnectionError("No server of the Cluster has the run's slot.")
    one: Redis = client.get_redis_connection(node)
    return one


def config(client: Redis, name: str) -> str | None:
    """One setting of the server, ``None`` where the user may not know it."""
    try:
        value = client.config_get(name).get(name)
    except (NoPermissionError, ResponseError):
        return None
    return None if value is None else str(value)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _eviction(client: Redis) -> str | None:
    policy = config(client, "maxmemory-policy")
    if policy in (None, "noeviction") or not _number(config(client, "maxmemory")):
        return None
    return policy


def _check(server: Server, options: Options) -> None:
    if server.evicts is not None:
        log.warning(
            "The Redis server at %s evicts keys when its memory is full (maxmemory-policy=%s): it "
            "may drop a run's state. Give runs a server of their own, with noeviction.",
            options.where,
            server.evicts,
        )
    if server.role != "master":
        raise torch_compatible(RendezvousConnectionError)(
            f"The server at {options.where} is a read-only replica: name the master."
        )
    if options.wait_replicas > server.replicas:
        log.warning(
            "wait_replicas is %d, and the Redis server at %s has %d replicas now: nothing can be "
            "changed in the run until there are enough.",
            options.wait_replicas,
            options.where,
            server.replicas,
        )
    several = options.kind in ("sentinel", "cluster") or server.mode == "cluster"
    several = several or len(options.hosts) > 1
    if options.accepts_failover or server.replicas == 0:
        return
    safe = options.wait_replicas >= server.replicas and (server.least_replicas or 0) > 0
    if safe:
        return
    risk = (
        f"The Redis server at {options.where} has {server.replicas} replicas, which it does not "
        "wait for: after a failover the newest round, or the closing of the run, may be lost. "
        "Whoever was in that round then gets a RendezvousStateError; the others form a round of a "
        "higher number."
    )
    if several:
        raise torch_compatible(RendezvousConnectionError)(
            f"{risk} Accept it with failover=accept, or have every change confirmed by all "
            f"replicas: wait_replicas={server.replicas}, and min-replicas-to-write of 1 or more "
            "in the server's settings."
            + (
                " (It does not tell this user that setting; +config|get would permit it.)"
                if server.least_replicas is None
                else ""
            )
        )
    log.warning("%s failover=accept silences this warning.", risk)
