"""The handler that torch's agents and launchers call, over any backend."""

from __future__ import annotations

import logging
import math
import os
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from .. import events
from ..api import RendezvousHandler, RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from ..endpoint import default_address, host_of
from ..errors import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousTimeoutError,
    known_to_torch,
)
from .backend import RendezvousBackend, Session, SessionBackend
from .document import Admission, Change, Master, Record
from .driver import Driver
from .leader import Settings
from .leaving import Leaver
from .machine import Machine
from .messages import (
    Close,
    Join,
    Joined,
    Look,
    Refusal,
    Refused,
    Withdraw,
    Withdrawn,
)
from .phases import Phase
from .ranking import Ranking, checked
from .reporting import Reporter, who_is_here
from .roster import DocumentSession
from .runtime import REAL, Runtime
from .settings import RendezvousSettings, RendezvousTimeout, check

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import Store

    from .leadership import Roster

__all__ = [
    "DynamicRendezvousHandler",
    "RendezvousSettings",
    "RendezvousTimeout",
    "create_handler",
]

log = logging.getLogger(__name__)

_GRACE = 1.0
"""Seconds beyond a call's deadline in which it still tries to leave things tidy."""


class DynamicRendezvousHandler(RendezvousHandler):
    """Forms rounds among the nodes of a run, over any backend.

    Made by :meth:`from_backend` or :func:`create_handler`. One thread at a time
    may be in :meth:`next_rendezvous`; the other methods may be called from any.
    """

    @classmethod
    def from_backend(
        cls,
        run_id: str,
        store: Store,
        backend: RendezvousBackend,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        timeout: RendezvousTimeout | None = None,
        keep_alive_interval: float = 1.0,
        keep_alive_max_attempt: int = 5,
        *,
        patience: float = 60.0,
        rank_policy: str = "sticky",
        labels: str | None = None,
        node_number: int | None = None,
        admission: Admission = "immediate",
    ) -> DynamicRendezvousHandler:
        """Make a handler.

        Args:
            run_id: The run; all its nodes use the same.
            store: The store that :meth:`next_rendezvous` hands to its caller.
            backend: Where the state of the run is kept. One that was written for
                torch will do.
            min_nodes: The fewest nodes of a round.
            max_nodes: The most nodes of a round.
            local_addr: The address under which the others reach this node;
                found out by default.
            timeout: How long the parts of a rendezvous may take.
            keep_alive_interval: Seconds between two signs of life (torch: 5).
            keep_alive_max_attempt: How many in a row have to be missed before a
                node counts as lost, 2 or more (torch: 3). A loss is noticed after
                ``interval * (attempts + 0.5)`` seconds at the latest.
            patience: Seconds that the store may be out of reach before calls fail.
            rank_policy: The name of what gives out ranks, the same on all nodes: ``sticky``,
                ``topology``, ``scheduler``, or one that an extension offers.
            labels: Where this node stands, outermost first, such as
                ``rack:r1/nvlink:d3``; ``RDZV_LABELS`` by default.
            node_number: This node's number for ``scheduler``, 0 or more; what Slurm or
                Kubernetes say by default.
            admission: Whether nodes that arrive while a round stands are let in at once, or
                when its workers have called :func:`rdzv.checkpoint_reached`; the same on
                all nodes.

        Raises:
            ValueError: An argument is out of its range.
            UnknownRankPolicyError: No such policy is built in or installed; a
                ``ValueError`` as well.
        """
        settings = RendezvousSettings(
            run_id,
            min_nodes,
            max_nodes,
            timeout or RendezvousTimeout(),
            timedelta(seconds=keep_alive_interval),
            keep_alive_max_attempt,
            admission,
        )
        ranking = Ranking.made(rank_policy, labels, node_number)
        return cls(settings, backend.name, store, backend, local_addr, patience, ranking=ranking)

    def __init__(
        self,
        settings: RendezvousSettings,
        backend_name: str,
        store: Store,
        backend: RendezvousBackend,
        local_addr: str | None,
        patience: float,
        runtime: Runtime = REAL,
        ranking: Ranking = Ranking(),  # noqa: B008 - it never changes
    ) -> None:
        check(settings, patience)
        if isinstance(backend, SessionBackend):
            backend.set_liveness(
                settings.keep_alive_interval.total_seconds(), settings.keep_alive_max_attempt
            )
        self._runtime = runtime
        self._settings = settings
        self._backend_name = backend_name
        self._store = store
        self._backend = backend
        self._patience = patience
        self._joining = runtime.lock()
        self._info: Joined | None = None
        self._unsettled = False
        self._addr = local_addr or default_address()
        interval = settings.keep_alive_interval.total_seconds()
        pid, number = runtime.handler_number()
        me = Record(
            kind="enter",
            node=runtime.new_id(),
            addr=self._addr,
            pid=pid,
            local_id=number,
            interval=interval,
            id="",
            labels=ranking.labels,
            node_number=ranking.number,
        )
        self._name = str(me)
        machine = Machine(
            Settings(
                settings.min_nodes,
                settings.max_nodes,
                settings.timeout.last_call.total_seconds(),
                interval,
                settings.keep_alive_max_attempt,
                ranking.recorded,
                checked(ranking.policy),
                settings.admission,
            ),
            me,
            runtime.new_id,
            runtime.random,
            runtime.wall,
        )
        self._reporter = Reporter(
            settings.run_id, self._name, backend_name, machine, runtime.observers()
        )
        self._driver = Driver(
            machine,
            session_factory(backend, runtime),
            self._master_opener(),
            patience,
            self._reporter,
            runtime,
        )
        self._driver.start()
        self._leaver = Leaver(self._driver, backend, settings, runtime, self._reporter.left)
        # A handler that is dropped must not look alive.
        weakref.finalize(self, self._leaver.leave_soon).atexit = False

    def _master_opener(self) -> Callable[[], tuple[Master, object]]:
        addr, runtime = self._addr, self._runtime
        return lambda: runtime.open_master(addr, shared=_shares_store())

    # ------------------------------------------------------------ properties

    @property
    def settings(self) -> RendezvousSettings:
        """What this handler was made with."""
        return self._settings

    @property
    def gone_before_round(self) -> int:
        """How many participants of the round before were lost or had left as this one completed."""
        return 0 if self._info is None else self._info.gone

    @property
    def round_broken(self) -> bool:
        """Whether this node has been told that its round is over through no doing of participants.

        It is once nodes have arrived, left or been lost, or another round has completed.
        """
        document = self._driver.machine.document
        if self._info is None or document is None:
            return False
        change = document.change
        changed = change is not None and change != Change(returned=change.returned)
        return changed or document.round > self._info.round

    @property
    def node(self) -> str:
        """This node as logs and errors name it, by address, process id and local number."""
        return self._name

    @property
    def round(self) -> int:
        """The round that this node is or was last in; rounds of a run only grow.

        A resource that has seen a round can refuse every lower one: it is the
        fencing token of what the round's workers write.
        """
        return 0 if self._info is None else self._info.round

    def get_backend(self) -> str:
        """Return the name of the backend."""
        return self._backend_name

    def get_run_id(self) -> str:
        """Return the run's name."""
        return self._settings.run_id

    @property
    def use_agent_store(self) -> bool:
        """Whether the workers use a store that the agent of rank 0 hosts.

        ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` makes the workers open their own.
        """
        return _shares_store()

    # ------------------------------------------------------------ joining

    @known_to_torch()
    def next_rendezvous(self) -> RendezvousInfo:
        """Take part in the next round; returns once it has completed with this node in it.

        A spare, which comes while the round is full, waits without a deadline, and so does a
        node that is not let in before a checkpoint.

        Raises:
            RendezvousClosedError: The run is closed, or this handler shut down.
            RendezvousGracefulExitError: The run was closed while this node was a spare, or waited
                for a checkpoint.
            RendezvousTimeoutError: No round completed within the join timeout.
            RendezvousConnectionError: The backend cannot be reached.
            RendezvousStateError: The backend holds what cannot be, or the run
                has other limits, or another admission, than this node.
        """
        if not self._joining.acquire(blocking=False):
            raise RendezvousError("Another thread is already in next_rendezvous().")
        try:
            joined = self._join()
        except RendezvousError as exc:
            self._reporter.emit(events.Failed, error=f"{type(exc).__name__}: {exc}")
            raise
        finally:
            self._joining.release()
        self._info = joined
        if not _shares_store():
            self._driver.release_master()
        log.info(
            "Node %s is rank %d of %d in round %d of run '%s'.",
            self._name,
            joined.rank,
            joined.size,
            joined.round,
            self._settings.run_id,
        )
        return RendezvousInfo(
            self._store_of_round(joined),
            joined.rank,
            joined.size,
            RendezvousStoreInfo(joined.master.host, joined.master.port),
        )

    def _join(self) -> Joined:
        driver = self._driver
        if driver.stopped and driver.error is None:
            raise self._refused(Refusal.LEFT)
        started = self._runtime.monotonic()
        driver.check()
        seconds = self._settings.timeout.join.total_seconds()
        self._join_by = started + seconds
        if self._unsettled and not self._settle(self._join_by):
            driver.check()
            until = self._runtime.monotonic() + _GRACE / 3
            raise RendezvousTimeoutError(self._why_not(started, until))
        driver.forget(Joined, Refused, Withdrawn)
        self._reporter.joins()
        try:
            driver.submit(Join())
            ended = self._wait_to_join()
        except BaseException:
            # A signal: nobody is waiting for that round any more.
            self._give_up()
            raise
        until = self._runtime.monotonic() + _GRACE
        if not ended:
            # A round that has completed is taken, if only the news of it is late.
            driver.submit(Look())
            driver.submit(Withdraw(accept=True))
            driver.wait(lambda: self._join_ended() or self._withdrawn(), lambda: until)
        joined, refused = driver.outcome(Joined), driver.outcome(Refused)
        if joined is not None:
            return joined
        if refused is not None:
            raise self._refused(refused.refusal)
        driver.check()
        if driver.stopped:
            # Another thread has taken this node out of the run meanwhile.
            raise self._refused(Refusal.LEFT)
        if not self._withdrawn():
            # The store hangs. What was begun must not make this node a member later.
            self._give_up()
        # What the withdrawal did not need of its time is there to find out who came.
        raise RendezvousTimeoutError(self._why_not(started, until + _GRACE / 3))

    def _wait_to_join(self) -> bool:
        """Wait for a round; raises where the store has not answered for longer than it may."""
        driver, now = self._driver, self._runtime.monotonic
        while True:
            look = now() + self._patience / 2

            def until(look: float = look) -> float:
                deadline = self._join_deadline()
                return look if deadline is None else min(deadline, look)

            if driver.wait(self._join_ended, until) or driver.stopped or now() < look:
                return self._join_ended()
            driver.check()

    def _give_up(self) -> None:
        self._driver.submit(Withdraw(accept=False))
        self._unsettled = True

    def _settle(self, until: float) -> bool:
        """Wait for what an earlier call has left behind in a store that did not answer."""
        done = self._runtime.event()
        self._driver.submit(lambda _: done.set())
        self._unsettled = not self._driver.wait(done.is_set, lambda: until)
        return not self._unsettled

    def _join_ended(self) -> bool:
        driver = self._driver
        return driver.outcome(Joined) is not None or driver.outcome(Refused) is not None

    def _withdrawn(self) -> bool:
        return self._driver.outcome(Withdrawn) is not None

    def _join_deadline(self) -> float | None:
        spare = self._driver.machine.phase is Phase.SPARE
        if spare:
            self._join_by = math.inf
        elif self._join_by == math.inf:
            # Its time begins when there is room.
            self._join_by = self._runtime.monotonic() + self._settings.timeout.join.total_seconds()
        return None if spare else self._join_by

    def _refused(self, refusal: Refusal) -> RendezvousError:
        run = f"The run '{self._settings.run_id}'"
        if refusal is Refusal.SURPLUS:
            return RendezvousGracefulExitError(
                f"{run} was closed while this node was a spare or waited for a checkpoint; it was "
                "not needed."
            )
        if refusal is Refusal.LEFT:
            return RendezvousClosedError(f"This node has left the run '{self._settings.run_id}'.")
        return RendezvousClosedError(
            f"{run} is closed: its workers have succeeded, or failed for good. Use another run id."
        )

    def _why_not(self, started: float, until: float) -> str:
        seconds = self._runtime.monotonic() - started
        text = f"No round of the run '{self._settings.run_id}' completed within {seconds:.1f} s"
        document = self._driver.machine.document
        if document is None:
            return f"{text}: the store did not answer."
        report: list[Roster] = []
        driver = self._driver  # Not self: what is kept of it would keep the handler alive.
        driver.submit(lambda session: report.append(driver.describe(session)))
        driver.wait(lambda: bool(report), lambda: until)
        if not report:
            return f"{text}: the store did not answer in time. Is it out of reach, or overloaded?"
        return f"{text}: {who_is_here(report[0], document.min_nodes, self._name)}"

    def _store_of_round(self, joined: Joined) -> Store:
        import torch.distributed as dist

        document = self._driver.machine.document
        epoch = "" if document is None else document.epoch
        prefix = f"rdzv.{self._settings.run_id}.{epoch}.{joined.round}"
        return dist.PrefixStore(prefix, self._store)

    # ------------------------------------------------------------ looking

    @known_to_torch()
    def is_closed(self) -> bool:
        """Whether the run is closed, as far as this node has been told."""
        self._know()
        return self._driver.machine.closed

    @known_to_torch()
    def num_nodes_waiting(self) -> int:
        """How many nodes want another round; costs no request.

        For a participant it is 1 or more from the moment that its workers have
        to be restarted for any reason (an arrival that fits, a participant that
        came back, left or was lost, or its own eviction) until its next
        :meth:`next_rendezvous`.
        """
        self._know()
        machine = self._driver.machine
        document = machine.document
        change = None if document is None else document.change
        arrived = 0 if change is None else change.arrived
        if machine.latch is not None:
            return max(1, arrived)
        return 0 if machine.phase is Phase.MEMBER else arrived

    def _know(self) -> None:
        """Have the state of the run; only the first call of all asks the store."""
        driver = self._driver
        if driver.stopped and driver.error is None:
            return
        driver.check()
        if driver.machine.document is not None or driver.machine.phase is not Phase.IDLE:
            return
        looked = self._runtime.event()

        def look(session: Session) -> None:
            driver.look(session, Look())
            looked.set()

        driver.submit(look)
        until = self._runtime.monotonic() + self._settings.timeout.heartbeat.total_seconds()
        if not driver.wait(looked.is_set, lambda: until):
            driver.check()
            raise RendezvousConnectionError(
                f"The store did not answer within "
                f"{self._settings.timeout.heartbeat.total_seconds():g} s."
            )

    # ------------------------------------------------------------ ending

    @known_to_torch()
    def set_closed(self) -> None:
        """Close the run: nobody can join it any more.

        Raises:
            RendezvousTimeoutError: It could not be closed within the close timeout.
            RendezvousConnectionError: The backend cannot be reached.
            RendezvousStateError: The backend holds what cannot be.
        """
        self._close(None)

    def _close(self, last_round: int | None) -> None:
        """Close the run, unless it has gone on beyond a round."""
        driver = self._driver
        if driver.machine.closed:
            return
        driver.check()
        seconds = self._settings.timeout.close.total_seconds()
        until = self._runtime.monotonic() + seconds
        driver.submit(Close(last_round))

        def went_on() -> bool:
            document = driver.machine.document
            return last_round is not None and document is not None and document.round > last_round

        if not driver.wait(lambda: driver.machine.closed or went_on(), lambda: until):
            driver.check()
            raise RendezvousTimeoutError(
                f"The run '{self._settings.run_id}' could not be closed within {seconds:g} s: the "
                "store does not answer."
            )
        if driver.machine.closed:
            log.info("Node %s has closed the run '%s'.", self._name, self._settings.run_id)
            self._reporter.emit(events.Closed)

    def shutdown(self) -> bool:
        """Close the run if this node is in its newest round, and leave it in any case.

        A spare, a waiting node and one that was evicted close nothing: their end
        is not the run's. :meth:`leave` leaves without closing.

        Returns:
            Whether all of it could be done.
        """
        done = True
        try:
            if self._may_close():
                # Unless it turns out that others have gone on to a later round.
                self._close(self._driver.machine.round)
        except RendezvousError as exc:
            log.warning("Node %s could not close the run: %s", self._name, exc)
            done = False
        # One that could not close in all that time gets no more of it.
        seconds = self._settings.timeout.close.total_seconds() if done else _GRACE
        return self._leaver.leave(seconds) and done

    def _may_close(self) -> bool:
        if self._leaver.left:
            return False
        machine = self._driver.machine
        document = machine.document
        if document is None or document.round == 0:
            # Nobody's workers run. As with torch, the end of one is the end of all.
            return machine.phase is not Phase.SPARE
        return machine.phase is Phase.MEMBER and machine.round == document.round

    def leave(self) -> bool:
        """Leave the run, which goes on without this node; the handler is then used up.

        A process that hosts the store stays until the others have left, within
        bounds.

        Returns:
            Whether the others could be told.
        """
        return self._leaver.leave(self._settings.timeout.close.total_seconds())


def _shares_store() -> bool:
    return os.getenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"


def session_factory(backend: RendezvousBackend, runtime: Runtime) -> Callable[[], Session]:
    """What opens a session of a backend, whatever it offers."""
    if isinstance(backend, SessionBackend):
        return backend.open_session
    lock = runtime.lock()
    return lambda: DocumentSession(backend, lock, runtime)


def create_handler(
    store: Store, backend: RendezvousBackend, params: RendezvousParameters
) -> DynamicRendezvousHandler:
    """Make a handler from parameters.

    Read are ``join_timeout``, ``last_call_timeout``, ``close_timeout``,
    ``heartbeat_timeout``, ``keep_alive_interval`` and ``patience`` in seconds,
    fractions included, ``keep_alive_max_attempt``, ``rank_policy``, ``labels``,
    ``node_number`` and ``admission``.

    Args:
        store: The store that ``next_rendezvous`` hands to its caller.
        backend: Where the state of the run is kept.
        params: The parameters of the run.

    Raises:
        ValueError: A parameter is out of its range.
        UnknownRankPolicyError: No such rank policy is built in or installed; a
            ``ValueError`` as well.
    """

    def seconds(key: str, *aliases: str) -> timedelta | None:
        for name in (key, *aliases):
            value = params.get_as_seconds(name)
            if value is not None:
                return timedelta(seconds=value)
        return None

    attempts = params.get_as_int("keep_alive_max_attempt", 5)
    return DynamicRendezvousHandler(
        RendezvousSettings(
            params.run_id,
            params.min_nodes,
            params.max_nodes,
            RendezvousTimeout(
                seconds("join_timeout"),
                seconds("last_call_timeout"),
                seconds("close_timeout"),
                seconds("heartbeat_timeout", "heartbeat"),
            ),
            timedelta(seconds=params.get_as_seconds("keep_alive_interval", 1.0)),
            5 if attempts is None else attempts,
            cast("Admission", str(params.get("admission") or "immediate").strip().lower()),
        ),
        params.backend,
        store,
        backend,
        params.local_addr or default_address(host_of(params.endpoint)),
        params.get_as_seconds("patience", 60.0),
        ranking=Ranking.of(params),
    )
