"""Calls that must not hold the doctor up: each has so many seconds, and is left behind then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

__all__ = ["LateError", "each", "reason", "within"]

T = TypeVar("T")
A = TypeVar("A")


class LateError(TimeoutError):
    """A call was not over in its time. It may still go on, in a thread that holds nothing up."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, which runs in a thread of its own.

    Raises:
        LateError: It took longer than ``seconds``.
        Exception: Whatever it raised.
    """
    return _result(_started(call), seconds)


def each(seconds: float, items: Iterable[A], call: Callable[[A], T]) -> list[T | Exception]:
    """What calls with each item came to, all at once: results or errors, in order."""

    def outcome(future: Future[T]) -> T | Exception:
        try:
            return _result(future, seconds)
        except Exception as exc:  # noqa: BLE001 - it is what came of the call
            return exc

    futures = [_started(lambda item=item: call(item)) for item in items]  # type: ignore[misc]
    return [outcome(future) for future in futures]


def _started(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001 - handed to whoever waits for the future
            future.set_exception(exc)

    threading.Thread(target=work, name="rdzv-doctor", daemon=True).start()
    return future


def _result(future: Future[T], seconds: float) -> T:
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        if future.done():
            raise  # It was the call's own.
        raise LateError(f"it was not over within {seconds:g} s") from None
    except SystemExit as exc:
        raise RuntimeError("it tried to end the process") from exc


def reason(exc: BaseException) -> str:
    """What an error says, in one line."""
    text = str(exc).strip() or type(exc).__name__
    return text.splitlines()[0]
