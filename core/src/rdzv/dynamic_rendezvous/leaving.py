"""Taking a node out of its run: when it asks, when its handler is dropped, at exit."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING

from .backend import RendezvousBackend, SessionBackend
from .liveness import Silence
from .messages import Departed, Leave, Touch
from .phases import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Session
    from .driver import Driver
    from .runtime import Runtime
    from .settings import RendezvousSettings

__all__ = ["Leaver"]

_OPEN_LINGER = 5.0
"""Seconds that the store's host stays for the others when it leaves a run that is not closed."""

_AT_EXIT = 2.0
"""Seconds that the end of a process may be held up for telling the others."""

_QUIET = (0.1, 0.5)
"""Seconds for the threads to come out of their waits by themselves, and when called."""

_LOOK_PAUSE = 0.2
"""Seconds between two looks at who is still there, while the store's host lingers."""


class Leaver:
    """Takes the node of one driver out of its run, once, and tells ``has_left`` of it."""

    def __init__(
        self,
        driver: Driver,
        backend: RendezvousBackend,
        settings: RendezvousSettings,
        runtime: Runtime,
        has_left: Callable[[], None],
    ) -> None:
        self.left = False
        self._has_left = has_left
        self._driver = driver
        self._backend = backend
        self._runtime = runtime
        interval = settings.keep_alive_interval.total_seconds()
        self._silence = interval * (settings.keep_alive_max_attempt + 1)
        self._pid = os.getpid()
        if runtime.ends_with_process:
            _ALL.add(self)
        # As long as its threads run, a handler that was dropped has something to end.
        driver.owner = self

    def leave_soon(self) -> None:
        """Leave without waiting for it."""
        if not self.left:
            self.left = True
            self._driver.submit(Leave())
            self._driver.submit(self._stop_soon)

    def _stop_soon(self, session: Session) -> None:
        driver = self._driver
        try:
            if not driver.rest(0.0):
                driver.look(session, Touch())  # Calls the other threads out of their waits.
        finally:
            driver.stop()
            self._has_left()

    def leave_at_exit(self) -> None:
        """Leave as the process ends, and have no thread in a store's library after that."""
        if os.getpid() == self._pid:  # A forked child is not the node.
            self.leave(_AT_EXIT)
            self._driver.join(_AT_EXIT)

    def leave(self, seconds: float) -> bool:
        """Leave within ``seconds``; returns whether the others could be told."""
        if self.left:
            return True
        self.left = True
        driver = self._driver
        until = self._runtime.monotonic() + seconds
        driver.forget(Departed)
        done = True
        # Another thread may have begun to join a moment ago.
        if self._takes_part() or driver.recall() or self._takes_part():
            driver.submit(Leave())
            done = driver.wait(lambda: driver.outcome(Departed) is not None, lambda: until)
        if done and isinstance(self._backend, SessionBackend) and self._backend.is_host:
            closed = driver.machine.closed
            self._linger(seconds if closed else min(seconds, _OPEN_LINGER))
        self._come_to_rest()
        self._has_left()
        return done and driver.error is None

    def _takes_part(self) -> bool:
        machine = self._driver.machine
        return machine.phase is not Phase.IDLE or machine.leading is not None

    def _linger(self, seconds: float) -> None:
        """Stay while others need the store that this process hosts."""
        driver = self._driver
        until = self._runtime.monotonic() + seconds
        silence = Silence(self._silence)
        gone = self._runtime.event()
        looked = self._runtime.event()

        def look(session: Session) -> None:
            try:
                counts = driver.others(session)
                silence.observe(counts, self._runtime.monotonic(), _LOOK_PAUSE)
                if all(silence.of(node) > self._silence for node in counts):
                    gone.set()
            finally:
                looked.set()

        while self._runtime.monotonic() < until and driver.error is None and not gone.is_set():
            looked.clear()
            driver.submit(look)
            driver.wait(looked.is_set, lambda: until)
            gone.wait(_LOOK_PAUSE)

    def _come_to_rest(self) -> None:
        """Have the driver's threads out of the store before the process can end.

        A thread that comes back from a store's library while the interpreter is
        being torn down aborts the process. Leaving has mostly woken them; what
        still waits for the document to change is given a change.
        """
        driver = self._driver
        by_itself, when_called = _QUIET
        if not driver.rest(by_itself):
            driver.submit(Touch())
            driver.rest(when_called)
        driver.stop()
        driver.join(when_called)


_ALL: weakref.WeakSet[Leaver] = weakref.WeakSet()


@atexit.register
def _leave_all() -> None:
    # A signal ends torch's agent without a shutdown: the others should not have
    # to wait for the silence that follows.
    for leaver in list(_ALL):
        leaver.leave_at_exit()
