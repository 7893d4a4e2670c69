"""Commands and scripts over a connection that one caller has for itself."""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

from redis.exceptions import NoScriptError

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
        encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._head = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)

    def over(self, connection: Any, *arguments: Argument) -> Any:
        """Send it over a connection of redis-py, and return its answer undecoded.

        Raises:
            redis.RedisError: As redis-py raises it. An answer may still be under way, unless it
                is a ResponseError.
        """
        parts = [b"*%d\r\n" % (len(self._words) + len(arguments)), self._head]
        for argument in arguments:
            if not isinstance(argument, bytes):
                argument = connection.encoder.encode(argument)  # noqa: PLW2901
            if len(argument) > _LARGE:
                connection.send_command(*self._words, *arguments, check_health=False)
                break
            parts.append(b"$%d\r\n%b\r\n" % (len(argument), argument))
        else:
            connection.send_packed_command([b"".join(parts)], check_health=False)
        return connection.read_response(disable_decoding=True)

    def by(self, client: Any, *arguments: Argument, **options: Any) -> Any:
        """Have a client of redis-py carry it out, as often as it tries.

        Raises:
            redis.RedisError: As redis-py raises it.
        """
        return client.execute_command(*self._words, *arguments, **options)


class Script(Command):
    """A script, sent as the digest by which a server knows it.

    Args:
        text: The script.
        first: The number of its keys, and whatever else its arguments always begin with.
    """

    def __init__(self, text: str, *first: Argument) -> None:
        sha1 = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        super().__init__("EVALSHA", sha1, *first)
        # The server forgets scripts when it is told to, or restarted. This loads it, too.
        self.whole = Command("EVAL", text, *first)

    def over(self, connection: Any, *arguments: Argument) -> Any:
        try:
            return super().over(connection, *arguments)
        except NoScriptError:
            return self.whole.over(connection, *arguments)

    def by(self, client: Any, *arguments: Argument, **options: Any) -> Any:
        try:
            return super().by(client, *arguments, **options)
        except NoScriptError:
            return self.whole.by(client, *arguments, **options)
