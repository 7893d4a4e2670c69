"""What redis-py raises, as the core's errors: the one place where it is translated."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from redis import exceptions
from redis.sentinel import MasterNotFoundError

from rdzv.endpoint import redact
from rdzv.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    torch_compatible,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMANDS", "FORBIDDEN", "MORE_COMMANDS", "call", "translated"]

COMMANDS = (
    "+ping +info +eval +evalsha +publish +subscribe +del +pexpire +pttl +hset +hget +hmget +hdel "
    "+hincrby +hstrlen +hexists +hlen +hkeys +sadd +smembers +rpush +blpop"
)
"""What a user must be allowed for a run and its store, as ``ACL SETUSER`` takes it."""

MORE_COMMANDS = (
    "+select where db is given, +wait for wait_replicas, +cluster|slots and +command on a Cluster"
)
"""What else it must be allowed in some cases, for people."""

# Scripts are told in other words, which depend on the version.
FORBIDDEN = ("NOPERM", "ACL failure in script", "The user executing the script can't")

_NO_DATABASE = ("DB index is out of range", "SELECT is not allowed in cluster mode")

_FOREIGN = ("WRONGTYPE", "hash value is not an integer", "RDZV-FOREIGN")

T = TypeVar("T")


def call(where: str, operation: Callable[[], T]) -> T:
    """Run an operation of redis-py; its failures become the core's errors."""
    try:
        return operation()
    except RendezvousError:
        raise
    except (
        exceptions.RedisError,
        exceptions.RedisClusterException,
        OSError,
        ValueError,
    ) as exc:
        # Some of a Cluster's errors are no RedisErrors.
        # A connection that another thread has closed fails with a ValueError or an OSError.
        raise translated(exc, where) from exc


def translated(exc: Exception, where: str) -> RendezvousError:
    """The core's error for one of redis-py's; ``where`` says which server it is."""
    exc = _root(exc)
    first = redact((str(exc).strip() or type(exc).__name__).splitlines()[0])
    if isinstance(exc, exceptions.NoPermissionError) or any(text in first for text in FORBIDDEN):
        return torch_compatible(RendezvousConnectionError)(
            f"The server at {where} does not permit its user what rdzv needs: {first} An "
            f"administrator may permit it: ACL SETUSER <user> ~<prefix>:* &<prefix>:* {COMMANDS} "
            f"({MORE_COMMANDS})."
        )
    if isinstance(exc, exceptions.AuthenticationError):
        return torch_compatible(RendezvousConnectionError)(
            f"The server at {where} does not accept the login: {first} Check username and "
            "password, password_file or RDZV_REDIS_PASSWORD."
        )
    if isinstance(exc, MasterNotFoundError):
        # redis-py would show all its settings here.
        return torch_compatible(RendezvousConnectionError)(
            f"Nobody knows where {where} is now: no sentinel answers that names a master which "
            "is up. Check the service's name and the sentinels' login."
        )
    if isinstance(exc, exceptions.ReadOnlyError):
        return torch_compatible(RendezvousConnectionError)(
            f"The server at {where} is a read-only replica: name the master in the endpoint, or "
            "the sentinels that know it (redis+sentinel://…)."
        )
    if isinstance(exc, exceptions.OutOfMemoryError) or "OOM command not allowed" in first:
        return torch_compatible(RendezvousConnectionError)(
            f"The server at {where} has no memory left and refuses writes (maxmemory): {first}"
        )
    if any(text in first for text in _NO_DATABASE):
        return torch_compatible(RendezvousConnectionError)(
            f"The server at {where} has no such database ({first}). A Cluster has only number 0: "
            "leave db out."
        )
    if isinstance(exc, exceptions.ResponseError) and any(text in first for text in _FOREIGN):
        return torch_compatible(RendezvousStateError)(
            f"The server at {where} holds something else where the run's keys are ({first}). Use "
            "another run id or another prefix."
        )
    return torch_compatible(RendezvousConnectionError)(
        f"The connection to the Redis server at {where} has failed: {first}"
    )


def _root(exc: Exception) -> Exception:
    """What a Cluster's client has wrapped: it takes every refusal for a missing Cluster."""
    while isinstance(exc, exceptions.RedisClusterException):
        inner = exc.__cause__ or exc.__context__
        if not isinstance(inner, exceptions.RedisError | exceptions.RedisClusterException):
            break
        exc = inner
    return exc
