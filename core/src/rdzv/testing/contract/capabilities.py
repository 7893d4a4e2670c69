"""What a backend offers beyond get and set: what it says and what it does, and the watch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous import SessionBackend, WatchingBackend, capabilities_of

from .base import Contract, require
from .harness import background, finished
from .state import first_of, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from .harness import Run

__all__ = ["CapabilityContract", "WatchContract"]

_KNOWN = frozenset({"roster", "watch"})


class CapabilityContract(Contract):
    """What the spec declares is what the backend implements."""

    group = "capabilities"

    def test_what_is_declared_is_implemented(self, run: Run) -> None:
        """Every capability that the spec declares is one that the backend implements."""
        declared, client = run.deployment.spec.capabilities, run.client()
        unknown = declared - _KNOWN
        require(not unknown, f"the spec declares what is no capability: {sorted(unknown)}")
        missing = declared - capabilities_of(client)
        require(
            not missing,
            f"the spec declares {sorted(missing)}, which {type(client).__name__} does not offer",
        )

    def test_what_is_implemented_is_declared(self, run: Run) -> None:
        """Every capability that the backend implements is one that the spec declares."""
        client = run.client()
        hidden = capabilities_of(client) - run.deployment.spec.capabilities
        require(
            not hidden,
            f"{type(client).__name__} offers {sorted(hidden)}, which the spec does not declare",
        )


class _Watched:
    """One client that writes, and one that waits, whichever kind of watch there is."""

    def __init__(self, run: Run) -> None:
        run.needs("watch")
        self.wait: Callable[[object, float], object]
        self.write: Callable[[bytes, object], object]
        self.read: Callable[[], tuple[bytes, object] | None]
        writer, waiter = run.clients(2)
        if isinstance(writer, SessionBackend):
            writes = run.session(backend=writer)
            self.waits = run.session(backend=waiter)
            self.write = lambda state, token: writes.swap(state, token).token
            # What was seen last is said along: without it a read may be an older one.
            self.wait, self.read = self.waits.wait, lambda: self.waits.read(self.known)
        elif isinstance(waiter, WatchingBackend):
            self.write = lambda state, token: written(writer, state, token)
            self.wait, self.read = waiter.wait_state, waiter.get_state
        else:
            raise AssertionError(
                f"the spec declares 'watch', but {type(waiter).__name__} is neither a "
                "WatchingBackend nor a SessionBackend"
            )
        self.known: object = None
        self.seen = self.write(b"first", None)

    def token(self) -> object:
        """The token of what is stored, as the waiting client has it."""
        found = self.read()
        if found is None:
            raise AssertionError("a state is stored, and the waiting client reads none")
        self.known = found[1]
        return self.known


class WatchContract(Contract):
    """A change is waited for instead of being looked for."""

    group = "watch"

    def test_a_change_by_another_wakes_who_waits(self, run: Run) -> None:
        """Who waits is woken by another client's change, long before its time is up."""
        watched = _Watched(run)
        token = watched.token()
        waiting = background(lambda: watched.wait(token, 10 * run.limit))
        time.sleep(0.05)  # So that it is most likely waiting; it must hold either way.
        second = watched.write(b"second", watched.seen)
        finished(waiting, run.limit, "a wait that another client's change was to end")
        require((watched.read() or (None,))[0] == b"second", "it was woken and reads the old state")
        token = watched.token()
        waiting = background(lambda: watched.wait(token, 10 * run.limit))
        watched.write(b"third", second)
        finished(waiting, run.limit, "a wait that had just begun as another client wrote")

    def test_a_wait_for_what_has_changed_already_ends(self, run: Run) -> None:
        """Who waits with a token that is stale already does not wait."""
        watched = _Watched(run)
        token = watched.token()
        watched.write(b"second", watched.seen)
        waiting = background(lambda: watched.wait(token, 10 * run.limit))
        finished(waiting, run.limit, "a wait with a stale token")

    def test_a_wait_ends_with_its_time(self, run: Run) -> None:
        """Where nothing changes a wait lasts about its time: it neither hangs nor spins."""
        watched = _Watched(run)
        token = watched.token()
        for _ in range(3):
            watched.wait(token, 0.05)
        began, times = time.monotonic(), 0
        while time.monotonic() - began < 1.0:
            run.soon(lambda: watched.wait(token, 0.25), "a wait of 0.25 s")
            times += 1
        require(times < 50, f"waits of 0.25 s with nothing to tell returned {times} times in 1 s")
        run.soon(lambda: watched.wait(token, 0.0), "a wait of no time")

    def test_a_wait_holds_nobody_else_up(self, run: Run) -> None:
        """While a thread waits, others of the same node read, write and wait beside it."""
        watched = _Watched(run)
        token = watched.token()
        client = run.client()
        if isinstance(client, SessionBackend):
            waits, acts = (run.session(backend=client) for _ in range(2))
            wait: Callable[[float], object] = lambda seconds: waits.wait(token, seconds)  # noqa: E731
            act: Callable[[], object] = lambda: (acts.read(None), acts.beat(1))  # noqa: E731
            change: Callable[[], object] = lambda: acts.swap(b"done", watched.token())  # noqa: E731
        elif isinstance(client, WatchingBackend):
            own = first_of(client)[1]
            wait = lambda seconds: client.wait_state(own, seconds)  # noqa: E731
            act = client.get_state
            change = lambda: written(client, b"done", own)  # noqa: E731
        waiting = background(lambda: wait(10 * run.limit))
        for _ in range(5):
            run.soon(act, "what a node does while one of its threads waits")
        run.soon(change, "a write while a thread of the same node waits")
        finished(waiting, run.limit, "a wait that a write of the same node was to end")
