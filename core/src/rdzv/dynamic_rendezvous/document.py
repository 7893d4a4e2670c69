"""The wire format: the document, the roster's records and the pieces of an assignment.

Everything is JSON with a schema version, decoded into typed records and checked
before anything looks at it. Nothing that was read is ever executed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from ..errors import RendezvousStateError
from ..ranks import MAX_LABELS, MAX_NUMBER
from .backend import MAX_STATE_BYTES

__all__ = [
    "ROUNDS_BETWEEN_FAILOVERS",
    "SCHEMA",
    "Admission",
    "Assigned",
    "Change",
    "Document",
    "Leader",
    "Master",
    "Member",
    "Record",
    "decode",
    "encode",
    "place",
    "prepare",
]

SCHEMA = 1

ROUNDS_BETWEEN_FAILOVERS = 10**6
"""No store loses as many rounds as this in a failover."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Nodes = Annotated[int, msgspec.Meta(ge=1, le=10**6)]
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9a-zA-Z_-]*$")]
Address = Annotated[str, msgspec.Meta(max_length=255)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400.0)]
Rank = Annotated[int, msgspec.Meta(ge=-1, le=10**6)]
LabelName = Annotated[str, msgspec.Meta(max_length=32, pattern=r"^[0-9A-Za-z._-]+\Z")]
LabelValue = Annotated[str, msgspec.Meta(max_length=63, pattern=r"^[0-9A-Za-z._-]+\Z")]
Admission = Literal["immediate", "deferred"]
Wall = Annotated[float, msgspec.Meta(ge=0, le=2**37)]
"""Seconds since 1970 by the wall clock of the machine that wrote it; 0 where it did not say.

It is told to people and decides nothing: no two machines need agree on it.
"""


class Leader(msgspec.Struct, frozen=True, omit_defaults=True):
    """The node that closes rounds. ``interval`` is the longest time between two of its beats."""

    node: Name
    interval: Seconds
    rank: Rank = -1
    """Its rank in the completed round; those who follow it look at its beat most often."""
    slot: Count = 0
    """Where it beats: its slot, or 0 for one that led before it had one."""
    last_call: Annotated[float, msgspec.Meta(ge=0, le=86400.0)] = 0.0
    """How long its last calls are (seconds), for people; 0 where it did not say."""


class Master(msgspec.Struct, frozen=True):
    """Where rank 0 has opened the store of the workers for this round."""

    host: Address
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why the completed round has to be formed anew: how many nodes did what."""

    arrived: Count = 0
    returned: Count = 0
    left: Count = 0
    lost: Count = 0
    surplus: Count = 0
    """How many participants are more than the run may have since it was scaled down."""

    def __str__(self) -> str:
        parts = []
        for count, what in (
            (self.lost, "lost"),
            (self.left, "left"),
            (self.returned, "came back"),
            (self.arrived, "waiting to join"),
            (self.surplus, "too many since the run was scaled down"),
        ):
            if count:
                parts.append(f"{count} node{'s' if count > 1 else ''} {what}")
        return ", ".join(parts) or "the round is formed anew"


_MARK = 4
"""Letters of a node's name that tell whether it is another's ticket, which would be an error."""


def place(ticket: int, node: str) -> str:
    """A word of a document's places: a ticket, and how the name of its node begins."""
    return f"{ticket}{node[:_MARK]:_<{_MARK}}"


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """The shared state of a run. However many the nodes are, it stays about a kilobyte."""

    schema: Annotated[int, msgspec.Meta(ge=1)]
    epoch: Name
    """A random name of this life of the run: a store that lost its memory has another."""
    version: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    write: Name
    """A random name of this very write, so that a writer recognises its own."""
    min_nodes: Nodes
    max_nodes: Nodes
    leader: Leader | None = None
    round: Count = 0
    """The last completed round; 0 where none has completed yet."""
    nonce: Name = ""
    """The name under which this round's assignment is published."""
    size: Count = 0
    upto: Count = 0
    """The roster's records up to this ticket are contained in what the nonce names."""
    chunks: Annotated[int, msgspec.Meta(ge=0, le=10**4)] = 0
    places: Annotated[str, msgspec.Meta(max_length=10**5)] = ""
    """Who has which rank, where they are few: it spares each node a request. A word a rank, made
    by :func:`place`. Who comes to read when they are no longer here finds a piece."""
    gone: Count = 0
    """How many participants of the round before had been lost or had left when this completed."""
    master: Master | None = None
    change: Change | None = None
    closed: bool = False
    rank_policy: Name = ""
    """How ranks are given out, for the whole run; nothing for ``sticky``."""
    admission: Admission = "immediate"
    """Whether arrivals alone are a reason for another round, or only after a checkpoint."""
    scaled: Count = 0
    """How often an operator has changed the limits: nodes take them over, whatever their own."""
    after: Count = 0
    """The rounds of this life of the run are numbered above this, the last of the life before."""
    since: Wall = 0.0
    """When the round completed, for people."""

    @property
    def consistent(self) -> bool:
        """Whether its fields agree with each other."""
        if self.min_nodes > self.max_nodes:
            return False
        if self.round == 0:
            return self.size == 0 and not self.nonce and not self.places
        if self.places and len(self.places.split()) != self.size:
            return False
        fits = self.size <= self.max_nodes or self.scaled > 0
        return bool(self.nonce) and self.chunks > 0 and self.size > 0 and fits

    def follows(self, before: Document) -> bool:
        """Whether a store that was at ``before`` can be here now without having lost anything."""
        if self.version <= before.version:
            return self.version == before.version and self.write == before.write
        if self.round == before.round:
            return self.nonce == before.nonce and self.closed >= before.closed
        return self.round > before.round and not before.closed

    def place_of(self, ticket: int, node: str) -> Assigned | None:
        """The place that is listed for a ticket, if any: of another node where that is wrong."""
        for rank, word in enumerate(self.places.split()):
            if word[:-_MARK] == str(ticket):
                return Assigned(node if word == place(ticket, node) else word[-_MARK:], rank)
        return None

    def next_round(self, failovers: int) -> int:
        """The number of the next round, above those that ``failovers`` of the store may have lost.

        Two groups of nodes could hold the same number otherwise: those that knew of a round
        before it was lost, and those of another that is formed in its place.
        """
        return max(self.round, self.after, failovers * ROUNDS_BETWEEN_FAILOVERS) + 1

    @property
    def full(self) -> bool:
        """Whether the completed round stands and has no room."""
        return self._stands and self.size >= self.max_nodes

    @property
    def admits(self) -> bool:
        """Whether who arrives now can be in a round without others' leave or a checkpoint."""
        return not self.full and not (self._stands and self.admission == "deferred")

    @property
    def _stands(self) -> bool:
        return self.round > 0 and self.change is None


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the roster: a node arrived, came back, or left."""

    kind: Literal["enter", "leave"]
    node: Name
    """The node's incarnation: random, never used again."""
    addr: Address
    pid: Count
    local_id: Count
    interval: Seconds
    """The longest time between two of its beats while nothing is wrong."""
    id: Name
    """A random name of this record, so that a writer recognises its own."""
    number: Count = 0
    """Counts this node's records: one that was sent before another may arrive after it."""
    round: Count = 0
    rank: Rank = -1
    slot: Count = 0
    """Where the node beats: its first ticket, which its first record does not know yet (0)."""
    labels: Annotated[
        tuple[tuple[LabelName, LabelValue], ...], msgspec.Meta(max_length=MAX_LABELS)
    ] = ()
    """Where it stands, outermost first, where a rank policy may want to know."""
    node_number: Annotated[int, msgspec.Meta(ge=-1, le=MAX_NUMBER)] = -1
    """The number that its scheduler gave it, likewise; -1 for none."""
    since: Wall = 0.0
    """When the node wrote this, for people."""

    def __str__(self) -> str:
        return f"{self.addr}_{self.pid}_{self.local_id}"


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One node of the roster as a leader hands it on: a participant, or one that waits (-1)."""

    ticket: Count
    rank: Rank
    record: Record


class Assigned(msgspec.Struct, frozen=True):
    """What one node finds under its ticket once a round has completed."""

    node: Name
    rank: Annotated[int, msgspec.Meta(ge=0, le=10**6)]


class _Schema(msgspec.Struct, frozen=True):
    schema: int


T = TypeVar("T")

_DECODERS: dict[object, msgspec.json.Decoder[Any]] = {}


def prepare(kind: object) -> None:
    """Make the decoder of a type; to be called when the type's module is loaded.

    msgspec finds out about a type when it first decodes one. Where two threads are the first
    at once the second one sees half of it, and the process crashes (msgspec 0.22).
    """
    _DECODERS[kind] = msgspec.json.Decoder(kind)


for _kind in (Document, Record, Assigned, list[Member], _Schema):
    prepare(_kind)


def encode(value: object) -> bytes:
    """Encode a record as JSON."""
    return msgspec.json.encode(value)


def decode(kind: type[T], data: bytes, where: str) -> T:
    """Decode what a store held.

    Args:
        kind: The record type, or a list of it, that was prepared.
        data: The bytes that were read.
        where: What they are, for the error.

    Raises:
        RendezvousStateError: The bytes are something else, or too many.
    """
    if len(data) > MAX_STATE_BYTES:
        raise RendezvousStateError(
            f"{where} holds {len(data)} bytes, more than the {MAX_STATE_BYTES} that rdzv reads. "
            "Something else has written there; use another run id."
        )
    try:
        if "schema" in getattr(kind, "__struct_fields__", ()):
            _check_schema(data, where)
        value: T = _DECODERS[kind].decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        shown = data[:40]
        raise RendezvousStateError(
            f"{where} does not hold what rdzv writes there ({str(exc)[:200]}); it begins with "
            f"{shown!r}. Another program, or torch's own backend, may be using the same run id; "
            "use another."
        ) from exc
    if isinstance(value, Document) and not value.consistent:
        raise RendezvousStateError(f"{where} contradicts itself; use another run id: {value}")
    return value


def _check_schema(data: bytes, where: str) -> None:
    # A newer version may have changed any other field: look at this one alone first.
    found = _DECODERS[_Schema].decode(data).schema
    if found > SCHEMA:
        raise RendezvousStateError(
            f"{where} was written by a newer rdzv (schema {found}, this one reads up to "
            f"{SCHEMA}). Install the same version of rdzv on every node of the run."
        )
