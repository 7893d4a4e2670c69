"""A session on a Redis server: document, log, beats and pieces, each a hash of its own."""

from __future__ import annotations

import contextlib
import copy
import secrets
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rdzv.dynamic_rendezvous.backend import (
    MAX_RECORDS,
    MAX_STATE_BYTES,
    Session,
    Swap,
    Token,
)
from rdzv.dynamic_rendezvous.runtime import REAL
from rdzv.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    torch_compatible,
)

from . import scripts
from .connect import node_of
from .errors import call
from .wire import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .connect import Client
    from .wire import Argument, Script

__all__ = ["Document", "RedisSession", "Run"]

T = TypeVar("T")

_SLICE = 1000
"""Fields in one command that writes, at most."""

_ALONG = 8
"""Slots whose counters come along with one another's beats."""

_RENEWALS = 8
"""How often a time to live is renewed before it is over."""

_CONFIRM = 0.75
"""The part of the time for an answer that replicas have for confirming a write."""

_QUIET = 10.0
"""Seconds without a message after which the server is asked whether it is still there."""

_HGET, _HMGET = Command("HGET"), Command("HMGET")


class Run:
    """A run on a server: the names of its keys, and the scripts.

    Args:
        client: Reaches the server.
        run_id: The run.
        where: Which server it is, for errors.
        prefix: What all keys begin with; has no braces.
        ttl: How long keys live that nobody renews (seconds).
        wait_replicas: How many replicas have to confirm a write of the document.
        confirm_within: Within which they have to (seconds).
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        where: str,
        *,
        prefix: str = "rdzv",
        ttl: float = 7200.0,
        wait_replicas: int = 0,
        confirm_within: float = 5.0,
    ) -> None:
        # What redis-py says of its own types covers text and asynchronous clients as well.
        self.client: Any = client
        self.connection: Any = None
        """Its own, if it has one."""
        self.where = where
        self.closed = False
        self.ttl = ttl
        self.wait_replicas = wait_replicas
        self.confirm_within = confirm_within
        self.key = self.names(run_id, prefix)

    def connected(self) -> Run:
        """The same run over a connection of its own, where the client has a single server."""
        other = copy.copy(self)
        if isinstance(self.client, Redis):
            pool = self.client.connection_pool
            other.client = self.call(
                lambda: Redis(connection_pool=pool, single_connection_client=True)
            )
            other.connection = other.client.connection
        return other

    def close(self) -> None:
        """Close that connection, from any thread."""
        self.closed = True
        if self.connection is not None:
            with contextlib.suppress(RedisError, OSError, ValueError):
                self.connection.disconnect()

    def execute(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Execute one of the scripts."""
        return self.ask(script, len(keys), *keys, *args)

    def ask(self, command: Command, *arguments: Argument) -> Any:
        """The answer to one command, as the server gives it."""
        return self.call(lambda: self._send(command, *arguments))

    def _send(self, command: Command, *arguments: Argument) -> Any:
        if self.connection is None:
            return command.by(self.client, *arguments)
        # It would connect again by itself: the engine has to know of that, since a store that
        # failed over may have lost something.
        if self.closed:
            raise RedisConnectionError("it was closed")
        try:
            return command.over(self.connection, *arguments)
        except (RedisConnectionError, RedisTimeoutError):
            self.close()
            raise

    def call(self, operation: Callable[[], T]) -> T:
        """Run an operation of redis-py; its failures become the core's errors."""
        try:
            return call(self.where, operation)
        except RendezvousError:
            raise
        except Exception as exc:
            if isinstance(exc, AttributeError) and isinstance(self.client, RedisCluster):
                # redis-py stumbles where a Cluster refers it to a server that is new to it.
                raise torch_compatible(RendezvousConnectionError)(
                    f"The Cluster at {self.where} is being changed: it has named a server that is "
                    "not known yet."
                ) from exc
            if not self.closed:
                raise
            # A connection that is taken from under its reader fails in ways of its own.
            raise torch_compatible(RendezvousConnectionError)(
                f"The connection to the Redis server at {self.where} was closed."
            ) from exc

    @staticmethod
    def names(run_id: str, prefix: str) -> Callable[..., str]:
        """What makes the key, or the channel, of a name in the run."""
        # The braces choose the slot of a Cluster; what is in them must not end early.
        root = f"{prefix}:{{{quote(run_id, safe='')}}}"
        return lambda *names: ":".join((root, *names))

    @property
    def ttl_ms(self) -> int:
        """The time to live in milliseconds."""
        return max(1, round(self.ttl * 1000))

    def probe(self) -> None:
        """See whether the user may do all that a run needs; raises where it may not."""
        name = secrets.token_hex(8)
        keys = [self.key("probe", name), self.key("probe", name, "list")]
        self.call(lambda: scripts.PROBE.whole.by(self.client, len(keys), *keys, keys[0]))
        self.execute(scripts.PROBE, keys, keys[:1])
        self.call(lambda: self.client.blpop(keys[1:], 1))
        if self.wait_replicas:
            self.call(lambda: node_of(self.client, keys[0]).wait(0, 1))
        self.call(lambda: self._probe_channel(keys[0]))

    def _probe_channel(self, channel: str) -> None:
        with self.client.pubsub() as pubsub:
            pubsub.subscribe(channel)
            pubsub.ping()
            # A refusal is raised in place of the answer.
            for _ in range(2):
                pubsub.get_message(timeout=self.confirm_within)


class Document:
    """A value with compare-and-set, and a token that names one write of it and never returns."""

    def __init__(self, run: Run, name: str, *, channel: str = "") -> None:
        self._run = run
        self._key = run.key(name)
        self._channel = channel
        self.failovers: int | None = None
        """How many failovers its readers know of; ``None``: they do not ask."""

    def read(self) -> tuple[bytes, str] | None:
        """The value and its token."""
        found: list[bytes] = self._run.execute(scripts.READ, [self._key], [])
        return (found[1], found[0].decode(errors="replace")) if found else None

    def swap(self, value: bytes, token: Token | None) -> tuple[bool, bytes, str] | None:
        """Replace it; whether it was this call, and what is stored now, if anything is."""
        run = self._run
        if len(value) > MAX_STATE_BYTES:
            raise torch_compatible(RendezvousStateError)(
                f"A state of {len(value)} bytes is more than the {MAX_STATE_BYTES} that are read."
            )
        known = "" if self.failovers is None else self.failovers
        # A token that is none of ours names nothing that is stored.
        expected = "" if token is None else token if isinstance(token, str) and token else "-"
        args: list[Argument] = [expected, REAL.new_id(), value, known, run.ttl_ms, self._channel]
        found: list[Any] = run.execute(scripts.SWAP, [self._key], args)
        if not found:
            return None
        won, stored, text, failovers = found
        if self.failovers is not None:
            self.failovers = int(failovers)
        if won and run.wait_replicas:
            self._confirm()
        return bool(won), text, stored.decode(errors="replace")

    def _confirm(self) -> None:
        """Wait until replicas have what was written: only then does it outlive the master."""
        run = self._run

        def wait() -> int:
            # What counts is the last write of a connection, so that it takes one more on the same.
            # The answer has to come before the connection is given up.
            commands = [
                ("PEXPIRE", self._key, run.ttl_ms),
                ("WAIT", run.wait_replicas, max(1, round(run.confirm_within * _CONFIRM * 1000))),
            ]
            return int(_together(node_of(run.client, self._key), commands)[1])

        confirmed = run.call(wait)
        within = run.confirm_within * _CONFIRM
        if confirmed < run.wait_replicas:
            raise torch_compatible(RendezvousConnectionError)(
                f"{confirmed} of {run.wait_replicas} replicas of the Redis server at {run.where} "
                f"have confirmed a change within {within:g} s: it could be lost with the server."
            )


class _Listener:
    """Messages of one channel, over a connection of its own."""

    def __init__(self, run: Run, channel: str) -> None:
        self._run = run
        self._pubsub: Any = run.client.pubsub()
        run.call(lambda: self._pubsub.subscribe(channel))

    def messages(self, timeout: float) -> Iterator[bytes | None]:
        """Messages as they come, for ``timeout`` seconds.

        ``None`` says that some may have been missed: the connection is new.
        """
        until = time.monotonic() + timeout
        asked = False
        quiet_since = time.monotonic()
        while True:
            now = time.monotonic()
            left = until - now
            patience = self._run.confirm_within if asked else _QUIET
            slice_ = min(left, quiet_since + patience - now)
            message = self._next(max(0.0, slice_))
            if message is not None:
                asked, quiet_since = False, time.monotonic()
                if message["type"] in ("message", "smessage"):
                    yield bytes(message["data"])
                elif message["type"] in ("subscribe", "ssubscribe"):
                    yield None
            elif time.monotonic() >= until:
                return
            elif asked:
                raise torch_compatible(RendezvousConnectionError)(
                    f"The Redis server at {self._run.where} does not answer any more."
                )
            else:
                self._run.call(self._pubsub.ping)
                asked, quiet_since = True, time.monotonic()

    def _next(self, timeout: float) -> Any:
        return self._run.call(lambda: self._pubsub.get_message(timeout=timeout))

    def close(self) -> None:
        """End a wait in another thread, too."""
        connection = self._pubsub.connection
        if connection is not None:
            with contextlib.suppress(RedisError, OSError, ValueError):
                connection.disconnect()


class RedisSession(Session):
    """One node's way to a run on a server.

    Commands go over one connection, what is pushed over another. On a Cluster, commands go over
    the client's.
    """

    def __init__(self, run: Run) -> None:
        self._run = run = run.connected()
        self._news = run.key("news")
        self._document = Document(run, "document", channel=self._news)
        self._document.failovers = 0
        self._epoch = ""
        self._listeners: dict[str, _Listener] = {}
        self._told: tuple[bytes, str] = b"", ""
        """The newest document of which it was told."""
        self._arrived = 0
        """The newest ticket of which it was told."""
        self._renewed = 0.0

    def _key(self, name: str) -> str:
        return self._run.key(self._epoch, name)

    # ------------------------------------------------------------ the document

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:  # noqa: ARG002 - a master's
        return self._document.read()

    def swap(self, document: bytes, token: Token | None) -> Swap:
        found = self._document.swap(document, token)
        if found is None:
            raise torch_compatible(RendezvousStateError)(
                f"The document of the run has vanished from the Redis server at {self._run.where}: "
                "it was restarted or failed over without its data, or the run's time to live was "
                "over. Start the job again on all nodes."
            )
        return Swap(*found, failovers=self._document.failovers or 0)

    def listen(self, known: Token | None) -> None:
        self._listen(self._news)
        if known is not None:
            self._still_has(known)  # What was said before it listened is not said again.

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        until = time.monotonic() + timeout
        listener, new = self._listen(self._news)
        if new and not self._still_has(token):
            return None
        if self._is_news(token):
            return self._told
        for message in listener.messages(until - time.monotonic()):
            if message is not None:
                told, _, text = message.partition(b" ")
                self._told = text, told.decode(errors="replace")
            elif not self._still_has(token):
                return None
            if self._is_news(token):
                return self._told
        return None

    def _still_has(self, token: Token) -> bool:
        """Look whether the server has what this token names, or something newer.

        A server that was restarted behind the subscription's back may have lost it. Whoever waits
        then has to look for itself: its other threads may have learnt of newer things meanwhile.
        """
        found = self._document.read()
        self._told = found or self._told
        return found is not None and (found[1] == token or _version(found[1]) > _version(token))

    def _is_news(self, token: Token) -> bool:
        # Versions of which this node has learnt by another way may still be under way here.
        return _version(self._told[1]) > _version(token)

    def _listen(self, channel: str) -> tuple[_Listener, bool]:
        listener = self._listeners.get(channel)
        if listener is not None:
            return listener, False
        listener = _Listener(self._run, channel)
        self._listeners[channel] = listener
        if self._run.closed:
            listener.close()
        # It has to be in effect before anything is looked at: wait for the answer.
        for _ in listener.messages(self._run.confirm_within):
            return listener, True
        raise torch_compatible(RendezvousConnectionError)(
            f"The Redis server at {self._run.where} does not answer."
        )

    def attach(self, epoch: str) -> None:
        if epoch != self._epoch:
            self._epoch, self._renewed = epoch, 0.0
            for channel in self._listeners.keys() - {self._news}:
                self._listeners.pop(channel).close()

    # ------------------------------------------------------------ the roster

    def enter(self, record: bytes) -> int:
        run = self._run
        keys = [self._key("log"), self._key("tickets")]
        args: list[Argument] = [REAL.new_id(), record, run.ttl_ms, self._key("arrivals")]
        return int(run.execute(scripts.ENTER, keys, args))

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        found = self._run.execute(scripts.RECORDS, [self._key("log")], [after, MAX_RECORDS])
        # A ticket and its record are one write: one without a record was forgotten.
        return [
            (after + 1 + n, b"-" if r is None else r[scripts.NAME :]) for n, r in enumerate(found)
        ]

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        until = time.monotonic() + timeout
        listener, new = self._listen(self._key("arrivals"))
        if new:
            self._arrived = self._tail()
        if self._arrived >= after + count:
            return
        for message in listener.messages(until - time.monotonic()):
            self._arrived = self._tail() if message is None else _number(message)
            if self._arrived >= after + count:
                return

    def _tail(self) -> int:
        run = self._run
        return _number(run.ask(_HGET, self._key("log"), "tail") or b"0")

    def bury(self, ticket: int) -> None:
        # A ticket and its record are one write here: there are no holes.
        pass

    # ------------------------------------------------------------ beats

    def beat(self, slot: int) -> Mapping[int, int]:
        run = self._run
        first = slot // _ALONG * _ALONG
        now = time.monotonic()
        renews = self._renewed == 0.0 or now - self._renewed > run.ttl / _RENEWALS
        keys = [self._key("beats")]
        if renews:
            keys += [self._key(name) for name in ("log", "tickets", "pieces")]
            keys.append(run.key("document"))
        args = [slot, first, first + _ALONG - 1, run.ttl_ms if renews else 0]
        found = run.execute(scripts.BEAT, keys, args)
        if renews:
            self._renewed = now
        return {first + n: _number(count or b"0") for n, count in enumerate(found)}

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        if not slots:
            return {}
        run = self._run
        found = run.ask(_HMGET, self._key("beats"), *slots)
        return {slot: _number(n or b"0") for slot, n in zip(slots, found, strict=True)}

    # ------------------------------------------------------------ pieces

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        run, key = self._run, self._key("pieces")
        items = [(f"{nonce}/{name}", piece) for name, piece in pieces.items()]

        # Over the session's connection, as the document that names them.
        for start in range(0, len(items), _SLICE):
            parts = [part for item in items[start : start + _SLICE] for part in item]
            run.execute(scripts.PUBLISH, [key], [run.ttl_ms, *parts])

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        fields = [f"{nonce}/{name}" for name in names]
        pieces: list[bytes | None] = self._run.execute(scripts.FETCH, [self._key("pieces")], fields)
        return pieces

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        keys = [self._key(name) for name in ("log", "tickets", "pieces")]
        args: list[Argument] = [after, upto, *(f"{nonce}/{name}" for name in names)]
        self._run.execute(scripts.FORGET, keys, args)

    def close(self) -> None:
        self._run.close()
        for listener in list(self._listeners.values()):
            listener.close()


def _together(client: Redis, commands: Sequence[tuple[object, ...]]) -> list[Any]:
    """The answers to commands that are sent at once over one connection, never a second time."""
    connection = client.connection or client.connection_pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        return [connection.read_response() for _ in commands]
    except BaseException:
        # Answers may still be under way.
        connection.disconnect()
        raise
    finally:
        if connection is not client.connection:
            client.connection_pool.release(connection)


def _version(token: str) -> int:
    """The number that a token begins with; -1 for one that is none of ours."""
    return _number(token.partition("-")[0].encode())


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 19 else -1
