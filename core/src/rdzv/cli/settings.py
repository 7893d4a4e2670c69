"""What commands are given on the command line, beyond single options."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Usage", "read_settings"]


class Usage(ValueError):  # noqa: N818 - it is what the caller got wrong
    """Nothing could be done at all; the message says why."""


def read_settings(conf: Sequence[str]) -> dict[str, str]:
    """The settings in ``k=v,...``, of which there may be several.

    Raises:
        Usage: One of them is no ``k=v``; nothing of it is repeated, since it may be a secret's.
    """
    settings: dict[str, str] = {}
    for pair in (pair for text in conf for pair in text.split(",") if pair.strip()):
        key, equals, value = pair.partition("=")
        if not equals:
            raise Usage("--conf has a part without '='; write k=v,...")
        settings[key.strip()] = value.strip()
    return settings
