"""What the machine is told, and what it asks for: the border between deciding and doing."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .backend import Token
    from .document import Assigned, Change, Document, Master, Member, Record

# ---------------------------------------------------------------- stimuli


@dataclass(frozen=True)
class Join:
    """The caller wants to be in the next round."""


@dataclass(frozen=True)
class Withdraw:
    """The caller's time is up. With ``accept`` a round that has completed is still taken."""

    accept: bool


@dataclass(frozen=True)
class Leave:
    """The node leaves the run; the others go on."""


@dataclass(frozen=True)
class Close:
    """The run is to be closed for everybody, unless it has gone on beyond ``last_round``."""

    last_round: int | None = None


@dataclass(frozen=True)
class Look:
    """Somebody wants to know the state of the run without joining it."""


@dataclass(frozen=True)
class Touch:
    """Write the document anew as it is, so that whoever waits for a change looks."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Interrupted:
    """The connection was lost and made anew: what was under way may have happened or not.

    ``since`` is when it was lost (the node's clock, seconds).
    """

    since: float = math.inf


@dataclass(frozen=True)
class DocumentRead:
    """The document as it was read; ``None`` where there is none."""

    document: Document | None
    token: Token


@dataclass(frozen=True)
class Swapped:
    """The outcome of a compare-and-set of the document, and what is stored now."""

    won: bool
    document: Document
    token: Token
    failovers: int = 0


@dataclass(frozen=True)
class Entered:
    """A record of this node stands in the roster under this ticket."""

    ticket: int
    record: Record


@dataclass(frozen=True)
class Beaten:
    """The store has taken this node's beat; the counters of the slots ``along`` came with it."""

    along: Mapping[int, int]


@dataclass(frozen=True)
class PieceRead:
    """This node's place in the round that ``nonce`` names; ``None`` where it has none."""

    nonce: str
    assigned: Assigned | None


@dataclass(frozen=True)
class RosterRead:
    """What a completed round handed on; ``None`` where a part of it is missing."""

    nonce: str
    members: Sequence[Member] | None


@dataclass(frozen=True)
class LogRead:
    """Lines of the roster's log: ``None`` for a hole, ``False`` for one buried or forgotten.

    There may be ``more`` of them.
    """

    lines: Sequence[tuple[int, Record | bool | None]]
    more: bool = False


@dataclass(frozen=True)
class BeatsRead:
    """One look at the beat counters of slots."""

    counts: Mapping[int, int]


@dataclass(frozen=True)
class MasterOpened:
    """A store for the workers of a round was opened on this node."""

    master: Master


@dataclass(frozen=True)
class CheckpointReached:
    """Workers of this round have reached a checkpoint after this leader had asked for one."""

    round: int


Stimulus = (
    Join
    | Withdraw
    | Leave
    | Close
    | Look
    | Touch
    | Tick
    | Interrupted
    | DocumentRead
    | Swapped
    | Entered
    | Beaten
    | PieceRead
    | RosterRead
    | LogRead
    | BeatsRead
    | MasterOpened
    | CheckpointReached
)

# ---------------------------------------------------------------- actions


@dataclass(frozen=True)
class Read:
    """Read the document; answered by ``DocumentRead``."""


@dataclass(frozen=True)
class SwapDocument:
    """Replace the document; answered by ``Swapped``."""

    document: Document
    token: Token | None


@dataclass(frozen=True)
class Attach:
    """From now on everything is below this epoch."""

    epoch: str


@dataclass(frozen=True)
class Enter:
    """Append to the roster; answered by ``Entered``."""

    record: Record


@dataclass(frozen=True)
class ReadPiece:
    """Read the place under ``ticket``; answered by ``PieceRead``."""

    nonce: str
    ticket: int


@dataclass(frozen=True)
class ReadRoster:
    """Read what a completed round handed on; answered by ``RosterRead``."""

    nonce: str
    chunks: int


@dataclass(frozen=True)
class ReadLog:
    """Read the roster's log above a ticket; answered by ``LogRead``."""

    after: int


@dataclass(frozen=True)
class ReadBeats:
    """Look at the beats in these slots; answered by ``BeatsRead``."""

    slots: Sequence[int]


@dataclass(frozen=True)
class Beat:
    """Give a sign of life in a slot; answered by ``Beaten``."""

    slot: int


@dataclass(frozen=True)
class Publish:
    """Store an assignment, before the document names it."""

    nonce: str
    assigned: Mapping[int, Assigned]
    chunks: Sequence[Sequence[Member]]


@dataclass(frozen=True)
class Bury:
    """Fill a hole in the roster."""

    ticket: int


@dataclass(frozen=True)
class Forget:
    """Free what no round needs any more."""

    after: int
    upto: int
    nonce: str
    tickets: Sequence[int]
    chunks: int


@dataclass(frozen=True)
class OpenMaster:
    """Open a store for the workers; answered by ``MasterOpened``, some time later."""


class Refusal(enum.Enum):
    """Why a call cannot be served."""

    CLOSED = "the run is closed"
    SURPLUS = "the run was closed while this node was a spare"
    LEFT = "this node has left the run"


@dataclass(frozen=True)
class Refused:
    """A call cannot be served."""

    refusal: Refusal


@dataclass(frozen=True)
class Joined:
    """This node is in a completed round and knows all about it."""

    round: int
    rank: int
    size: int
    master: Master
    gone: int
    """Participants of the round before that were lost or left."""


@dataclass(frozen=True)
class Waits:
    """A round is running without this node, which waits for the next.

    It is a ``spare`` where the round is full, and ``deferred`` where it is let in at a checkpoint.
    """

    spare: bool
    deferred: bool


@dataclass(frozen=True)
class Called:
    """This leader waits ``seconds`` more for others: ``nodes`` are here, which would do."""

    nodes: int
    seconds: float


@dataclass(frozen=True)
class Ranked:
    """A round was agreed on with this node in it."""

    rank: int
    size: int


@dataclass(frozen=True)
class Withdrawn:
    """This node has left the roster again, and may join later."""


@dataclass(frozen=True)
class Departed:
    """This node has left the run."""


@dataclass(frozen=True)
class Latched:
    """The workers of this node have to be restarted for ``reason``.

    ``change`` is what happened to the round; ``None`` where another one has completed.
    """

    reason: str
    change: Change | None = None


@dataclass(frozen=True)
class Lost:
    """The leader has seen the beat of ``node`` stop for ``silent`` seconds."""

    node: Record
    silent: float


@dataclass(frozen=True)
class TookOver:
    """This node leads from now on; ``instead`` of the node of this name, if any."""

    instead: str | None


@dataclass(frozen=True)
class Deferred:
    """The leader holds up this many nodes that have arrived, until a checkpoint is reached."""

    waiting: int


@dataclass(frozen=True)
class Admitted:
    """The leader has completed a round with nodes that were held up, or would have been."""

    arrived: int
    why: str


FACTS = (
    OpenMaster,
    Refused,
    Waits,
    Called,
    Ranked,
    Joined,
    Latched,
    Lost,
    TookOver,
    Deferred,
    Admitted,
)
"""Actions that are carried out even where the connection breaks at one before them: the machine
has taken its step. ``Withdrawn`` and ``Departed`` speak of what the others could be told."""

Action = (
    Read
    | SwapDocument
    | Attach
    | Enter
    | ReadPiece
    | ReadRoster
    | ReadLog
    | ReadBeats
    | Beat
    | Publish
    | Bury
    | Forget
    | OpenMaster
    | Refused
    | Waits
    | Called
    | Ranked
    | Joined
    | Withdrawn
    | Departed
    | Latched
    | Lost
    | TookOver
    | Deferred
    | Admitted
)
