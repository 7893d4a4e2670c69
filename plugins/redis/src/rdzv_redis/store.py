"""RedisStore: torch's key-value store on Redis or Valkey."""

from __future__ import annotations

import math
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import redis
from redis.exceptions import ClusterError, RedisClusterException
from torch.distributed import DistNetworkError, DistStoreError, QueueEmptyError, Store

from rdzv.stores import (
    DEFAULT_TIMEOUT,
    Wait,
    amount_of,
    keep_alive,
    let_go,
    list_of,
    name_of,
    names_of,
    value_of,
)

from .lanes import lanes_of
from .store_scripts import store_scripts
from .wire import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis.cluster import RedisCluster

    from rdzv.stores import Data

    from .wire import Argument

__all__ = ["DEFAULT_TIMEOUT", "DEFAULT_TTL", "LARGEST_VALUE", "RedisStore"]

DEFAULT_TTL = 7200.0
"""Seconds that the data outlives its last use."""

LARGEST_VALUE = 512 * 1024 * 1024
"""Bytes of the largest value: what Redis takes in one string."""

_PACE = 3.0
"""Seconds after which one who waits looks again although nobody woke it: the push may be lost."""

_TOUCHES = 8
"""How often within the time to live a store that is used extends it."""

_CHUNK = 1000
"""Keys that one look of a wait takes."""

_BLPOP = Command("BLPOP")


class RedisStore(Store):
    """A ``torch.distributed.Store`` whose data is on a Redis or Valkey server.

    It behaves as TCPStore does. All values are in one hash, all queues in
    another, so that a few keys, whose time to live is extended together, are all
    that there is. One who waits sleeps in a blocking command; a write wakes those
    who said that they wait for its key, in the same script that writes.

    Every change carries a number of its own, under which the server keeps its
    answer. redis-py may repeat a command whose answer was lost with the
    connection: nothing takes effect twice, ``add``, ``append``, ``compare_set``,
    ``delete_key`` and the queues included, and what is answered is the first
    answer. How often it repeats is the client's setting (``retry``), and bounds
    how long an operation goes on while the server cannot be reached.

    Threads share a store, and one that waits holds up no other; each thread that
    is within a call has a connection of the client's pool, which must allow for
    them (``max_connections``, 100 in redis-py). A forked child may go on with it.

    What is different from TCPStore:

    - ``set`` is acknowledged: it returns when the server has the value, and fails
      if it has not. TCPStore's does not wait.
    - ``add`` to what is no decimal number without spaces, leading zeros or a plus
      sign, or beyond 64 bits, is a DistStoreError that changes nothing. TCPStore
      takes the number at the beginning of the text, wraps around at 64 bits, and
      drops the connection where there is no number.
    - ``wait`` with a timeout of zero looks once; TCPStore's always fails.
      A negative one is a ValueError; TCPStore's then waits for ever.
    - ``wait`` takes several keys one after another. One that was set and deleted
      again before its turn is waited for; in TCPStore it has been there.
    - A wait may end a tenth of a second after its timeout: Redis looks no more often.
    - Data nobody uses through a store for ``ttl`` seconds is gone.

    Through ``PrefixStore`` torch's bindings forward neither ``delete_key`` and
    ``num_keys`` (RuntimeError: a pure virtual function) nor ``list_keys`` and the
    queues (NotImplementedError) to a store written in Python. Call these on the
    store itself.

    torch's bindings do not keep a Python store alive either that a PrefixStore or
    a process group uses, or that ``PrefixStore.clone`` makes. Each store therefore
    keeps itself alive until ``close``; it is small, and its connections are the
    client's.

    Args:
        client: The client, which stays the caller's. Its retries, timeouts,
            TLS and passwords are what the store has.
        prefix: What the names of all keys begin with, the same for all that share
            the data. It contains a hash tag (``rdzv:{run}:store``), because in a
            cluster all keys must be in one slot.
        timeout: How long to wait where no other time is said.
        ttl: Seconds that the data outlives the last use of any store on it.

    Raises:
        ValueError: The prefix has no hash tag, or ``ttl`` is not above zero.
    """

    timeout: timedelta  # A property of torch's, which its stubs do not have.

    def __init__(
        self,
        client: redis.Redis | RedisCluster,
        prefix: str,
        timeout: timedelta = DEFAULT_TIMEOUT,
        ttl: float = DEFAULT_TTL,
    ) -> None:
        super().__init__()
        start = prefix.find("{") + 1
        if not start or prefix.find("}", start) <= start:
            raise ValueError(f"The prefix {prefix!r} needs a hash tag, like rdzv:{{run}}:store.")
        if not ttl > 0:
            raise ValueError(f"The time to live is {ttl} seconds; it must be above zero.")
        self.set_timeout(timeout)
        self._client: Any = client
        self._prefix = prefix
        self._ttl = ttl
        self._base = prefix.encode()
        values, queues = self._base + b":values", self._base + b":queues"
        self._hget, self._hmget = Command("HGET", values), Command("HMGET", values)
        self._hlen, self._hkeys = Command("HLEN", values), Command("HKEYS", values)
        self._queue, self._is_queue = Command("HMGET", queues), Command("HEXISTS", queues)
        self._scripts = store_scripts(self._base, max(1, round(ttl * 1000)))
        self._lanes = lanes_of(client)
        self._touch_at = time.monotonic() + ttl / _TOUCHES
        self._pace = min(_PACE, (_socket_timeout(client) or 2 * _PACE) / 2)
        keep_alive(self)

    def close(self) -> None:
        """Let the store be freed. Neither a PrefixStore nor a process group may use it any more."""
        let_go(self)

    def __repr__(self) -> str:
        return f"RedisStore({self._where()}, prefix={self._prefix!r})"

    # Values.

    def set(self, key: Data, value: Data) -> None:
        self._change("set", name_of(key), _value(value))

    def get(self, key: Data) -> bytes:
        name = name_of(key)
        value: bytes | None = self._ask(self._hget, name)
        if value is not None:
            return value
        return self._get_all([name], lambda: [self._ask(self._hget, name)])[0]

    def add(self, key: Data, amount: int) -> int:
        return int(self._change("add", name_of(key), b"%d" % amount_of(amount)))

    def compare_set(self, key: Data, expected_value: Data, desired_value: Data) -> bytes:
        expected, desired = _value(expected_value), _value(desired_value)
        answer: bytes = self._change("compare_set", name_of(key), expected, desired)
        if answer == b"d":
            return desired
        return expected if answer == b"e" else answer[1:]

    def append(self, key: Data, value: Data) -> None:
        self._change("append", name_of(key), _value(value), LARGEST_VALUE)

    def delete_key(self, key: Data) -> bool:
        return bool(self._change("delete_key", name_of(key)) == b"1")

    def num_keys(self) -> int:
        return int(self._ask(self._hlen))

    def list_keys(self) -> list[str]:
        return [name.decode() for name in self._ask(self._hkeys)]

    def multi_get(self, keys: Iterable[Data]) -> list[bytes]:
        names = names_of(keys)
        if not names:
            return []
        return self._get_all(names, lambda: self._ask(self._hmget, *names))

    def multi_set(self, keys: Iterable[Data], values: Iterable[Data]) -> None:
        names = names_of(keys)
        stored = [_value(value) for value in list_of(values)]
        if len(names) != len(stored):
            raise DistStoreError("multiSet keys and values vectors must be of same size")
        if names:
            pairs = zip(names, stored, strict=True)
            self._change("set", *(part for pair in pairs for part in pair))

    def has_extended_api(self) -> bool:
        return True

    def clone(self) -> RedisStore:
        return RedisStore(self._client, self._prefix, self.timeout, self._ttl)

    # Queues.

    def queue_push(self, key: Data, value: Data) -> None:
        self._change("push", name_of(key), _value(value))

    def queue_pop(self, key: Data, block: bool = True) -> bytes:
        name = name_of(key)
        wait = _Wait(self.timeout, [name]) if block else None
        while True:
            waiter = (wait.waiter, self._patience) if wait else ()
            answer: bytes = self._change("pop", name, *waiter)
            if answer != b"n":
                return answer[1:]
            if wait is None:
                raise QueueEmptyError("queue is empty")
            self._sleep(wait)

    def queue_len(self, key: Data) -> int:
        name = name_of(key)
        head, tail = self._ask(self._queue, b"h" + name, b"t" + name)
        return int(tail or 0) - int(head or 0)

    # Waiting.

    def check(self, keys: Iterable[Data]) -> bool:
        return self._first_missing(names_of(keys)) is None

    def wait(self, keys: Iterable[Data], timeout: timedelta | float | None = None) -> None:
        names = names_of(keys)
        self._wait_for(_Wait(self.timeout if timeout is None else timeout, names))

    def _wait_for(self, wait: _Wait) -> None:
        seen = 0
        while True:
            missing = self._first_missing(wait.names, seen, wait.waiter, self._patience)
            if missing is None:
                return
            seen = missing
            self._sleep(wait)

    def _get_all(self, names: list[bytes], read: Callable[[], list[bytes | None]]) -> list[bytes]:
        found = read()
        wait = None
        while None in found:
            wait = wait or _Wait(self.timeout, names)
            self._wait_for(wait)
            found = read()
            # As in TCPStore, the value of a key that has only a queue is empty.
            found = [
                b"" if value is None and self._ask(self._is_queue, b"t" + name) else value
                for name, value in zip(names, found, strict=True)
            ]
        return cast("list[bytes]", found)

    @property
    def _patience(self) -> int:
        """Milliseconds that one who waits is known for: until it looks again, and some more."""
        return round(3000 * self._pace)

    def _first_missing(
        self, names: list[bytes], start: int = 0, waiter: str = "", patience: int = 0
    ) -> int | None:
        """Look which key is the first that is missing, and register there to be woken."""
        for begin in range(start, len(names), _CHUNK):
            chunk = names[begin : begin + _CHUNK]
            index = self._run("look", waiter, patience, *chunk)
            if index >= 0:
                return begin + int(index)
        return None

    def _sleep(self, wait: _Wait) -> None:
        """Sleep until woken or until it is time to look again."""
        # Rounded up, or it would be too early to give up, and asked again for the rest.
        seconds = max(1, math.ceil(1000 * min(wait.left(), self._pace))) / 1000
        self._ask(_BLPOP, b"%b:wake:%b" % (self._base, wait.waiter.encode()), f"{seconds:.3f}")

    # Talking to the server.

    def _change(self, name: str, *arguments: Argument) -> Any:
        return self._do(self._lanes.change, self._scripts[name], *arguments)

    def _run(self, name: str, *arguments: Argument) -> Any:
        return self._do(self._lanes.call, self._scripts[name], *arguments)

    def _ask(self, command: Command, *arguments: Argument) -> Any:
        return self._do(self._lanes.call, command, *arguments)

    def _do(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Do something on the link; the one place where the client's errors become torch's.

        Raises:
            DistNetworkError: The server cannot be reached, or does not answer.
            DistStoreError: It answers with an error.
        """
        now = time.monotonic()
        if now >= self._touch_at:
            self._touch_at = now + self._ttl / _TOUCHES
            self._run("touch")
        try:
            return operation(self._client, *arguments)
        except (redis.RedisError, RedisClusterException) as exc:
            text = f"{self._where()}: {exc}"
            for secret in _secrets(self._client):
                text = text.replace(secret, "***")
            if isinstance(exc, _UNREACHABLE):
                raise DistNetworkError(text) from exc
            raise DistStoreError(text) from exc

    def _where(self) -> str:
        """Name the server in messages."""
        settings = _settings(self._client)
        if "path" in settings:
            return f"Redis at {settings['path']}"
        pool = getattr(self._client, "connection_pool", None)
        if service := getattr(pool, "service_name", None):
            return f"Redis service {service!r}"
        if pool is None:
            nodes = (f"{node.host}:{node.port}" for node in self._client.get_nodes())
            return f"Redis cluster at {', '.join(nodes)}"
        return f"Redis at {settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


class _Wait(Wait):
    """A wait, with the name under which it is woken."""

    def __init__(self, timeout: timedelta | float, names: list[bytes]) -> None:
        super().__init__(timeout, names)
        # A name that no other call has: who is woken late wakes nobody else.
        self.waiter = secrets.token_hex(8)


_UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, ClusterError, RedisClusterException)


def _settings(client: Any) -> dict[str, Any]:
    settings: dict[str, Any] = client.get_connection_kwargs()
    return settings


def _socket_timeout(client: Any) -> float | None:
    seconds: float | None = _settings(client).get("socket_timeout")
    return seconds


def _secrets(client: Any) -> list[str]:
    password = _settings(client).get("password")
    return [str(password)] if password else []


def _value(value: Data) -> bytes:
    data = value_of(value)
    if len(data) > LARGEST_VALUE:
        raise DistStoreError(
            f"A value has {len(data)} bytes; Redis takes no more than {LARGEST_VALUE}. Divide it."
        )
    return data
