"""Targets: whatever bytes stand under the keys of a c10d store."""

from __future__ import annotations

import functools
import secrets
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from fuzz import nodes
from fuzz.stored import check_message, operation, state, within
from fuzz.values import ODD, document, hostile, members, record
from rdzv.dynamic_rendezvous.document import encode
from rdzv.errors import RendezvousConnectionError, RendezvousStateError
from rdzv_c10d.backend import C10dRendezvousBackend
from rdzv_c10d.session import StoreSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzz.source import Source
    from rdzv.dynamic_rendezvous.backend import Session

__all__ = ["get_and_set", "hash_store", "node_on_a_store", "store_session"]

_NUMBERS = (b"0", b"1", b"-1", b"--5", b"1x", b" 7", b"4096", b"9" * 30, b"-", b"?", b"", b"\xff")
_LARGEST = (str(2**63 - 1).encode(), str(-(2**63)).encode(), "\u0663".encode(), b"1" * 200)


def hash_store(source: Source) -> None:
    """The target for atheris: a store in this process."""
    from torch.distributed import HashStore

    store = HashStore()
    store_session(source, store, store, pushes=False)


def written(source: Source, run: str) -> tuple[str, bytes]:
    """A key of a run, and what somebody else writes there."""
    number = source.number(1, 6)
    below = f"rdzv/{run}/epoch"
    text = {
        f"rdzv/{run}/document/{number}": lambda: _of_chain(source, encode(document(source))),
        f"rdzv/{run}/state/{number}": lambda: _of_chain(source, b64encode(state(source))),
        f"rdzv/{run}/document/hint": lambda: _number(source),
        f"rdzv/{run}/state/hint": lambda: _number(source),
        f"{below}/tickets": lambda: _number(source),
        f"{below}/beat/{number - 1}": lambda: _number(source),
        f"{below}/record/{number}": lambda: hostile(source, encode(record(source))),
        f"{below}/piece/nonce/{number}": lambda: hostile(source, b'{"node":"me","rank":0}'),
        f"{below}/piece/nonce/roster-0": lambda: hostile(source, encode(members(source))),
    }
    key = source.pick(list(text))
    return key, text[key]()


def _write(source: Source, store: Any) -> None:
    store.set(*written(source, "run"))


def _of_chain(source: Source, value: bytes) -> bytes:
    mark = source.pick((b"0123456789abcdef:", b"0123456789abcdef:", b"short:", b""))
    return source.pick((mark + hostile(source, value), mark + value, b"-"))


def _number(source: Source) -> bytes:
    return source.pick((*_NUMBERS, *_LARGEST, str(source.number(0, 8)).encode(), *ODD[:12]))


def store_session(source: Source, store: Any, writer: Any, *, pushes: bool) -> None:
    """Each call of a session returns or raises a rendezvous error, and none hangs.

    Args:
        source: Decides what is written and called.
        store: The store, on a connection that nobody else uses where it pushes.
        writer: The same store, as somebody else writes to it.
        pushes: See ``StoreSession``.
    """
    run = secrets.token_hex(8)
    calls: list[Callable[[Session], Any]] = []
    for _ in range(source.number(1, 14)):
        if source.flag():
            pair = written(source, run)
            calls.append(lambda _, pair=pair: writer.set(*pair))  # type: ignore[misc]
        else:
            calls.append(operation(source, longest=0.001))

    def use() -> None:
        session = StoreSession(store, run, "the store", pushes=pushes)
        session.attach("epoch")
        for call in calls:
            _expecting_rendezvous_errors(lambda call=call: call(session))  # type: ignore[misc]

    within(use)


def node_on_a_store(source: Source) -> None:
    """A node bears what others write under the keys of its run meanwhile."""
    from torch.distributed import HashStore

    store = HashStore()
    session = StoreSession(store, "run", "the store", pushes=False)
    session.attach("epoch")
    nodes.over(source, session, lambda: _write(source, store), within)


def get_and_set(source: Source) -> None:
    """The same of the backend's own state, behind torch's interface."""
    from torch.distributed import HashStore

    store = HashStore()
    backend = C10dRendezvousBackend(store, "run")
    for _ in source.times(6):
        _write(source, store)
    calls: list[Any] = []
    for _ in range(source.number(1, 4)):
        token = source.pick((None, 1, 2, 3, 0, -1, "foreign", 2**62))
        calls.append(source.pick((backend.get_state, functools.partial(_set, backend, token))))

    def use() -> None:
        for call in calls:
            _expecting_rendezvous_errors(call)

    within(use)


def _set(backend: C10dRendezvousBackend, token: object) -> None:
    answer = backend.set_state(b"state", token)
    assert answer is None or answer[2] is False or answer[0] == b"state"


def _expecting_rendezvous_errors(call: Callable[[], Any]) -> None:
    try:
        call()
    except (RendezvousStateError, RendezvousConnectionError) as exc:
        check_message(exc)
