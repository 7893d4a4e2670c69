"""Servers that are gone, slow or silent, connections that break, and bytes that are no state."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from rdzv import events
from rdzv.dynamic_rendezvous import SessionBackend
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv.errors import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from .base import Contract, require
from .harness import (
    Run,
    background,
    each,
    eventually,
    finished,
    is_connection_error,
    is_state_error,
)
from .nodes import node
from .rounds import complete, joined, live
from .state import first_of, record, require_linearizable, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .deployment import Faults

__all__ = ["TroubleContract"]

_SOON = 1.0
"""``join_timeout`` (seconds) of what is not to succeed."""

_GARBAGE = {
    "a pickle": b"\x80\x04N.",
    "null": b"null",
    "deeply nested JSON": b"[" * 100_000,
    "no text": b"\xff\xfe\x00\x01",
    "JSON of something else": b'{"schema": 1, "write": 7, "tail": "many", "epoch": []}',
    "a newer schema": b'{"schema": 99, "write": "w", "epoch": "e", "version": 1}',
}
_HUGE = b"[" * (MAX_STATE_BYTES + 1)


@contextlib.contextmanager
def _troubled(run: Run) -> Iterator[tuple[Run, Faults]]:
    """The same run, with a server that trouble can be made for."""
    with run.deployment.trouble() as (deployment, faults), Run(deployment, run.id) as inner:
        yield inner, faults


def _refused(run: Run, call: Callable[[], object], what: str) -> None:
    """Call what has to be a connection error, and soon."""
    try:
        answer = run.soon(call, what)
    except Exception as exc:
        if is_connection_error(exc):
            return
        why = f"{what} raised {type(exc).__name__}: {exc}; it is to be a RendezvousConnectionError"
        raise AssertionError(why) from exc
    require(False, f"{what} returned {answer!r}; it is to raise a RendezvousConnectionError")


def _again(run: Run, call: Callable[[], Any], what: str) -> Any:
    """The answer of a call that may be a connection error a few times after an outage."""
    answers: list[Any] = []

    def works() -> bool:
        try:
            answers.append(call())
        except Exception as exc:
            if not is_connection_error(exc):
                raise
            return False
        return True

    run.soon(lambda: eventually(works, run.limit / 2, what), what)
    return answers[0]


class TroubleContract(Contract):
    """What goes wrong between a node and the store, and in it."""

    group = "trouble"

    def test_a_server_that_is_gone_is_a_connection_error(self, run: Run) -> None:
        """Where no server answers, making a client or its first call is a connection error."""
        with _troubled(run) as (inner, faults):
            with faults.during("stop", "start"):
                _refused(
                    inner,
                    lambda: inner.client(join_timeout=_SOON).get_state(),
                    "a client of a server that is gone",
                )
            client = _again(inner, inner.client, "making a client once the server is back")
            require(client.get_state() is None, "once the server is back, a new run has a state")

    def test_what_was_stored_is_there_after_an_outage(self, run: Run) -> None:
        """In an outage calls are connection errors; after it the node goes on with what it had."""
        with _troubled(run) as (inner, faults):
            client = inner.client()
            opened = client.open_session() if isinstance(client, SessionBackend) else None
            token = written(client, b"before")
            with faults.during("cut", "mend"):
                _refused(inner, client.get_state, "get_state during an outage")
                _refused(inner, lambda: client.set_state(b"lost", token), "set_state during it")
                if opened is not None:
                    _refused(inner, lambda: opened.swap(b"lost", None), "swap during an outage")
            if isinstance(client, SessionBackend):
                # The engine opens another session; get and set are a newcomer's.
                session = _again(inner, client.open_session, "open_session() after an outage")
                inner.at_end(session.close)
                found = session.read(None)  # The state, where both are in one place.
                require(
                    found is None or found[0] != b"lost", "a swap of the outage has taken effect"
                )
                found = first_of(inner.client())
            else:
                found = _again(inner, lambda: first_of(client), "get_state after an outage")
            require(found[0] == b"before", f"after the outage {found[0]!r} is stored")

    def test_writes_take_effect_once_whatever_breaks(self, run: Run) -> None:
        """A write whose connection broke took effect once or not at all, and none is lost."""
        with _troubled(run) as (inner, faults):
            over, observer = threading.Event(), run.client()
            started = time.monotonic()
            inner.soon(lambda: inner.client().get_state(), "making a client")
            pause = 2 * (time.monotonic() - started)
            used: list[str] = []

            def break_often() -> None:
                earliest = 0.0
                while not over.wait(0.02):
                    # Clients that are broken before they are made, every time, write nothing;
                    # and several at once are longer in the making than one was.
                    if len(used) >= 2 * len(names) and time.monotonic() >= earliest:
                        used.clear()
                        faults.make("reset")
                        earliest = time.monotonic() + pause

            def write(name: str) -> list[Any]:
                client = [_again(inner, inner.client, "making a client")]

                def reconnect() -> None:
                    client[0] = _again(inner, inner.client, "making a client again")

                def use() -> Any:
                    time.sleep(0.002)  # So that all of it does not fit between two breaks.
                    used.append(name)
                    return client[0]

                return record(name, use, 40, reconnect)

            names = [f"writer {number}" for number in range(4)]
            faults.make("reset")
            breaking = background(break_often)
            try:
                histories = each(names, write, inner.limit, "writers whose connections break")
            finally:
                over.set()
            finished(breaking, inner.limit, "the end of the trouble")
            history = [one for history in histories for one in history]
            last = _again(inner, observer.get_state, "get_state afterwards")
            require_linearizable(history, last)

    def test_an_outage_harms_no_round(self, run: Run) -> None:
        """An outage that is longer than it takes to notice a death evicts nobody."""
        quick = {"keep_alive_interval": run.deployment.interval, "keep_alive_max_attempt": 4}
        with _troubled(run) as (inner, faults):
            nodes = [node(inner, 2, 3, **quick) for _ in range(2)]
            complete(inner, *nodes)
            with faults.during("cut", "mend"):
                time.sleep(8 * run.deployment.interval)
            require(not any(each_.heard(events.Lost) for each_ in nodes), "a node was evicted")
            live(inner, *nodes, node(inner, 2, 3, **quick))

    def test_a_slow_server_harms_no_round(self, run: Run) -> None:
        """With delays below the silence that counts as death, rounds form and nobody is evicted."""
        slow = run.deployment.interval / 4
        quick = {"keep_alive_interval": run.deployment.interval, "keep_alive_max_attempt": 8}
        with _troubled(run) as (inner, faults):
            nodes = [node(inner, 2, 2, **quick) for _ in range(2)]
            with faults.during("delay", "delay", slow):
                complete(inner, *nodes)
                time.sleep(6 * run.deployment.interval)
                require(not any(each_.waiting() for each_ in nodes), "a new round is due")
                require(not any(each_.heard(events.Lost) for each_ in nodes), "a node was evicted")
                complete(inner, *nodes)

    def test_a_silent_server_holds_no_call_up_for_ever(self, run: Run) -> None:
        """Where the server answers nothing, every call of the handler ends by its deadline."""
        with _troubled(run) as (inner, faults):
            nodes = [
                node(inner, 1, 2, close_timeout=_SOON),
                node(inner, 1, 2, close_timeout=_SOON, join_timeout=_SOON),
            ]
            complete(inner, nodes[0])
            with faults.during("freeze", "thaw"):
                for what, call in (
                    ("num_nodes_waiting()", nodes[0].waiting),
                    ("next_rendezvous()", lambda: nodes[1].join().result()),
                    ("set_closed()", nodes[0].handler.set_closed),
                ):
                    try:
                        inner.soon(call, what)
                    except (RendezvousTimeoutError, RendezvousConnectionError):
                        continue
                    asks = what == "num_nodes_waiting()"  # From memory, so it may well know.
                    require(asks, f"{what} succeeded while the server answered nothing")
            _again(inner, lambda: inner.client().get_state(), "get_state once it answers again")

    def test_bytes_that_are_no_state_are_a_state_error(self, run: Run) -> None:
        """Whatever stands in the store is a state or a RendezvousStateError, and is left alone."""
        write = run.deployment.out_of_band("write_raw")
        for name, data in {**_GARBAGE, "more than 1 MiB": _HUGE}.items():
            with Run(run.deployment) as inner:
                write(inner.id, data)
                client = inner.client()
                before = run.deployment.read_raw and run.deployment.read_raw(inner.id)
                _state_or_state_error(inner, client.get_state, f"get_state of {name}")
                if isinstance(client, SessionBackend):
                    session = inner.session(backend=client)
                    _state_or_state_error(inner, lambda s=session: s.read(None), f"read of {name}")  # type: ignore[misc]
                _is_no_state(inner, name)
                after = run.deployment.read_raw and run.deployment.read_raw(inner.id)
                require(after == before, f"a node that found {name} has overwritten it")

    def test_a_state_that_is_damaged_later_is_a_state_error(self, run: Run) -> None:
        """Bytes that are no state, written while a round stands, end its calls with that error."""
        write = run.deployment.out_of_band("write_raw")
        nodes = [node(run, 1, 2) for _ in range(2)]
        complete(run, nodes[0])
        write(run.id, _GARBAGE["a pickle"])

        def failed() -> bool:
            try:
                joined(run, nodes[1].join())
                nodes[0].waiting()
            except RendezvousStateError:
                return True
            return False

        eventually(failed, run.limit, "next_rendezvous() or num_nodes_waiting() is a state error")

    def test_more_than_1_mib_is_never_parsed(self, run: Run) -> None:
        """A state above 1 MiB is refused, as it is written or as it is read, and not parsed."""
        client = run.client()
        if isinstance(client, SessionBackend):
            session = run.session(backend=client)
            write: Callable[[], object] = lambda: session.swap(_HUGE, None)  # noqa: E731
        else:
            write = lambda: client.set_state(_HUGE)  # noqa: E731
        try:
            run.soon(write, "writing more than 1 MiB")
        except Exception as exc:
            if not (is_state_error(exc) or is_connection_error(exc)):
                why = f"writing more than 1 MiB raised {type(exc).__name__}: {exc}"
                raise AssertionError(why) from exc
            require(run.client().get_state() is None, "a state was refused, and is stored")
            complete(run, node(run, 1, 1))
            return
        _is_no_state(run, "more than 1 MiB")


def _state_or_state_error(run: Run, call: Callable[[], object], what: str) -> None:
    try:
        run.soon(call, what)
    except Exception as exc:
        if not is_state_error(exc):
            why = f"{what} raised {type(exc).__name__}: {exc}; it is to be a RendezvousStateError"
            raise AssertionError(why) from exc


def _is_no_state(run: Run, name: str) -> None:
    try:
        place = joined(run, node(run, 1, 1).join())
    except RendezvousStateError:
        return
    except (RendezvousClosedError, RendezvousTimeoutError, RendezvousConnectionError) as exc:
        why = f"with {name} in the store next_rendezvous() raised {type(exc).__name__}: {exc}"
        raise AssertionError(why) from exc
    require(False, f"with {name} in the store a node has joined: {place}")
