"""What a store may hold: records as rdzv writes them, and bytes that are nearly such records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from rdzv.dynamic_rendezvous.document import (
    SCHEMA,
    Assigned,
    Change,
    Document,
    Leader,
    Master,
    Member,
    Record,
    encode,
    place,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzz.source import Source

__all__ = [
    "EPOCH",
    "KINDS",
    "MAKERS",
    "ME",
    "assigned",
    "document",
    "hostile",
    "members",
    "mutated",
    "name",
    "record",
]

EPOCH = "epoch"
ME = "me"
"""The incarnation of the node that is being fuzzed."""

_NAMES = (ME, "node-a", "node-b", "w1", "w2", "", "x" * 64)
_COUNTS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 64, 1000, 2**31, 2**53 - 1, 2**53)
_SECONDS = (0.5, 1.0, 2.0, 86400.0, 5e-324)
_RANKS = (-1, 0, 1, 2, 3, 10**6)

ODD = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"0.5", b"-1", b"1e3", b"1E400"),
    *(b"18446744073709551615", b"18446744073709551616", b"9007199254740993", b"1" * 400),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xed\xa0\x80"', b'"\\u0000"', b'"\xc3\xa9"'),
    *(b'""', b'"-"', b'"?"', b"null", b"true", b"[]", b"{}", b"[[]]", b'{"1":"-"}'),
    *(b"[" * 3000, b'{"a":' * 3000, b'"' + b"x" * 3000 + b'"', b"[0," * 200, b"\xef\xbb\xbf1"),
    *(b"1", b"2", b"3", b"99", b'"99"', b'{"99":1}', b'"me"', b'"enter"', b'"leave"'),
)
"""Values that JSON, or a reader of it, may stumble over."""


def name(source: Source) -> str:
    """A random name, as rdzv makes them."""
    return source.pick(_NAMES)


def document(source: Source, limits: tuple[int, int] | None = None) -> Document:
    """A document that a store may hold, of a run with these limits or with any."""
    low, high = limits or (source.number(1, 2), source.number(2, 4))
    round_ = source.pick(_COUNTS)
    size = source.number(1, high) if round_ else 0
    listed = source.number(0, 2) == 0
    places = [place(source.pick(_COUNTS), name(source)) for _ in range(size if listed else 0)]
    return Document(
        schema=SCHEMA,
        epoch=source.pick((EPOCH, EPOCH, EPOCH, "other", "")),
        version=source.pick(_COUNTS[1:]),
        write=name(source),
        min_nodes=low,
        max_nodes=high,
        leader=_leader(source) if source.flag() else None,
        round=round_,
        nonce="nonce" if round_ else "",
        size=size,
        upto=source.pick(_COUNTS),
        chunks=source.pick((1, 1, 2, 3)) if round_ else 0,
        places=" ".join(places),
        gone=source.pick(_COUNTS),
        master=Master("host", source.pick((1, 29400, 65535))) if source.flag() else None,
        change=Change(*(source.pick(_COUNTS) for _ in range(4))) if source.flag() else None,
        closed=source.number(0, 7) == 0,
    )


def _leader(source: Source) -> Leader:
    return Leader(name(source), source.pick(_SECONDS), source.pick(_RANKS), source.pick(_COUNTS))


def record(source: Source) -> Record:
    """A line of the roster."""
    return Record(
        kind=source.pick(("enter", "enter", "leave")),
        node=name(source),
        addr=source.pick(("host", "::1", "", "h\u00f4te", "x" * 255)),
        pid=source.pick(_COUNTS),
        local_id=source.pick(_COUNTS),
        interval=source.pick(_SECONDS),
        id=name(source),
        round=source.pick(_COUNTS),
        rank=source.pick(_RANKS),
        slot=source.pick(_COUNTS),
    )


def members(source: Source) -> list[Member]:
    """A piece of the roster that a completed round hands on."""
    return [
        Member(source.pick(_COUNTS), source.pick(_RANKS), record(source)) for _ in source.times(2)
    ]


def assigned(source: Source) -> Assigned:
    """What a node finds under its ticket."""
    return Assigned(source.pick((ME, ME, name(source))), source.pick((0, 1, 2, 10**6)))


KINDS: tuple[Any, ...] = (Document, Record, Assigned, list[Member])
"""What rdzv decodes out of a store."""

MAKERS: tuple[Callable[[Source], Any], ...] = (document, record, assigned, members)


def hostile(source: Source, valid: bytes, most: int = 400) -> bytes:
    """Bytes instead of ``valid``: the same, nearly the same, of another kind, or anything."""
    way = source.number(0, 9)
    if way <= 2:
        return valid
    if way <= 6:
        return mutated(source, valid)
    if way == 7:
        return encode(source.pick(MAKERS)(source))
    return source.pick((*ODD, b"", b"-", b"?")) if way == 8 else source.blob(most)


def mutated(source: Source, valid: bytes) -> bytes:
    """``valid`` JSON with one value replaced or doubled, or with a few bytes changed."""
    if source.flag():
        try:
            return _edited(source, msgspec.json.decode(valid))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    data = bytearray(valid)
    for _ in range(source.number(1, 4)):
        start = source.number(0, len(data))
        end = min(len(data), start + source.number(0, 8))
        way = source.number(0, 5)
        if way == 0 and start < len(data):
            data[start] ^= 1 << source.number(0, 7)
        elif way == 1:
            del data[start:]
        elif way == 2:
            del data[start:end]
        elif way == 3:
            data[end:end] = data[start:end]
        elif way == 4:
            data[start:end] = source.pick(ODD)
        else:
            data[start:end] = source.blob(8)
    return bytes(data)


def _edited(source: Source, value: Any) -> bytes:
    """JSON of ``value`` in which one value, anywhere in it, is an odd one or stands twice."""
    if not isinstance(value, (dict, list)) or not value or source.number(0, 5) == 0:
        return source.pick(ODD)
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    chosen = source.number(0, len(pairs) - 1)
    parts = []
    for number, (key, item) in enumerate(pairs):
        raws = [json.dumps(item).encode()]
        if number == chosen:
            raws = [_edited(source, item)] if source.flag() else [*raws, _edited(source, item)]
        prefix = json.dumps(key).encode() + b":" if isinstance(value, dict) else b""
        parts += [prefix + raw for raw in raws]
    body = b",".join(parts)
    return b"{" + body + b"}" if isinstance(value, dict) else b"[" + body + b"]"
