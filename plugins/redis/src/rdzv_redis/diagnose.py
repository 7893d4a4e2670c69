"""What ``rdzv doctor`` is told about ``redis``: its servers, its errors, the server's settings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from redis import exceptions
from redis.sentinel import MasterNotFoundError

from rdzv.diagnosis import SCRATCH_EPOCH, Diagnosis, Finding, Target, Tls
from rdzv.errors import RendezvousConnectionError

from .connect import config, node_of
from .errors import COMMANDS, FORBIDDEN, MORE_COMMANDS
from .options import read_options

if TYPE_CHECKING:
    from rdzv.api import RendezvousParameters
    from rdzv.dynamic_rendezvous.backend import RendezvousBackend

    from .backend import RedisRendezvousBackend
    from .options import Options

__all__ = ["diagnose"]

_GREETING = b"*1\r\n$4\r\nPING\r\n"

_FULL = 0.8
"""The part of its memory from which on a server is worth a warning."""

_LOGIN = "Give username and password_file, or RDZV_REDIS_USERNAME and RDZV_REDIS_PASSWORD."


def diagnose(params: RendezvousParameters) -> Diagnosis:
    """How the doctor is to look at a rendezvous on Redis.

    Raises:
        ValueError: A setting or the endpoint is malformed.
    """
    options = read_options(params)
    tls = None
    if options.tls:
        tls = Tls(
            options.ca_cert, options.ssl_cert, options.ssl_cert_key, options.ssl_check_hostname
        )
    return Diagnosis(
        tuple(Target(host, port, tls, _GREETING) for host, port in options.hosts),
        explain=_explain,
        examine=partial(_examine, options),
        clean=_clean,
    )


def _clean(backend: RendezvousBackend) -> None:
    run = cast("RedisRendezvousBackend", backend).run
    names = ["document", "state", *(f"store:{n}" for n in ("values", "queues", "once"))]
    names += [f"{SCRATCH_EPOCH}:{n}" for n in ("log", "tickets", "beats", "pieces")]
    run.call(lambda: run.client.delete(*(run.key(name) for name in names)))


def _explain(exc: Exception) -> Finding | None:
    chain: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for each in chain:
        said = (str(each).strip() or type(each).__name__).splitlines()[0]
        if "NOAUTH" in said or "Authentication required" in said:
            seen = "The server wants a login, and none is given."
            return Finding("login.missing", "error", seen, _LOGIN)
        if isinstance(each, exceptions.NoPermissionError) or any(t in said for t in FORBIDDEN):
            return Finding(
                "permission.missing",
                "error",
                f"The server does not permit its user what a run needs: {said}",
                f"An administrator may permit it: ACL SETUSER <user> ~<prefix>:* &<prefix>:* "
                f"{COMMANDS} ({MORE_COMMANDS}).",
            )
        if isinstance(each, exceptions.AuthenticationError):
            seen = f"The server does not accept the login: {said}"
            return Finding("login.refused", "error", seen, f"Check them. {_LOGIN}")
        if isinstance(each, MasterNotFoundError):
            return Finding(
                "redis.no-master",
                "error",
                "No sentinel names a master that is up.",
                "Check the service's name in the endpoint, and the sentinels' login "
                "(RDZV_REDIS_SENTINEL_PASSWORD).",
            )
        if isinstance(each, exceptions.OutOfMemoryError) or "OOM command" in said:
            return Finding(
                "redis.full",
                "error",
                f"The server has no memory left, and refuses writes: {said}",
                "Raise its maxmemory, or remove what fills it.",
            )
    if isinstance(exc, RendezvousConnectionError) and len(chain) == 1:
        # What connect() refuses by itself it explains by itself.
        remedy = "Do one of the things that it names; `rdzv backends redis` explains the settings."
        return Finding("redis.refused", "error", str(exc), remedy)
    return None


def _examine(options: Options, backend: RendezvousBackend) -> Iterator[Finding]:
    run = cast("RedisRendezvousBackend", backend).run
    server: Any = node_of(run.client, run.key("document"))
    about = server.info("server")
    name = "Valkey" if "valkey_version" in about else "Redis"
    version = about.get("valkey_version") or about.get("redis_version", "?")
    mode = about.get("redis_mode") or about.get("server_mode") or "standalone"
    yield Finding("redis.version", "ok", f"{name} {version}, {mode}.")

    names = ("save", "appendonly", "maxmemory", "maxmemory-policy", "min-replicas-to-write")
    settings = {each: config(server, each) for each in names}
    if all(value is None for value in settings.values()):
        yield Finding(
            "redis.settings-hidden",
            "note",
            "The server does not tell this user its settings: persistence, eviction and replicas "
            "were not looked at (+config|get would permit it).",
        )
    else:
        yield from _memory(settings, server.info("memory"))
        yield from _persistence(settings)
    yield from _replicas(options, settings, server.info("replication"))


def _memory(settings: dict[str, str | None], memory: dict[str, Any]) -> Iterator[Finding]:
    most = int(settings["maxmemory"] or 0)
    policy = settings["maxmemory-policy"]
    if not most:
        return
    if policy not in (None, "noeviction"):
        yield Finding(
            "redis.evicts",
            "warning",
            f"The server drops keys when its memory is full (maxmemory-policy={policy}): a run's "
            "state may be among them, and its nodes then fail.",
            "Give runs a server of their own, with maxmemory-policy noeviction.",
        )
    used = int(memory.get("used_memory", 0))
    if used > _FULL * most:
        yield Finding(
            "redis.nearly-full",
            "warning",
            f"The server uses {used / 1e6:.0f} of its {most / 1e6:.0f} MB (maxmemory).",
            "Raise maxmemory, or remove what fills it.",
        )


def _persistence(settings: dict[str, str | None]) -> Iterator[Finding]:
    if settings["appendonly"] == "yes":
        yield Finding("redis.persistence", "ok", "Changes are written to a file (appendonly).")
    else:
        snapshots = "snapshots alone" if settings["save"] else "no persistence"
        yield Finding(
            "redis.no-persistence",
            "note",
            f"The server has {snapshots}: if it is restarted, runs that are under way fail with a "
            "clear error, and have to be started again. appendonly yes would keep them.",
        )


def _replicas(
    options: Options, settings: dict[str, str | None], replication: dict[str, Any]
) -> Iterator[Finding]:
    count = int(replication.get("connected_slaves", 0))
    least = settings["min-replicas-to-write"] or "?"
    if count or options.wait_replicas:
        yield Finding(
            "redis.replicas",
            "ok" if options.wait_replicas <= count else "note",
            f"{count} replicas are connected; a change waits for {options.wait_replicas} "
            f"(wait_replicas), and the server for {least} (min-replicas-to-write).",
        )
    if options.wait_replicas > count:
        yield Finding(
            "redis.too-few-replicas",
            "error",
            f"wait_replicas is {options.wait_replicas}, and {count} replicas are connected: "
            "nothing can be changed in a run.",
            "Bring the replicas up, or lower wait_replicas.",
        )
    if count and not options.accepts_failover and options.wait_replicas < count:
        yield Finding(
            "redis.may-lose-writes",
            "warning",
            f"The server does not wait for all of its {count} replicas: after a failover the "
            "newest round may be lost.",
            f"Accept it with failover=accept, or set wait_replicas={count} and the server's "
            "min-replicas-to-write to 1 or more.",
        )
