"""What redis-py raises, as the core's errors: the one place where it is translated."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from redis import exceptions

from rdzv.endpoint import redact
from rdzv.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    torch_compatible,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMANDS", "call", "translated"]

COMMANDS = (
    "+ping +info +evalsha +eval +script|load +hset +hget +hmget +hdel +hincrby +hstrlen +hexists "
    "+expire +pexpire +exists +publish +subscribe +unsubscribe +wait"
)
"""What a user must be allowed, as ``ACL SETUSER`` takes it; the store needs ``STORE_COMMANDS``."""

_FOREIGN = ("WRONGTYPE", "hash value is not an integer", "RDZV-FOREIGN")

T = TypeVar("T")


def call(where: str, operation: Callable[[], T]) -> T:
    """Run an operation of redis-py; its failures become the core's errors."""
    try:
        return operation()
    except RendezvousError:
        raise
    except (exceptions.RedisError, OSError, ValueError) as exc:
        # A connection that another thread has closed fails with a ValueError or an OSError.
        raise translated(exc, where) from exc


def translated(exc: Exception, where: str) -> RendezvousError:
    """The core's error for one of redis-py's; ``where`` says which server it is."""
    first = redact((str(exc).strip() or type(exc).__name__).splitlines()[0])
    if isinstance(exc, exceptions.NoPermissionError):
        return torch_compatible(RendezvousConnectionError)(
            f"The server at {where} does not permit its user what rdzv needs: {first} An "
            f"administrator may permit it: ACL SETUSER <user> ~<prefix>:* &<prefix>:* {COMMANDS}"
        )
    if isinstance(exc, exceptions.AuthenticationError):
        return torch_compatible(RendezvousConnectionError)(
            f"The server at {where} does not accept the login: {first} Check username and "
            "password, password_file or RDZV_REDIS_PASSWORD."
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
    if isinstance(exc, exceptions.ResponseError) and any(text in first for text in _FOREIGN):
        return torch_compatible(RendezvousStateError)(
            f"The server at {where} holds something else where the run's keys are ({first}). Use "
            "another run id or another prefix."
        )
    return torch_compatible(RendezvousConnectionError)(
        f"The connection to the Redis server at {where} has failed: {first}"
    )
