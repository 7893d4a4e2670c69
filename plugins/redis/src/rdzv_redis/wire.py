"""Commands and scripts over a connection that one caller has for itself."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Argument", "Command", "Script"]

Argument: TypeAlias = "bytes | str | int"
"""What a command is made of."""

_LARGE = 6000
"""Bytes of an argument that is better not copied."""


class Command:
    """A command, whose first words are packed once.

    redis-py packs at each call, and its client's way leads through the pool, hooks and retries:
    that takes longer than the server does.

    Args:
        words: What it begins with, its name first.
    """

    def __init__(self, *words: Argument) -> None:
        self._words = words
        self._head = b"".join(
            _packed(word if isinstance(word, bytes) else str(word).encode()) for word in words
        )

    def over(self, connection: Any, *arguments: Argument) -> Any:
        """Send it once over a connection of redis-py, and return its answer undecoded.

        Raises:
            redis.RedisError: As redis-py raises it. An answer may still be under way, unless it
                is a ResponseError.
        """
        parts = [b"*%d\r\n" % (len(self._words) + len(arguments)), self._head]
        for argument in arguments:
            data = argument if isinstance(argument, bytes) else connection.encoder.encode(argument)
            if len(data) > _LARGE:
                connection.send_command(*self._words, *arguments, check_health=False)
                break
            parts.append(_packed(data))
        else:
            connection.send_packed_command([b"".join(parts)], check_health=False)
        return connection.read_response(disable_decoding=True)

    def by(self, client: Any, *arguments: Argument, **options: Any) -> Any:
        """Have a client of redis-py carry it out, as often as it tries.

        Raises:
            redis.RedisError: As redis-py raises it.
        """
        return client.execute_command(*self._words, *arguments, **options)


def _packed(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


class Script:
    """A script, and the digest by which a server knows it.

    Args:
        text: The script.
        first: The number of its keys, and whatever else its arguments always begin with.
    """

    def __init__(self, text: str, *first: Argument) -> None:
        self.text = text
        sha1 = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._known = Command("EVALSHA", sha1, *first)
        self._whole = Command("EVAL", text, *first)

    def run(self, send: Callable[..., Any], *arguments: Argument) -> Any:
        """Its answer; ``send`` takes a command and its further arguments, and returns the answer.

        Raises:
            redis.RedisError: As ``send`` raises it.
        """
        try:
            return send(self._known, *arguments)
        except NoScriptError:
            # The server forgets them when it is told to, or restarted. This loads it, too.
            return send(self._whole, *arguments)
