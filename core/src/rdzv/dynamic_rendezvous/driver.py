"""Carries the machine's decisions out: threads, connections, deadlines and clocks.

Three threads a node, none of them the caller's, so that a call that hangs in a
store is left behind and every caller returns by its deadline:

- *ops* takes the callers' commands, beats, and looks at others' beats;
- *watch* waits for the document to change;
- *lead*, while this node leads, waits for arrivals.

Each has a session of its own. A fourth, *gate*, has none: it asks workers for checkpoints, where
admission is deferred. One lock makes the machine see one thing at a time.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from ..errors import RendezvousConnectionError, RendezvousError, StoreGoneError
from .messages import (
    FACTS,
    Action,
    Interrupted,
    Joined,
    Latched,
    MasterOpened,
    OpenMaster,
    Read,
    ReadLog,
    Stimulus,
    Tick,
    TookOver,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from .backend import Session
    from .document import Master
    from .leadership import Roster
    from .machine import Machine
    from .runtime import Runtime
from .gatekeeper import Gatekeeper
from .perform import PERFORM, document_read, read_whole_roster

__all__ = ["Driver"]

log = logging.getLogger(__name__)

_LONG = 3600.0
"""Seconds after which a wait is begun again: a hint that was lost, since the machine re-reads."""

_BURST = 0.002
"""Seconds to let a burst of arrivals gather before the roster is read."""

_RETRY = (0.05, 1.0)
"""Seconds between attempts to connect again: the first, and the longest."""

_MOMENTS, _MOMENT = 5, 0.1
"""How often, and after how long (seconds), a store that seems dead is given another chance."""

A = TypeVar("A")
T = TypeVar("T")


class Driver:
    """Runs one :class:`Machine` against one backend.

    Args:
        machine: The machine.
        open_session: Opens an independent connection.
        open_master: Opens a store for the workers of a round; returns its
            address and what keeps it open.
        patience: How long the store may be out of reach before calls fail (seconds).
        notify: Is told of every action that has no effect on the store; must
            neither raise nor block.
        runtime: Its clock and threads.
    """

    def __init__(
        self,
        machine: Machine,
        open_session: Callable[[], Session],
        open_master: Callable[[], tuple[Master, object]],
        patience: float,
        notify: Callable[[Action], None],
        runtime: Runtime,
    ) -> None:
        self.machine = machine
        self.error: RendezvousError | None = None
        self.owner: object = None
        """Kept for as long as the threads run."""
        self._open_session = open_session
        self._open_master = open_master
        self._patience = patience
        self._notify = notify
        self._runtime = runtime
        self._deciding = runtime.lock()
        """Held while the machine decides and what it decided is carried out."""
        # Reentrant: a dropped handler's finalizer may run in a thread that holds it.
        self._changed = runtime.rlock()
        """Guards all below."""
        self._waiters: list[tuple[threading.Condition, Callable[[], bool]]] = []
        self._commands: deque[Stimulus | Callable[[Session], None]] = deque()
        self._obeys = False
        """Whether the ops thread is about to take a command to the machine, or at it."""
        self._outcomes: dict[type[object], object] = {}
        self._stopped = False
        # In order, so that a simulation closes them in the same one every time.
        self._sessions: dict[Session, None] = {}
        self._masters: dict[Master, object] = {}
        self._unheard: set[Master] = set()
        self._master: object = None
        self._in_touch = self._runtime.monotonic()
        self._busy = False
        self._trouble: RendezvousConnectionError | None = None
        """Why the last connection broke, unless the store has answered since."""
        self._resting = False
        self._waits = 0
        """Threads that are in a store's wait, from which only the store calls them back."""
        self._threads = [
            runtime.thread(run, f"rdzv-{run.__name__[5:]}")
            for run in (self._run_ops, self._run_watch, self._run_lead)
        ]
        if machine.settings.admission == "deferred":
            gatekeeper = Gatekeeper(
                machine, self._block, self.submit, lambda: self._stopped, runtime
            )
            self._threads.append(runtime.thread(gatekeeper.run, "rdzv-gate"))

    def start(self) -> None:
        """Connect, early since some connections are slow to open, and wait for commands."""
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------ callers

    def submit(self, command: Stimulus | Callable[[Session], None]) -> None:
        """Have the ops thread take a stimulus to the machine, or run a function."""
        with self._changed:
            self._commands.append(command)
            self._wake()

    def recall(self) -> bool:
        """Take back the commands that are not begun; returns whether one is."""
        with self._changed:
            self._commands.clear()
            return self._obeys

    def forget(self, *kinds: type[A]) -> None:
        """Forget earlier outcomes of these kinds."""
        with self._changed:
            for kind in kinds:
                self._outcomes.pop(kind, None)

    def outcome(self, kind: type[A]) -> A | None:
        """The last action of this kind since it was forgotten."""
        found = self._outcomes.get(kind)
        return found if isinstance(found, kind) else None

    def wait(self, happened: Callable[[], bool], deadline: Callable[[], float | None]) -> bool:
        """Wait until something has happened, or the driver has failed or was stopped.

        Args:
            happened: Asked whenever something may have.
            deadline: The time to give up (monotonic clock), asked as often;
                ``None`` for never.

        Returns:
            Whether it has happened.
        """
        seen = [self.machine.phase]

        def ready() -> bool:
            # A spare's deadline is another one.
            return happened() or self._stopped or self.machine.phase is not seen[0]

        while not happened() and not self._stopped:
            seen[0] = self.machine.phase
            until = deadline()
            left = None if until is None else until - self._runtime.monotonic()
            if left is not None and left <= 0:
                return False
            self._block(ready, left)
        return happened()

    def _block(self, ready: Callable[[], bool], seconds: float | None) -> None:
        """Wait until ``ready``, for ``seconds`` at most. Whoever changes something asks it."""
        with self._changed:
            if ready():
                return
            condition = self._runtime.condition(self._changed)
            waiter = (condition, ready)
            self._waiters.append(waiter)
            try:
                condition.wait(seconds)
            finally:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        """Wake those, and only those, who have something to do now."""
        for condition, ready in self._waiters:
            if ready():
                condition.notify()

    def check(self) -> None:
        """Raise what has made this driver fail, or that the store has not answered for long."""
        if self.error is not None:
            error = self.error
            raise type(error)(*error.args) from error.__cause__
        silent = self._unanswered()
        for _ in range(_MOMENTS):
            if silent <= self._patience:
                return
            # This process may have slept, and an answer be there that nobody has taken yet.
            self._runtime.sleep(_MOMENT)
            silent = self._unanswered()
        if silent > self._patience:
            last = "" if self._trouble is None else f" {self._trouble}"
            raise RendezvousConnectionError(
                f"The store has not answered for {silent:.0f} s "
                f"(patience={self._patience:g}).{last}"
            ) from self._trouble

    def _unanswered(self) -> float:
        """For how long the store has owed an answer (seconds)."""
        return self._runtime.monotonic() - self._in_touch if self._busy else 0.0

    def stop(self) -> None:
        """Stop beating and watching. Never blocks."""
        with self._changed:
            self._stopped = True
            sessions = list(self._sessions)
            self._masters = {}
            self._master = None
            self._wake()
        for session in sessions:
            session.close()

    def release_master(self) -> None:
        """Let go of what was opened for the workers: they are about to open their own."""
        self._master = None

    def rest(self, seconds: float) -> bool:
        """Wait for no more changes; returns whether no thread is in a wait within ``seconds``."""
        self._resting = True
        until = self._runtime.monotonic() + seconds
        return self.wait(lambda: self._waits == 0, lambda: until) or self._waits == 0

    def join(self, seconds: float) -> None:
        """Wait for the threads to end, after :meth:`stop`."""
        until = self._runtime.monotonic() + seconds
        for thread in self._threads:
            if thread is not self._runtime.current_thread():
                thread.join(max(0.0, until - self._runtime.monotonic()))

    @property
    def stopped(self) -> bool:
        return self._stopped

    # ------------------------------------------------------------ threads

    def _run_ops(self) -> None:
        self._guard(self._ops, lambda: True)

    def _run_watch(self) -> None:
        self._guard(self._watch, lambda: True)

    def _run_lead(self) -> None:
        self._guard(self._lead, self._leads)

    def _leads(self) -> bool:
        machine, leading = self.machine, self.machine.leading
        ready = leading is not None and leading.has_read_log
        return ready and not machine.closed and not self._resting

    def _has_to_watch(self) -> bool:
        # A closed run stays closed: there is nothing more to be told.
        machine = self.machine
        return machine.document is not None and not machine.closed and not self._resting

    def _wait_in(self, wait: Callable[[], T]) -> T | None:
        with self._changed:
            if self._resting or self._stopped:
                return None
            self._waits += 1
        try:
            return wait()
        finally:
            with self._changed:
                self._waits -= 1
                self._wake()

    def _guard(self, body: Callable[[Session], None], needed: Callable[[], bool]) -> None:
        """Once ``needed``, run ``body`` with a session; with a new one where it breaks."""
        broken_at: float | None = None  # When the trouble began,
        lost_at = 0.0  # and when it was last seen.
        pause = _RETRY[0]
        began = 0.0
        slept = interrupted = False
        # What was under way when it broke is taken up again even if nothing more is needed.
        while self._await((lambda: True) if interrupted else needed):
            session = None
            try:
                session = self._connect()
                if interrupted:
                    self._step(session, Interrupted(lost_at))
                    interrupted = False
                    log.info("The connection to the store is back.")
                began = self._runtime.monotonic()
                body(session)
            except StoreGoneError as exc:
                self._fail(exc)
            except RendezvousConnectionError as exc:
                now = self._runtime.monotonic()
                self._trouble = exc
                interrupted = True
                # What breaks again at once is the same trouble still.
                fresh = broken_at is None or (began > broken_at and now - began > _RETRY[1])
                # One failure after a long time says nothing: this process may have slept. The
                # next one says that attempts take long.
                slept = not fresh and not slept and now - lost_at > self._patience / 2
                if broken_at is None or fresh:
                    broken_at, pause = now, _RETRY[0]
                lost_at = now
                if now - broken_at >= self._patience and not slept:
                    self._fail(exc)
                else:
                    if not self._stopped and pause == _RETRY[0]:
                        log.warning("The connection to the store broke, connecting again: %s", exc)
                    self._block(lambda: self._stopped, pause)
                    pause = min(2 * pause, self._longest_pause())
            except RendezvousError as exc:
                self._fail(exc)
            except Exception as exc:  # A bug of ours or of a plugin: callers must learn of it.
                log.exception("The rendezvous failed.")
                failure = RendezvousError(f"The rendezvous failed: {type(exc).__name__}: {exc}")
                failure.__cause__ = exc
                self._fail(failure)
            finally:
                if session is not None:
                    self._disconnect(session)

    def _longest_pause(self) -> float:
        """Seconds between two attempts to connect: whoever is back first must not miss a beat."""
        return min(_RETRY[1], self.machine.settings.patience / 4, self._patience / 4)

    def _connect(self) -> Session:
        session = self._open_session()
        document = self.machine.document
        if document is not None:
            session.attach(document.epoch)
        with self._changed:
            self._sessions[session] = None
            if self._stopped:
                session.close()
        return session

    def _disconnect(self, session: Session) -> None:
        with self._changed:
            self._sessions.pop(session, None)
        session.close()

    def _fail(self, error: RendezvousError) -> None:
        with self._changed:
            if self.error is None and not self._stopped:
                self.error = error
        self.stop()

    def _ops(self, session: Session) -> None:
        waiting_for = [0.0]

        def ready() -> bool:
            due = self.machine.due()
            return (
                self._stopped or bool(self._commands) or (due is not None and due < waiting_for[0])
            )

        while not self._stopped:
            due = self.machine.due()
            waiting_for[0] = math.inf if due is None else due
            self._block(ready, None if due is None else max(0.0, due - self._runtime.monotonic()))
            self._obey(session)

    def _obey(self, session: Session) -> None:
        # In a frame of its own: a command that stayed in the idle thread's would keep
        # alive what it refers to. Where the connection breaks, the machine knows by its
        # phase what was begun.
        with self._changed:
            command = self._commands.popleft() if self._commands else Tick()
            self._obeys = not callable(command) and not isinstance(command, Tick)
        try:
            if callable(command):
                command(session)
                self._tell()
            elif not self._stopped:
                self._step(session, command)
        finally:
            self._obeys = False

    def _watch(self, session: Session) -> None:
        session.listen(self.machine.token)
        while self._await(self._has_to_watch):
            document = self.machine.document
            if document is None:
                continue
            session.attach(document.epoch)
            token = self.machine.token
            found = self._wait_in(functools.partial(session.wait, token, _LONG))
            with self._deciding:
                # The ops thread may have read or written that very change.
                if self.machine.token == token and not self._stopped:
                    told = found and document_read(*found)
                    self._carry_out(session, self._on(told) if told else [Read()])
            self._tell()

    def _lead(self, session: Session) -> None:
        nothing = 0
        while self._await(self._leads):
            leading, document = self.machine.leading, self.machine.document
            if leading is None or document is None:
                continue
            session.attach(document.epoch)
            with self._deciding:
                after, expected = leading.roster.seen, leading.expected(document)
                hole = leading.look_for_records(self._runtime.monotonic())
            seconds = _LONG if hole is None else min(max(_BURST, hole), _RETRY[1])
            self._wait_in(functools.partial(session.wait_records, after, 1, seconds))
            if expected > 1:
                session.wait_records(after, expected, _BURST)
            with self._deciding:
                if self.machine.leading is leading and not self._stopped:
                    self._carry_out(session, [ReadLog(leading.roster.complete_upto)])
            self._tell()
            # Called for nothing again and again: by a record, say, that nobody took a
            # ticket for.
            nothing = 0 if leading.roster.seen > after or hole is not None else nothing + 1
            if nothing > 1:
                self._block(lambda: self._stopped, min(_RETRY[0] * nothing, _RETRY[1]))

    def _await(self, ready: Callable[[], bool]) -> bool:
        self._block(lambda: self._stopped or ready(), None)
        return not self._stopped

    # ------------------------------------------------------------ doing

    def _step(self, session: Session, stimulus: Stimulus) -> None:
        with self._deciding:
            document = self.machine.document
            if document is not None:  # Another thread may have been the one to learn of it.
                session.attach(document.epoch)
            self._carry_out(session, self._on(stimulus))
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._wake()

    def _on(self, stimulus: Stimulus) -> list[Action]:
        if isinstance(stimulus, MasterOpened):
            self._unheard.discard(stimulus.master)
        return self.machine.on(stimulus, self._runtime.monotonic())

    def _carry_out(self, session: Session, actions: list[Action]) -> None:
        """Do ``actions`` in order; what an answer leads to comes before what is left."""
        left = list(reversed(actions))
        try:
            # What is stopped goes on with nothing: on a store that never lets a write win, say.
            while left and not self._stopped:
                answer = self._do(session, left.pop())
                if answer is not None:
                    left.extend(reversed(self._on(answer)))
        finally:
            # What needs no store holds whatever has become of the connection: the
            # machine has decided it, and will not say so twice.
            for action in reversed(left):
                if isinstance(action, FACTS):
                    self._report(action)

    def _do(self, session: Session, action: Action) -> Stimulus | None:
        perform = PERFORM.get(type(action))
        if perform is None:
            self._report(action)
            return None
        self._in_touch = self._runtime.monotonic()
        self._busy = True
        answer: Stimulus | None = perform(session, action, self.machine)
        self._in_touch = self._runtime.monotonic()
        self._busy = False
        self._trouble = None
        return answer

    def _report(self, action: Action) -> None:
        if isinstance(action, OpenMaster):
            self._runtime.thread(self._prepare_master, "rdzv-master").start()
            return
        # Before a caller is woken, who may tell more.
        self._notify(action)
        with self._changed:
            if isinstance(action, Joined):
                self._master = self._masters.pop(action.master, None)
                # Those of earlier rounds have done their work; one that is ready for
                # another round, or that the machine has not heard of yet, has not.
                ready = {self.machine.ready_master, *self._unheard}
                self._masters = {m: k for m, k in self._masters.items() if m in ready}
            self._outcomes[type(action)] = action
            self._wake()
        if isinstance(action, TookOver | Latched):
            log.debug("%s: %s", self.machine.phase.name, action)

    def _prepare_master(self) -> None:
        try:
            master, keep = self._open_master()
        except Exception as exc:  # noqa: BLE001 - whatever keeps rank 0 from opening a store ends its call.
            failure = RendezvousConnectionError(f"This node cannot open a store for workers: {exc}")
            failure.__cause__ = exc
            self._fail(failure)
            return
        with self._changed:
            if self._stopped:
                return
            self._masters[master] = keep
            self._unheard.add(master)
        self.submit(MasterOpened(master))

    # ------------------------------------------------------------ looking

    def look(self, session: Session, stimulus: Stimulus) -> None:
        """Take one stimulus to the machine at once, from a function given to :meth:`submit`."""
        self._step(session, stimulus)

    def describe(self, session: Session) -> Roster:
        """The roster as it is now, read afresh."""
        return read_whole_roster(session, self.machine.document, self.machine.token)

    def others(self, session: Session) -> dict[str, tuple[int, int]]:
        """The slots and beat counters of all other nodes that have not left."""
        roster = self.describe(session)
        watched = roster.watched(self.machine.node)
        counts = session.beats(list(dict.fromkeys(watched.values())))
        return {node: (slot, counts[slot]) for node, slot in watched.items()}
