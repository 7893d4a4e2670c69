"""Get and set: what ``RendezvousBackend`` promises of the state and of its tokens."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv.testing.linearizability import Operation, contradiction

from .base import Contract, require
from .harness import each, is_connection_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.dynamic_rendezvous import RendezvousBackend, Token

    from .harness import Run

__all__ = ["StateContract", "record", "written"]

_WRITERS = 32
_WRITES = 5
"""Attempts to write of each of the concurrent writers."""

_WRONG_TOKENS: tuple[object, ...] = (
    "",
    "x",
    b"",
    b"\x00\xff",
    0,
    -1,
    10**12,
    3.5,
    (),
    [],
    {},
    object(),
    False,
)


def written(client: RendezvousBackend, state: bytes, token: Token | None = None) -> Token:
    """Write what has to be written; the token."""
    result = client.set_state(state, token)
    require(
        result is not None and len(result) == 3 and result[2] is True,
        f"set_state with the newest token ({token!r}) did not win: it returned {_short(result)}",
    )
    if result is None:
        raise AssertionError
    require(result[0] == state, f"set_state won, and returned another state: {_short(result)}")
    return result[1]


def _stored(client: RendezvousBackend) -> bytes | None:
    found = client.get_state()
    return None if found is None else found[0]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _lost(client: RendezvousBackend, token: object, now: bytes | None, what: str) -> Token | None:
    """Write with a token that names nothing; the token that was returned."""
    try:
        result = client.set_state(b"must not be stored", token)
    except Exception as exc:
        if is_connection_error(exc):
            raise
        why = f"set_state with {what} raised {type(exc).__name__}: {exc}; it is to lose"
        raise AssertionError(why) from exc
    require(
        result is None or result[2] is False,
        f"set_state with {what} was told that it won: {_short(result)}",
    )
    require(
        _stored(client) == now, f"set_state with {what} has changed what is stored, and had lost"
    )
    if now is None:
        return None
    require(result is not None, f"set_state with {what} returned None, although a state is stored")
    if result is None:
        raise AssertionError
    require(result[0] == now, f"set_state with {what} lost and returned {_short(result[0])}")
    return result[1]


class StateContract(Contract):
    """Get and set, alone and by many at once."""

    group = "state"

    def test_nothing_before_the_first_write(self, run: Run) -> None:
        """A run that nobody has written has no state: get_state returns None."""
        require(run.client().get_state() is None, "get_state of a new run returned a state")

    def test_what_is_written_is_read_by_all(self, run: Run) -> None:
        """A state is returned byte for byte to every client once the write has returned."""
        one, two = run.clients(2)
        token = None
        for state in (b"first", bytes(range(256)) * 16, "ü€".encode(), b"\n", b"0", b'{"a": 1}'):
            token = written(one, state, token)
            for client in (two, one, run.client()):
                found = _stored(client)
                require(found == state, f"{_short(state)} was written, {_short(found)} is read")

    def test_the_largest_state_is_kept(self, run: Run) -> None:
        """A state of 1 MiB, the most that rdzv reads, is kept byte for byte."""
        one, two = run.clients(2)
        state = random.Random(1).randbytes(MAX_STATE_BYTES)  # noqa: S311 - no secret
        token = written(one, state)
        require(_stored(two) == state, "another client reads other bytes")
        written(one, b"small again", token)
        require(_stored(two) == b"small again", "a small state after it is not read")

    def test_the_out_of_band_view_agrees(self, run: Run) -> None:
        """A write that won is in the store itself, and one that lost is not."""
        raw = run.deployment.out_of_band("read_raw")
        one, two = run.clients(2)
        require(raw(run.id) is None, "before the first write the store has something of the run")
        token = written(one, b"first")
        first = raw(run.id)
        require(first is not None, "a write won, and nothing of it is in the store")
        two.set_state(b"late", None)
        require(raw(run.id) == first, "a write that lost has changed what is in the store")
        written(one, b"second", token)
        require(raw(run.id) != first, "a write won, and the store holds what it held before")

    def test_without_a_token_a_write_only_creates(self, run: Run) -> None:
        """With no token a write wins only where nothing is stored, and else learns what is."""
        one, two = run.clients(2)
        written(one, b"first")
        for client in (one, two):
            token = _lost(client, None, b"first", "no token where a state is stored")
        written(two, b"second", token)

    def test_a_token_wins_once(self, run: Run) -> None:
        """A token names one version: it wins while that one is stored, and never again."""
        one, two = run.clients(2)
        old = written(one, b"first")
        written(one, b"second", old)
        newer = _lost(one, old, b"second", "a stale token")
        written(one, b"third", newer)
        _lost(one, old, b"third", "a token that is older still")
        found = two.get_state()
        if found is None:
            raise AssertionError("get_state returned None, although a state is stored")
        written(two, b"fourth", found[1])
        _lost(one, newer, b"fourth", "a token that was stale for another client's write")

    def test_a_token_of_a_read_wins(self, run: Run) -> None:
        """The token of a read names what was read: it wins, unless another write came first."""
        one, two = run.clients(2)
        written(one, b"first")
        reads = [client.get_state() for client in (one, two)]
        if None in reads:
            raise AssertionError("get_state returned None, although a state is stored")
        tokens = [found[1] for found in reads if found]
        written(two, b"second", tokens[1])
        _lost(one, tokens[0], b"second", "the token of a read before another's write")

    def test_a_foreign_token_loses(self, run: Run) -> None:
        """A token that this run never gave out neither wins nor creates, and raises nothing."""
        other, one = run.client(), type(run)(run.deployment).client()
        token = None
        for number in range(4):
            token = written(other, b"other %d" % number, token)
        _lost(one, token, None, "a token of another run, where nothing is stored")
        written(one, b"first")
        _lost(one, token, b"first", "a token of another run")

    def test_a_token_of_the_wrong_type_loses(self, run: Run) -> None:
        """A token of a type that the backend never gives out loses, and raises nothing."""
        client = run.client()
        for token in _WRONG_TOKENS:
            _lost(client, token, None, f"the token {token!r}, where nothing is stored")
        written(client, b"first")
        for token in _WRONG_TOKENS:
            _lost(client, token, b"first", f"the token {token!r}")

    def test_the_same_bytes_again_are_a_new_version(self, run: Run) -> None:
        """When a state returns (A, B, A), the token of the first A does not win (ABA)."""
        one, two = run.clients(2)
        first = written(one, b"A")
        token = written(two, b"B", first_of(two)[1])
        written(two, b"A", token)
        _lost(one, first, b"A", "the token of the first A, after A, B, A")
        token = first_of(one)[1]
        token = written(one, b"A", token)
        _lost(two, first, b"A", "the token of the first A, after A was replaced by A")

    def test_of_two_that_write_the_same_bytes_one_wins(self, run: Run) -> None:
        """Of writers that replace one version by equal bytes exactly one is told that it won."""
        one, two = run.clients(2)
        for create in (True, False):
            tokens = [None if create else first_of(client)[1] for client in (one, two)]
            results = [
                client.set_state(b"same", token)
                for client, token in zip((one, two), tokens, strict=True)
            ]
            won = [result is not None and result[2] for result in results]
            require(won == [True, False], f"one after the other, they were told: {won}")
        for _ in range(10):
            both = [(client, first_of(client)[1]) for client in (one, two)]
            outcomes = each(
                both, lambda pair: pair[0].set_state(b"same", pair[1]), run.limit, "set_state"
            )
            told = [result is not None and result[2] for result in outcomes]
            require(sorted(told) == [False, True], f"at once, they were told: {told}")

    def test_many_writers_are_linearizable(self, run: Run) -> None:
        """What 32 concurrent writers are told is explained by one register, one after another."""
        clients = run.clients(_WRITERS)
        histories = each(
            enumerate(clients),
            lambda numbered: record(f"writer {numbered[0]}", lambda: numbered[1], _WRITES),
            run.limit,
            "32 writers",
        )
        require_linearizable(
            [one for history in histories for one in history], run.client().get_state()
        )


def first_of(client: RendezvousBackend) -> tuple[bytes, Token]:
    """The state and its token, where there has to be one."""
    found = client.get_state()
    if found is None:
        raise AssertionError("get_state returned None, although a state is stored")
    return found


def record(
    name: str,
    client: Callable[[], RendezvousBackend],
    writes: int,
    patience: Callable[[], None] | None = None,
) -> list[Operation]:
    """Read and write now and then as one client; what it was told.

    Args:
        name: Names the client, and makes its values its own.
        client: The client to use for the next operation.
        writes: How often it tries to write.
        patience: Called after an operation failed for want of a connection; where
            there is none, the failure is raised.
    """
    history: list[Operation] = []
    random_ = random.Random(name)  # noqa: S311 - no secret
    number = 0
    known: tuple[bytes, Any] | None = None
    while number < writes:
        began = time.monotonic()
        new = expected = None
        try:
            if known is None or random_.random() < 0.3:
                known = client().get_state()
                seen = known and known[0]
                history.append(Operation(name, began, time.monotonic(), seen))
                if known is not None:
                    continue
            number += 1
            began = time.monotonic()
            new, expected = f"{name}, {number}".encode(), known and known[0]
            result = client().set_state(new, known and known[1])
            ended = time.monotonic()
            if result is None:
                raise AssertionError("set_state returned None, although a state is stored")
            known = result[0], result[1]
            history.append(Operation(name, began, ended, result[0], expected, new, result[2]))
        except Exception as exc:
            if patience is None or not is_connection_error(exc):
                raise
            if new is not None:
                ended = time.monotonic()
                history.append(Operation(name, began, ended, None, expected, new, None))
            known = None
            patience()
    return history


def require_linearizable(history: list[Operation], now: tuple[bytes, Token] | None) -> None:
    """Break the promise unless one register explains the history and what is stored ``now``."""
    at = time.monotonic()
    last = Operation("afterwards", at, at, now and now[0])
    won = sum(1 for each_ in history if each_.won)
    require(won, "nobody won")
    stuck = contradiction([*history, last])
    if stuck is not None:
        shown = "; ".join(str(each_) for each_ in stuck[:6])
        require(False, f"no order of the operations explains what was told. Next would be: {shown}")
