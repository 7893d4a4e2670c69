"""The bridge into torch's launcher: every installed backend as a ``--rdzv-backend``.

torch loads the entry points of the group ``torchrun.handlers`` and calls each;
:func:`register` is the only one of rdzv, and offers all backends at once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from . import plugins
from .api import RendezvousHandler as OwnHandler
from .api import RendezvousParameters as OwnParameters
from .errors import RendezvousGracefulExitError, known_to_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
    from torch.distributed.elastic.rendezvous.api import (
        RendezvousHandler,
        RendezvousInfo,
        RendezvousParameters,
    )

__all__ = ["backend_name", "register", "torchrun_name"]

log = logging.getLogger(__name__)

_TAKEN = frozenset({"c10d", "etcd", "etcd-v2"})
"""Names that torch has given away; these backends of ours get a prefix."""

_NOT_OFFERED = frozenset({"static"})
"""torchrun forwards ``--node-rank`` to its own ``static`` alone."""


def torchrun_name(backend: str) -> str | None:
    """The name under which ``torchrun --rdzv-backend`` knows a backend, if at all."""
    if backend in _NOT_OFFERED:
        return None
    return f"rdzv-{backend}" if backend in _TAKEN else backend


def backend_name(name: str) -> str:
    """The backend that goes by ``name``, in rdzv or in torchrun."""
    names = {found.name for found in plugins.installed()}
    rest = name.removeprefix("rdzv-")
    return rest if name not in names and rest in names else name


def register() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Offer all installed backends to torch. Called by torch, while it is being imported.

    Only metadata is read: a broken plugin costs nobody the start, and tells what
    is wrong with it when it is chosen.

    Returns:
        What torch registers under the name of the entry point, ``rdzv``: it
        explains that a backend has to be chosen.
    """
    # Not the package: it is only half imported at this moment.
    from torch.distributed.elastic.rendezvous.api import rendezvous_handler_registry

    for backend in sorted({found.name for found in plugins.installed()}):
        name = torchrun_name(backend)
        if name is None:
            continue
        creator = functools.partial(_create, backend)
        try:
            rendezvous_handler_registry.register(name, creator)
        except ValueError:
            with contextlib.suppress(ValueError):
                rendezvous_handler_registry.register(f"rdzv-{backend}", creator)
    return _explain


def _explain(_: RendezvousParameters) -> NoReturn:
    names = sorted({found.name for found in plugins.installed()})
    offered = [name for name in map(torchrun_name, names) if name is not None]
    raise ValueError(
        "'rdzv' is no backend itself. Give --rdzv-backend one of: "
        + (", ".join(offered) or "(none is installed; try pip install rdzv-c10d)")
    )


def _create(backend: str, params: RendezvousParameters) -> RendezvousHandler:
    from .registry import get_rendezvous_handler

    own = OwnParameters(
        backend=backend,
        endpoint=params.endpoint,
        run_id=params.run_id,
        min_nodes=params.min_nodes,
        max_nodes=params.max_nodes,
        local_addr=params.local_addr,
        **params.config,
    )
    with known_to_torch():
        bridge: RendezvousHandler = _bridge_class()(get_rendezvous_handler(own), params.backend)
        return bridge


@contextlib.contextmanager
def _heeding_sigterm(agent: SimpleElasticAgent | None) -> Iterator[None]:
    """End torch's agent by SIGTERM as it does later; it has no handler before its first workers.

    Without one a node that waits would die at once, and be taken into a round as
    long as nobody has noticed.
    """
    if (
        agent is None
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def end(number: int, _: FrameType | None) -> NoReturn:
        sign = signal.Signals(number)
        raise SignalException(f"Process {os.getpid()} got signal: {sign.name}", sign)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Bridge:
    """An rdzv handler as torch's agent uses one.

    What torch does not say is found out here:

    - ``shutdown()`` has no reason. torch calls it in a ``finally``, where
      ``sys.exc_info()`` is the error that is on its way. None: the workers have
      succeeded; ``ChildFailedError``: they failed for good. Both close the run.
      Anything else is this agent's own trouble, and only this node leaves. After
      a signal torch does not call it at all; the node leaves at exit.
    - Workers fail when those of a dead node vanish, or of one that restarts for a
      newcomer, and torch's agent counts that as a restart. If this node knew of
      such a change, or the next round shows that a participant was gone, the
      restart is given back.
    """

    def __init__(self, handler: OwnHandler, backend: str) -> None:
        self._handler = handler
        self._backend = backend
        self._restarts_left: int | None = None
        self._surplus = False
        # An error that the launcher's caller is handling says nothing about the run.
        self._handled_before = sys.exc_info()[1]

    def get_backend(self) -> str:
        return self._backend

    def get_run_id(self) -> str:
        return self._handler.get_run_id()

    @property
    def use_agent_store(self) -> bool:
        return self._handler.use_agent_store

    def next_rendezvous(self) -> RendezvousInfo:
        agent = _calling_agent()
        broken = bool(getattr(self._handler, "round_broken", False))
        self._record("next_rendezvous", "RUNNING", "attempts to join the next round")
        try:
            with known_to_torch(), _heeding_sigterm(agent):
                info = self._handler.next_rendezvous()
        except Exception as exc:
            self._surplus = isinstance(exc, RendezvousGracefulExitError)
            self._record("next_rendezvous", "FAILED", f"{type(exc).__name__}: {exc}")
            raise
        gone = getattr(self._handler, "gone_before_round", 0)
        self._count_restarts(agent, others_doing=broken or bool(gone))
        self._record(
            "next_rendezvous",
            "RUNNING",
            f"has joined a round as rank {info.rank} of {info.world_size}",
            rank=info.rank,
        )
        return info  # type: ignore[return-value]

    def _count_restarts(self, agent: SimpleElasticAgent | None, *, others_doing: bool) -> None:
        # Private, and looked at with care: there is no other way to tell the agent.
        left = getattr(agent, "_remaining_restarts", None)
        if agent is None or not isinstance(left, int):
            return
        charged = self._restarts_left is not None and left < self._restarts_left
        if charged and others_doing:
            left += 1
            agent._remaining_restarts = left  # noqa: SLF001 - see above
            log.info("The workers failed with another node: this restart does not count.")
        self._restarts_left = left

    def is_closed(self) -> bool:
        with known_to_torch():
            return self._handler.is_closed()

    def set_closed(self) -> None:
        with known_to_torch():
            self._handler.set_closed()

    def num_nodes_waiting(self) -> int:
        with known_to_torch():
            return self._handler.num_nodes_waiting()

    def shutdown(self) -> bool:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        error = sys.exc_info()[1]
        if error is self._handled_before:
            error = None
        leave = getattr(self._handler, "leave", self._handler.shutdown)
        if error is None or isinstance(error, ChildFailedError):
            done = self._handler.shutdown()
            self._record("shutdown", "SUCCEEDED", "has shut the rendezvous down")
        else:
            log.info("This agent ends with %s: the run goes on without it.", type(error).__name__)
            done = bool(leave())
            self._record("shutdown", "FAILED", f"leaves with {type(error).__name__}")
        if self._surplus and isinstance(error, AttributeError) and _in_torchrun():
            # torch 2.13 calls a method of the result that a surplus node has not
            # got. The node was not needed: that is no failure.
            raise SystemExit(0)
        return done

    def _record(self, method: str, state: str, what: str, rank: int | None = None) -> None:
        from torch.distributed.elastic.events import NodeState, construct_and_record_rdzv_event

        node = str(getattr(self._handler, "node", ""))
        host, pid, local_id = [*node.rsplit("_", 2), "", ""][:3] if node else ("", "", "")
        construct_and_record_rdzv_event(
            name=f"{type(self._handler).__name__}.{method}",
            run_id=self._handler.get_run_id(),
            message=f"The node '{node}' {what} of the run '{self._handler.get_run_id()}'.",
            node_state=NodeState[state],
            hostname=host,
            pid=int(pid) if pid.isdigit() else os.getpid(),
            local_id=int(local_id) if local_id.isdigit() else None,
            rank=rank,
        )


@functools.cache
def _bridge_class() -> type[Any]:
    from torch.distributed.elastic.rendezvous.api import RendezvousHandler

    return type("RdzvHandler", (_Bridge, RendezvousHandler), {"__doc__": _Bridge.__doc__})


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the stack has no other door
    while frame is not None:
        yield frame
        frame = frame.f_back


def _calling_agent() -> SimpleElasticAgent | None:
    """The agent that is calling, if it is one of torch's: the handler is not told which."""
    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent

    for frame in _frames():
        caller = frame.f_locals.get("self")
        if isinstance(caller, SimpleElasticAgent):
            return caller
    return None


def _in_torchrun() -> bool:
    """Whether torchrun is what called, rather than a program with a launcher in it."""
    return any(
        frame.f_code.co_name == "main"
        and frame.f_code.co_filename.replace(os.sep, "/").endswith("torch/distributed/run.py")
        for frame in _frames()
    )
