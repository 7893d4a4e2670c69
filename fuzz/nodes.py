"""Targets: a node whose store answers whatever an adversary likes."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from fuzz.stored import Holder, Repeatable, check_message, state
from fuzz.values import EPOCH, ME, assigned, document, members, mutated, record
from rdzv.dynamic_rendezvous import messages as msg
from rdzv.dynamic_rendezvous.document import Document, Master, Record, decode, encode
from rdzv.dynamic_rendezvous.leader import Settings, amend
from rdzv.dynamic_rendezvous.machine import Machine
from rdzv.dynamic_rendezvous.perform import PERFORM, read_whole_roster
from rdzv.dynamic_rendezvous.phases import Phase
from rdzv.dynamic_rendezvous.roster import DocumentSession
from rdzv.errors import RendezvousConnectionError, RendezvousStateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzz.source import Source
    from rdzv.dynamic_rendezvous.backend import Session

__all__ = ["machine", "over", "over_get_and_set"]

_MOST_ACTIONS = 1000
"""Actions that one event may lead to, its answers' included; more is a node that never rests."""

_ROUND = ("nonce", "size", "chunks", "places", "upto", "gone", "master")
_TOGETHER = (_ROUND, _ROUND, ("leader",), ("change",), ("master",), ("closed",), ())
"""Fields of the document that change together where a run goes on."""


def _node(source: Source) -> Machine:
    names = (f"w{number}" for number in itertools.count())
    me = Record("enter", ME, "host", 1, 0, 1.0, "")
    low = source.number(1, 3)
    settings = Settings(low, low + source.number(0, 2), source.pick((0.0, 1.0)), 1.0, 3)
    return Machine(settings, me, lambda: next(names), lambda: 0.5)


class _BrokenError(Exception):
    """The connection broke at an action."""


def _event(source: Source, node: Machine, opening: int) -> msg.Stimulus:
    """What happens to a node from outside, as far as its driver lets it happen."""
    if opening and source.flag():
        return msg.MasterOpened(Master("host", source.number(1, 3)))
    if node.phase in (Phase.IDLE, Phase.MEMBER) and source.number(0, 3):
        return msg.Join()
    way = source.number(0, 23)
    if way > 9:
        return msg.Tick()
    rare = (
        *(msg.Look(), msg.Touch(), msg.Interrupted(), msg.Join(), msg.Leave(), msg.Close()),
        *(msg.Close(1), msg.Withdraw(accept=True), msg.Withdraw(accept=True)),
        msg.Withdraw(accept=False),
    )
    event = rare[way]
    if isinstance(event, msg.Join) and node.phase not in (Phase.IDLE, Phase.MEMBER, Phase.LEFT):
        return msg.Tick()  # A caller waits for one call to end before the next.
    return event


def drive(
    source: Source,
    node: Machine,
    answer: Callable[[msg.Action], msg.Stimulus | None],
    unasked: Callable[[], list[msg.Action] | msg.Stimulus],
) -> None:
    """Take a node through events; only a state error may end it, and every event does end.

    Args:
        source: Decides what happens.
        node: The node.
        answer: Carries out an action.
        unasked: What the threads that wait for a change come up with.
    """
    now, opening, broken = 100.0, 0, False
    for _ in range(source.number(1, 25)):
        now += source.pick((0.0, 0.3, 1.0, 4.0, 100.0))
        breaks_at = source.number(0, 20)
        left: list[msg.Action] = []
        try:
            if source.number(0, 3) == 0:
                event = unasked()
            else:
                event = msg.Interrupted() if broken else _event(source, node, opening)
                broken = False
            opening -= isinstance(event, msg.MasterOpened)
            left = event if isinstance(event, list) else node.on(event, now)
            for done in itertools.count():
                assert done < _MOST_ACTIONS, f"the node never rests after {event}"
                if not left:
                    break
                if done == breaks_at:
                    raise _BrokenError
                action, *left = left
                opening += isinstance(action, msg.OpenMaster)
                if isinstance(action, msg.SwapDocument):
                    _check_written(action.document)
                told = answer(action)
                if told is not None:
                    left = node.on(told, now) + left
        except (RendezvousStateError, RendezvousConnectionError) as exc:
            check_message(exc)
            return
        except _BrokenError:
            broken = True
            opening += sum(isinstance(action, msg.OpenMaster) for action in left)
        due = node.due()
        assert due is None or isinstance(due, float)


def _check_written(written: Document) -> None:
    assert written.consistent
    # Numbers at the end of their range are refused by whoever reads them next.
    decode(Document, encode(written), "What this node writes")


def machine(source: Source) -> None:
    """Any answers of the right type lead a machine nowhere but to a state error."""
    node = _node(source)

    def answer(action: msg.Action) -> msg.Stimulus | None:
        match action:
            case msg.Read():
                return _document_read(source, node)
            case msg.SwapDocument():
                kept = action.document if source.flag() else _stored(source, node)
                return msg.Swapped(source.flag(), kept, source.number(1, 3))
            case msg.Enter():
                return msg.Entered(source.pick((1, 2, 3, 2**53, 2**62)), action.record)
            case msg.ReadPiece():
                return msg.PieceRead(action.nonce, assigned(source) if source.flag() else None)
            case msg.ReadRoster():
                return msg.RosterRead(action.nonce, members(source) if source.flag() else None)
            case msg.ReadLog():
                return _log_read(source, action.after)
            case msg.ReadBeats():
                return msg.BeatsRead(_beats(source, list(action.slots)))
            case msg.Beat():
                return msg.Beaten(_beats(source, [action.slot, 1, 2, 3]))
        return None

    def unasked() -> msg.Stimulus:
        return (
            _document_read(source, node)
            if source.flag()
            else _log_read(source, source.number(0, 4))
        )

    drive(source, node, answer, unasked)


def _stored(source: Source, node: Machine) -> Document:
    """A document that the node may well go on with, or any."""
    way = source.number(0, 9)
    settings = node.settings
    limits = (settings.min_nodes, settings.max_nodes)
    known = node.document
    if way == 0:
        return document(source)
    if known is None or way <= 3:
        return msgspec.structs.replace(document(source, limits), epoch=EPOCH)
    other = document(source, limits)
    fields = source.pick(_TOGETHER)
    changed = amend(known, other.write, **{field: getattr(other, field) for field in fields})
    if fields is _ROUND and other.round:
        changed = msgspec.structs.replace(changed, round=known.round + 1)
    # Nothing else gets past the decoder.
    return changed if changed.consistent and changed.version <= 2**53 else known


def _document_read(source: Source, node: Machine) -> msg.DocumentRead:
    if source.number(0, 19) == 0:
        return msg.DocumentRead(None, None)
    return msg.DocumentRead(_stored(source, node), source.number(1, 3))


def _log_read(source: Source, after: int) -> msg.LogRead:
    lines: list[tuple[int, Any]] = []
    for ticket in source.times(4):
        line = source.pick((None, False, record(source), record(source)))
        lines.append((after + 1 + ticket, line))
    return msg.LogRead(lines)


def _beats(source: Source, slots: list[int]) -> dict[int, int]:
    return {slot: source.number(0, 3) for slot in slots if source.number(0, 4)}


def over_get_and_set(source: Source) -> None:
    """The same with a real session, below which somebody else overwrites the state."""
    backend = Holder(state(source) if source.flag() else None)

    def corrupt() -> None:
        if backend.state is not None:
            backend.replace(mutated(source, backend.state))

    over(source, DocumentSession(backend, threading.Lock(), Repeatable()), corrupt)


def over(
    source: Source,
    session: Session,
    corrupt: Callable[[], None],
    bounded: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> None:
    """Take a node through events on a real session.

    Args:
        source: Decides what happens.
        session: The session.
        corrupt: Is called now and then, to overwrite what is stored.
        bounded: Runs what may hang.
    """
    node = _node(source)
    calm = source.number(0, 20)
    """Requests until the next corruption."""

    def answer(action: msg.Action) -> msg.Stimulus | None:
        nonlocal calm
        perform = PERFORM.get(type(action))
        if perform is None:
            return None
        calm -= 1
        if calm == 0:
            corrupt()
            calm = source.number(1, 20)
        told: msg.Stimulus | None = bounded(lambda: perform(session, action, node))
        return told

    def unasked() -> list[msg.Action]:
        if node.leading is not None and source.flag():
            return [msg.ReadLog(node.leading.roster.complete_upto)]
        bounded(lambda: read_whole_roster(session, node.document, node.token))
        return [msg.Read()]

    drive(source, node, answer, unasked)
