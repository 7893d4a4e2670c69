"""What the contract tests are made of: clients, threads, and waiting for what has to happen."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
import uuid
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from rdzv.dynamic_rendezvous import SessionBackend
from rdzv.errors import RendezvousConnectionError, RendezvousStateError

from .deployment import NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from rdzv.dynamic_rendezvous import RendezvousBackend, Session

    from .deployment import Deployment

__all__ = [
    "Call",
    "Run",
    "background",
    "each",
    "eventually",
    "finished",
    "is_connection_error",
    "is_state_error",
]

T = TypeVar("T")
A = TypeVar("A")

_ENDING = 5.0
"""Seconds that tidying up after a test may take."""


class Call(Future[T]):
    """A call that runs in a thread of its own."""

    thread: threading.Thread


def background(call: Callable[[], T]) -> Call[T]:
    """Run a call in a thread of its own, which holds nothing up."""
    future: Call[T] = Call()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001 - handed to whoever waits for the future
            future.set_exception(exc)

    future.thread = threading.Thread(target=work, daemon=True)
    future.thread.start()
    return future


def finished(future: Call[T], limit: float, what: str) -> T:
    """The result of a call in the background, which has to come within ``limit`` seconds.

    Raises:
        AssertionError: It did not come.
    """
    try:
        return future.result(limit)
    except TimeoutError:
        if future.done():
            raise  # It was the call's own.
        raise AssertionError(
            f"{what} took longer than {limit:g} s. It is here:\n{_stack_of(future)}"
        ) from None


def _stack_of(future: Call[Any]) -> str:
    frame = sys._current_frames().get(future.thread.ident or 0)  # noqa: SLF001 - the only way to see it
    return "".join(traceback.format_stack(frame)[-4:]) if frame else "(ended meanwhile)"


def each(items: Iterable[A], call: Callable[[A], T], limit: float, what: str) -> list[T]:
    """Call with every item at once, in threads that begin together; the results in order."""
    items = list(items)
    start = threading.Barrier(len(items))

    def work(item: A) -> T:
        start.wait(limit)
        return call(item)

    futures = [background(lambda item=item: work(item)) for item in items]  # type: ignore[misc]
    until = time.monotonic() + limit
    return [finished(future, max(0.1, until - time.monotonic()), what) for future in futures]


def eventually(happened: Callable[[], object], limit: float, what: str) -> None:
    """Look until something has happened, for what cannot be listened to."""
    until = time.monotonic() + limit
    pause = threading.Event()
    while not happened():
        if time.monotonic() > until:
            raise AssertionError(f"within {limit:g} s it never came to this: {what}")
        pause.wait(0.01)


def is_connection_error(exc: BaseException) -> bool:
    """Whether it says that the store cannot be reached: ours, or torch's of the same name."""
    return _is(exc, RendezvousConnectionError)


def is_state_error(exc: BaseException) -> bool:
    """Whether it says that what is stored is no state: ours, or torch's of the same name."""
    return _is(exc, RendezvousStateError)


def _is(exc: BaseException, kind: type[Exception]) -> bool:
    theirs = any(
        base.__name__ == kind.__name__ and base.__module__.startswith("torch.")
        for base in type(exc).__mro__
    )
    return theirs or isinstance(exc, kind)


class Run:
    """One run on a deployment, and what a test has opened in it."""

    def __init__(self, deployment: Deployment, run_id: str = "") -> None:
        self.deployment = deployment
        self.id = run_id or f"contract-{uuid.uuid4().hex[:12]}"
        self.limit = deployment.limit
        self._closing: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def client(self, **settings: Any) -> RendezvousBackend:
        """A client of its own, as another process would have it."""
        connecting = background(lambda: self.deployment.connect(self.id, **settings)[0])
        return finished(connecting, self.limit, "making a client")

    def clients(self, count: int) -> list[RendezvousBackend]:
        """Several clients."""
        return each(range(count), lambda _: self.client(), self.limit, "making clients")

    def needs(self, capability: str) -> None:
        """Say that the test is about a capability.

        Raises:
            NotOfferedError: The spec does not declare it.
        """
        if capability not in self.deployment.spec.capabilities:
            raise NotOfferedError(f"The backend does not declare the capability {capability!r}.")

    def session(self, epoch: str = "epoch", backend: RendezvousBackend | None = None) -> Session:
        """A session, of a client of its own where none is given, attached to ``epoch``."""
        self.needs("roster")
        client = backend or self.client()
        if not isinstance(client, SessionBackend):
            raise AssertionError(
                f"the spec declares 'roster', but {type(client).__name__} is no SessionBackend"
            )
        session = finished(background(client.open_session), self.limit, "open_session()")
        self.at_end(session.close)
        session.attach(epoch)
        return session

    def sessions(self, count: int, epoch: str = "epoch") -> list[Session]:
        """Sessions of as many clients."""
        self.needs("roster")
        return each(range(count), lambda _: self.session(epoch), self.limit, "opening sessions")

    def soon(self, call: Callable[[], T], what: str) -> T:
        """The result of a call that must not take longer than the limit."""
        return finished(background(call), self.limit, what)

    def at_end(self, call: Callable[[], object]) -> None:
        """Call this when the test is over."""
        self._closing.append(call)

    def end(self) -> None:
        """Close what was opened. Never raises: a test that is over has been judged."""
        endings = [background(call) for call in reversed(self._closing)]
        until = time.monotonic() + min(_ENDING, self.limit)
        for ending in endings:
            with contextlib.suppress(Exception, SystemExit):
                ending.result(max(0.0, until - time.monotonic()))
