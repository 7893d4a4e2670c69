"""One function an action: what each means on a session, and what it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import RendezvousConnectionError, RendezvousStateError
from .backend import MAX_RECORDS
from .document import Assigned, Document, Member, Record, decode, encode
from .leadership import Roster
from .messages import (
    Action,
    Attach,
    Beat,
    Beaten,
    BeatsRead,
    Bury,
    DocumentRead,
    Enter,
    Entered,
    Forget,
    LogRead,
    PieceRead,
    Publish,
    Read,
    ReadBeats,
    ReadLog,
    ReadPiece,
    ReadRoster,
    RosterRead,
    Stimulus,
    SwapDocument,
    Swapped,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Session, Token
    from .machine import Machine

__all__ = [
    "PERFORM",
    "document_read",
    "fold_log",
    "forget_life",
    "load_roster",
    "read_whole_roster",
    "swap_document",
]

_BURIED = b"-"

_TRIES = 3


def _decode_document(data: bytes, token: object) -> Document:
    return decode(Document, data, f"The document of the run (version {token})")


def document_read(data: bytes, token: Token) -> DocumentRead:
    """What was read, as the machine is told of it."""
    return DocumentRead(_decode_document(data, token), token)


def _read(session: Session, action: Read, machine: Machine) -> Stimulus:
    found = session.read(machine.token)
    return DocumentRead(None, None) if found is None else document_read(*found)


def _swap(session: Session, action: SwapDocument, machine: Machine) -> Stimulus:
    return swap_document(session, action)


def swap_document(session: Session, action: SwapDocument) -> Swapped:
    """Replace the document, once more where it was refused for a failover alone."""
    data = encode(action.document)
    swap = session.swap(data, action.token)
    stored = _decode_document(swap.document, swap.token)
    refused = not swap.won and swap.failovers > 0 and swap.token == action.token
    if refused and stored.round == action.document.round:
        # For a failover, and by nobody else's write. Only a round would need another number.
        swap = session.swap(data, action.token)
        stored = _decode_document(swap.document, swap.token)
    if swap.won and stored != action.document:
        # Going on from it would be to write the same again and again.
        raise RendezvousStateError(
            f"The backend says that it has stored version {action.document.version} of the run's "
            f"document, and has stored something else (version {stored.version})."
        )
    return Swapped(swap.won, stored, swap.token, swap.failovers)


def _attach(session: Session, action: Attach, machine: Machine) -> None:
    session.attach(action.epoch)


def _enter(session: Session, action: Enter, machine: Machine) -> Stimulus:
    return Entered(session.enter(encode(action.record)), action.record)


def _read_piece(session: Session, action: ReadPiece, machine: Machine) -> Stimulus:
    (data,) = session.fetch(action.nonce, [str(action.ticket)])
    assigned = None
    if data is not None:
        assigned = decode(Assigned, data, f"The rank for ticket {action.ticket}")
    return PieceRead(action.nonce, assigned)


def _chunk(number: int) -> str:
    return f"roster-{number}"


def _read_roster(session: Session, action: ReadRoster, machine: Machine) -> RosterRead:
    return RosterRead(action.nonce, _members(session, action))


def _members(session: Session, action: ReadRoster) -> list[Member] | None:
    chunks = session.fetch(action.nonce, [_chunk(n) for n in range(action.chunks)])
    members: list[Member] = []
    for number, data in enumerate(chunks):
        if data is None:
            return None
        members += decode(list[Member], data, f"Piece {number} of the roster")
    return members


def _read_log(session: Session, action: ReadLog, machine: Machine) -> LogRead:
    return _log(session, action)


def _log(session: Session, action: ReadLog) -> LogRead:
    lines: list[tuple[int, Record | bool | None]] = []
    for ticket, data in session.records(action.after):
        if data is None:
            lines.append((ticket, None))
        elif data == _BURIED:
            lines.append((ticket, False))
        else:
            lines.append((ticket, decode(Record, data, f"The roster's record {ticket}")))
    return LogRead(lines, more=len(lines) >= MAX_RECORDS)


def _read_beats(session: Session, action: ReadBeats, machine: Machine) -> Stimulus:
    return BeatsRead(session.beats(action.slots))


def _beat(session: Session, action: Beat, machine: Machine) -> Stimulus:
    return Beaten(session.beat(action.slot))


def _publish(session: Session, action: Publish, machine: Machine) -> None:
    pieces = {str(ticket): encode(assigned) for ticket, assigned in action.assigned.items()}
    pieces |= {_chunk(n): encode(members) for n, members in enumerate(action.chunks)}
    session.publish(action.nonce, pieces)


def _bury(session: Session, action: Bury, machine: Machine) -> None:
    session.bury(action.ticket)


def _forget(session: Session, action: Forget, machine: Machine) -> None:
    names = [str(ticket) for ticket in action.tickets] + [_chunk(n) for n in range(action.chunks)]
    session.forget(action.after, action.upto, action.nonce, names)


PERFORM: dict[type[Action], Callable[..., Stimulus | None]] = {
    Read: _read,
    SwapDocument: _swap,
    Attach: _attach,
    Enter: _enter,
    ReadPiece: _read_piece,
    ReadRoster: _read_roster,
    ReadLog: _read_log,
    ReadBeats: _read_beats,
    Beat: _beat,
    Publish: _publish,
    Bury: _bury,
    Forget: _forget,
}


def read_whole_roster(session: Session, document: Document | None, token: Token) -> Roster:
    """The roster as it is now, for one that does not lead and has seen this document."""
    if document is None:
        return Roster()
    for _ in range(_TRIES):
        roster = load_roster(session, document)
        if roster is not None:
            fold_log(session, roster)
            return roster
        found = session.read(token)
        if found is not None:
            document = _decode_document(*found)
    raise RendezvousConnectionError("The roster was replaced again and again while it was read.")


def load_roster(session: Session, document: Document) -> Roster | None:
    """What the document's round has handed on; ``None`` where another has completed meanwhile."""
    roster = Roster()
    if document.round > 0:
        members = _members(session, ReadRoster(document.nonce, document.chunks))
        if members is None:
            return None
        roster.load(members, document.upto)
    return roster


def forget_life(session: Session, document: Document, roster: Roster) -> None:
    """Free what a life of the run that is over has left: records, ranks, what was handed on."""
    session.attach(document.epoch)
    tickets = [str(entry.ticket) for entry in roster.entries.values()]
    names = [*tickets, *(_chunk(n) for n in range(document.chunks))]
    session.forget(document.upto, roster.seen, document.nonce, names)


def fold_log(session: Session, roster: Roster) -> None:
    """Take in what has been written into the log since."""
    log, after = LogRead((), more=True), roster.complete_upto
    while log.more:
        log = _log(session, ReadLog(after))
        for after, record in log.lines:
            if isinstance(record, bool):
                roster.fill(after)
            else:
                roster.fold(after, record, 0.0)
