"""Events as lines of JSON: what observers write, and what reads such logs."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

if TYPE_CHECKING:
    from .events import Event

__all__ = ["MAX_LINE", "SCHEMA", "Line", "decode", "encode"]

SCHEMA = 1
"""The version of the lines. It grows when a field gets another meaning, not with new ones."""

MAX_LINE = 1 << 16
"""Bytes of a line, its end included; nothing that is longer was written here."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class Line(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line as it is read. Which fields a kind of event has: see :mod:`rdzv.events`.

    Fields that this version does not know are passed over.
    """

    schema: Annotated[int, msgspec.Meta(ge=1, le=SCHEMA)]
    event: str
    run_id: str
    node: str
    round: Count
    at: Seconds
    time: Instant
    backend: str = ""
    rank: Count = 0
    world_size: Count = 0
    seconds: Seconds = 0.0
    nodes: Count = 0
    silent: Seconds = 0.0
    lost: Count | tuple[str, ...] = 0
    """The number of them in ``Reopened``, their names in ``Lost``."""
    leader: str = ""
    spare: bool = False
    deferred: bool = False
    waiting: Count = 0
    why: str = ""
    reason: str = ""
    arrived: Count = 0
    returned: Count = 0
    left: Count = 0
    surplus: Count = 0
    error: str = ""


_DECODER = msgspec.json.Decoder(Line)


def encode(event: Event) -> bytes:
    """Return an event as one line, its end included.

    The fields of the event follow its kind under their own names, whatever kind
    it is. Text that is too long for a line is cut.
    """
    line = _encode(event, MAX_LINE)
    return line if len(line) <= MAX_LINE else _encode(event, 200)


def _encode(event: Event, most: int) -> bytes:
    fields: dict[str, Any] = {"schema": SCHEMA, "event": type(event).__name__}
    for each in dataclasses.fields(event):
        value = getattr(event, each.name)
        if isinstance(value, str):
            value = _text(value, most)
        elif isinstance(value, tuple):
            value = [_text(str(part), most) for part in value[:most]]
        fields[each.name] = value
    return msgspec.json.encode(fields) + b"\n"


def _text(value: str, most: int) -> str:
    # An error may tell of bytes that are no UTF-8, which JSON cannot hold.
    return value[:most].encode("utf-8", "replace").decode()


def decode(line: bytes) -> Line:
    """Return what a line says.

    Raises:
        ValueError: It is no line of this format, or of a newer version of it; the
            message says what is wrong with it.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError(str(exc)[:200]) from exc
