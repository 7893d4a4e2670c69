"""Commands and scripts over a connection that one caller has for itself."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Argument", "Script", "exchange"]

Argument: TypeAlias = "bytes | str | int"
"""What a command is made of."""


class Script:
    """A script, and the digest by which a server knows it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha1 = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def run(self, send: Callable[..., Any], *arguments: Argument) -> Any:
        """The script's answer; ``send`` sends a command and returns what is answered.

        Raises:
            redis.RedisError: As ``send`` raises it.
        """
        try:
            return send("EVALSHA", self.sha1, *arguments)
        except NoScriptError:
            # The server forgets them when it is told to, or restarted. This loads it, too.
            return send("EVAL", self.text, *arguments)


def exchange(connection: Any, *command: Argument) -> Any:
    """Send a command over a connection of redis-py, and return its answer, undecoded.

    The client's own way, through the pool, its hooks and its retries, takes twice the time. A
    connection that broke is for the caller to deal with: nothing is sent a second time.

    Raises:
        redis.RedisError: As redis-py raises it.
    """
    connection.send_command(*command, check_health=False)
    return connection.read_response(disable_decoding=True)
