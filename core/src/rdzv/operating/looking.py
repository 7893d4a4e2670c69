"""Reading a run from outside: no ticket is taken, no document made, nothing written."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.leadership import Roster, Standing
from rdzv.dynamic_rendezvous.liveness import Silence
from rdzv.dynamic_rendezvous.perform import document_read, fold_log, load_roster
from rdzv.dynamic_rendezvous.runtime import REAL, Runtime
from rdzv.errors import RendezvousConnectionError, RendezvousError

from .access import RunNotFoundError
from .status import LATE, describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rdzv.dynamic_rendezvous.backend import Session, Token
    from rdzv.dynamic_rendezvous.document import Document

    from .access import Access
    from .status import RunStatus

__all__ = ["Observer", "follow", "inspect"]

_TRIES = 10
"""How often a run is read again that changes while it is read."""

_LOOKS = (0.05, 1.0)
"""Seconds between two looks at beats: the shortest, and the longest."""

_LONGEST = 10.0
"""Seconds that beats are looked at by default, at most."""

_PACE = (0.5, 5.0)
"""Seconds between two looks at a run that is followed: the shortest, and the longest."""

_QUIET = 0.5
"""Seconds for the thread that waits to come out of it: a TCPStore lets nobody go."""

_LONG = 3600.0
"""Seconds after which a wait is begun again."""


class Observer:
    """Reads one run, over one session.

    Args:
        session: The session, which nobody else uses meanwhile.
        run_id: The run.
        attempts: How many beats in a row a node has to miss before it counts as lost.
        runtime: The clock.
    """

    def __init__(
        self, session: Session, run_id: str, attempts: int = 5, runtime: Runtime = REAL
    ) -> None:
        self.document: Document | None = None
        self.token: Token = None
        self.roster = Roster()
        self._session = session
        self._run_id = run_id
        self._attempts = attempts
        self._runtime = runtime
        self._base: tuple[str, str] | None = None
        self._silence = Silence(0.0)
        self._counts: dict[str, int] = {}
        self._looking_since: float | None = None

    # ------------------------------------------------------------ reading

    def read(self) -> Document:
        """Read the document and the roster, as they are together; returns the document.

        Raises:
            RunNotFoundError: There is no such run.
            RendezvousConnectionError: The store cannot be reached.
            RendezvousStateError: It holds what cannot be.
        """
        found = self.find(None if self.document is None else self.token)
        for _ in range(_TRIES):
            document, token = found
            loaded = self._load(document)
            if loaded:
                fold_log(self._session, self.roster)
                self.document, self.token = document, token
            # What came to be while the roster was read; and where a hint at the newest
            # document is old, this one is not.
            found = self.find(token)
            if loaded and found[1] == token:
                break
        if self.document is None:
            raise RendezvousConnectionError(
                f"The run '{self._run_id}' was changed again and again while it was read."
            )
        return self.document

    def find(self, known: Token | None = None) -> tuple[Document, Token]:
        """Read the document alone, and its token; newer than ``known`` where there is a newer."""
        found = self._session.read(known)
        read = None if found is None else document_read(*found)
        if read is None or read.document is None:
            raise RunNotFoundError(
                f"There is no run '{self._run_id}' in this store. Check its name, and the settings "
                "of the backend; nothing is there before the first node has come."
            )
        return read.document, read.token

    def _load(self, document: Document) -> bool:
        base = (document.epoch, document.nonce)
        if self._base == base:
            return True
        self._session.attach(document.epoch)
        roster = load_roster(self._session, document)
        if roster is None:
            return False
        if self._base is None or self._base[0] != document.epoch:
            self._silence, self._counts, self._looking_since = Silence(0.0), {}, None
        self._base, self.roster = base, roster
        return True

    # ------------------------------------------------------------ beats

    @property
    def intervals(self) -> list[float]:
        """Seconds between the beats of each node that has not left."""
        entries = self.roster.entries.values()
        return [e.record.interval for e in entries if e.standing is not Standing.LEFT]

    def look(self, period: float) -> None:
        """Take one look at all beats, of which there is to be one a period (seconds)."""
        slots = self.roster.watched("")
        found = self._session.beats(list(dict.fromkeys(slots.values()))) if slots else {}
        now = self._runtime.monotonic()
        if self._looking_since is None:
            self._looking_since = now
            self._silence = Silence(max(self.intervals, default=1.0) * (self._attempts - 1))
        self._counts = {node: found[slot] for node, slot in slots.items()}
        counts = {node: (slot, found[slot]) for node, slot in slots.items()}
        for node in self._silence.observe(counts, now, period):
            self.roster.find_again(node)
        for node in slots:
            limit = self.roster.entries[node].record.interval * self._attempts
            if self._silence.has_ended(node) or self._silence.of(node) >= limit:
                self.roster.lose(node)

    def watch_beats(self, seconds: float) -> None:
        """Look until each node was seen to beat, or for so long.

        Time for which this process was kept from looking is no time of looking.
        """
        shortest, longest = _LOOKS
        period = min(max(min(self.intervals, default=1.0) / 2, shortest), longest)
        now = self._runtime.monotonic
        until = now() + seconds
        while True:
            self.look(period)
            left = until - now()
            if left <= 0 or self._all_live():
                return
            pause = min(period, left)
            due = now() + pause
            self._runtime.sleep(pause)
            until += max(0.0, now() - due)

    def _all_live(self) -> bool:
        status = self.status()
        return len(status.alive) == len(self.roster.watched(""))

    def enough(self) -> float:
        """Seconds of looking that tell who beats from who does not."""
        return (LATE + 0.7) * max(self.intervals, default=0.0)

    def status(self) -> RunStatus:
        """What is known by now."""
        if self.document is None:
            raise RuntimeError("read() comes first")
        since = self._looking_since
        observed = 0.0 if since is None else round(self._runtime.monotonic() - since, 3)
        return describe(
            self._run_id, self.document, self.roster, self._silence, self._counts, observed
        )


def inspect(access: Access, observe: float | None = None) -> RunStatus:
    """Look at a run.

    Args:
        access: The way to it.
        observe: Seconds to look for beats, less where all were seen before; by default what it
            takes to tell who beats, and 10 at most. With 0 nobody's life is looked at.

    Raises:
        RunNotFoundError: There is no such run.
        RendezvousConnectionError: The store cannot be reached.
        RendezvousStateError: It holds what cannot be.
    """
    with contextlib.closing(access.reader()) as session:
        observer = Observer(session, access.run_id, access.attempts)
        observer.read()
        seconds = min(observer.enough(), _LONGEST) if observe is None else observe
        if seconds > 0:
            observer.watch_beats(seconds)
            observer.read()
        return observer.status()


def follow(access: Access) -> Iterator[RunStatus]:
    """Look at a run again and again: at once when its document changes, else once an interval.

    Ends with the run: the last status is that of the closed run.

    Raises:
        RunNotFoundError: There is no such run.
        RendezvousConnectionError: The store cannot be reached.
        RendezvousStateError: It holds what cannot be.
    """
    with contextlib.closing(access.reader()) as session:
        observer = Observer(session, access.run_id, access.attempts)
        document = observer.read()
        waiter = _Waiter(access, observer)
        try:
            while True:
                pace = min(max(min(observer.intervals, default=1.0), _PACE[0]), _PACE[1])
                observer.look(pace)
                yield observer.status()
                if document.closed:
                    return
                waiter.wait(pace)
                document = observer.read()
                waiter.go_on()
        finally:
            waiter.stop()


class _Waiter:
    """Waits for the document to change, in a thread and a session of its own."""

    def __init__(self, access: Access, observer: Observer) -> None:
        self._access = access
        self._observer = observer
        self._changed = threading.Event()
        self._read = threading.Event()
        self._stopped = False
        self._session: Session | None = None
        self._error: RendezvousError | None = None
        self._thread = threading.Thread(target=self._run, name="rdzv-follow", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Return once the document may have changed, or after so long."""
        self._changed.wait(seconds)
        if self._error is not None:
            raise self._error

    def go_on(self) -> None:
        """The document has been read: wait for the next."""
        self._changed.clear()
        self._read.set()

    def stop(self) -> None:
        """Have the thread end, as soon as the store lets go of it."""
        self._stopped = True
        self._read.set()
        if self._session is not None:
            self._session.close()
        self._thread.join(_QUIET)

    def _run(self) -> None:
        try:
            self._session = session = self._access.reader()
            with contextlib.closing(session):
                session.listen(self._observer.token)
                while not self._stopped:
                    session.wait(self._observer.token, _LONG)
                    self._read.clear()
                    self._changed.set()
                    self._read.wait()
        except RendezvousError as exc:
            if not self._stopped:
                self._error = exc
                self._changed.set()
