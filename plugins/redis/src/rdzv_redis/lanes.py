"""Ways to a server that one caller has for itself, and that number its changes."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import redis
from redis.client import NEVER_DECODE

if TYPE_CHECKING:
    from .wire import Argument, Command, Script

__all__ = ["Lanes", "lanes_of"]


class _Lane:
    """One caller at a time: a connection of its own, and the numbers of its changes."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8).encode()
        self.number = 0
        self.connection: Any = None

    def send(self, client: Any, command: Command, *arguments: Argument) -> Any:
        """Send a command that may be repeated, as often as the client does; its answer."""
        pool = getattr(client, "connection_pool", None)
        if pool is not None:
            connection = self.connection
            if connection is None:
                connection = self.connection = pool.get_connection()
            try:
                return command.over(connection, *arguments)
            except redis.ResponseError:
                raise
            except BaseException as exc:
                # An answer may still be under way, which must not reach the next caller.
                self.connection = None
                connection.disconnect()
                pool.release(connection)
                if not isinstance(exc, redis.ConnectionError | redis.TimeoutError):
                    raise
        return command.by(client, *arguments, **{NEVER_DECODE: True})


class Lanes:
    """The lanes of one client, shared by the stores on it.

    A lane keeps its connection, and goes the client's way only if something went
    wrong, and always where the client is a cluster's.
    """

    def __init__(self) -> None:
        # Taking from a list and putting back is atomic, so no lock is carried through a fork.
        self.idle: list[_Lane] = []

    def call(self, client: Any, command: Command, *arguments: Argument) -> Any:
        """Carry out a command or a script that may be repeated, and return its answer undecoded.

        Raises:
            redis.RedisError: As redis-py raises it.
        """
        lane = self._take()
        try:
            return lane.send(client, command, *arguments)
        finally:
            self.idle.append(lane)

    def change(self, client: Any, script: Script, *arguments: Argument) -> Any:
        """Carry out a script that changes something, once.

        Raises:
            redis.RedisError: As redis-py raises it.
        """
        lane = self._take()
        lane.number += 1
        try:
            # Of one width, so that the server compares it as text.
            number = b"%016d" % lane.number
            return lane.send(client, script, lane.name, number, *arguments)
        finally:
            self.idle.append(lane)

    def _take(self) -> _Lane:
        try:
            return self.idle.pop()
        except IndexError:
            return _Lane()


_lanes: WeakKeyDictionary[Any, Lanes] = WeakKeyDictionary()


def lanes_of(client: Any) -> Lanes:
    """The lanes that all stores on one client share."""
    return _lanes.setdefault(client, Lanes())


def _after_fork() -> None:
    """In a forked child: the connections are the parent's, and so are the lanes' names."""
    for lanes in list(_lanes.values()):
        lanes.idle = []


os.register_at_fork(after_in_child=_after_fork)
