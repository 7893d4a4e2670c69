"""Nodes with the real handler, in this process and in one of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdzv import events, hookimpl
from rdzv.dynamic_rendezvous import SessionBackend, WatchingBackend, create_handler
from rdzv.errors import RendezvousConnectionError
from rdzv.plugins import extensions

from .harness import Call, background, eventually

if TYPE_CHECKING:
    from torch.distributed import Store

    from rdzv.api import RendezvousHandler
    from rdzv.dynamic_rendezvous import RendezvousBackend

    from .harness import Run

__all__ = ["LocalNode", "Node", "OtherProcessError", "Place", "node", "other_node", "place_of"]

_SETTINGS = {
    "last_call_timeout": 0.3,
    "close_timeout": 5.0,
    # A machine that has much else to do is no reason for an eviction.
    "keep_alive_interval": 1.0,
    "keep_alive_max_attempt": 10,
}


@dataclass(frozen=True)
class Place:
    """What ``next_rendezvous`` and the handler said of a completed round."""

    round: int
    rank: int
    size: int
    master: tuple[str, int]


def place_of(handler: Any) -> tuple[Place, Store]:
    """Take part in the next round."""
    info = handler.next_rendezvous()
    where = info.bootstrap_store_info
    master = (where.master_addr, where.master_port)
    return Place(handler.round, info.rank, info.world_size, master), info.store


class Node(ABC):
    """One node of a run."""

    @abstractmethod
    def join(self) -> Call[Place]:
        """Begin to take part in the next round."""

    @abstractmethod
    def told(self) -> Call[None]:
        """Begin to wait until this node is told that a new round is due."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once, without a word to anybody."""

    @abstractmethod
    def pause(self) -> None:
        """Stop all that it does, as a machine that is suspended."""

    @abstractmethod
    def wake(self) -> None:
        """Let it go on."""


class Gate:
    """Where all calls of a node to its backend pass: closed while the node is paused."""

    def __init__(self) -> None:
        self.dead = False
        self._closed = False
        self._inside = 0
        self._changed = threading.Condition()

    def around(self, call: Callable[..., Any], *, waits: bool) -> Callable[..., Any]:
        """``call``, which begins and returns only while the gate is open."""

        def passing(*args: Any, **kwargs: Any) -> Any:
            self._pass(0 if waits else 1)
            try:
                answer = call(*args, **kwargs)
            finally:
                self._pass(0 if waits else -1)
            return answer

        return passing

    def open(self) -> None:
        """Let calls pass."""
        with self._changed:
            self._closed = False
            self._changed.notify_all()

    def close(self) -> None:
        """Let none begin, and none return."""
        self._closed = True

    def come_to_rest(self) -> None:
        """Let none begin, and wait until none but those that only wait is under way."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._inside == 0)

    def _pass(self, step: int) -> None:
        with self._changed:
            if step < 0:
                self._inside += step
                self._changed.notify_all()
            self._changed.wait_for(lambda: not self._closed)
            if self.dead:
                raise RendezvousConnectionError("This node was killed by the test.")
            if step > 0:
                self._inside += step


_SESSION = [
    "read",
    "swap",
    "wait",
    "enter",
    "records",
    "wait_records",
    "bury",
    "beat",
    "beats",
    "publish",
    "fetch",
    "forget",
]


def put_behind(gate: Gate, backend: RendezvousBackend) -> None:
    """Have all calls of one backend object pass a gate."""

    def cover(instance: object, names: list[str]) -> None:
        for name in names:
            waits = name.startswith("wait")
            setattr(instance, name, gate.around(getattr(instance, name), waits=waits))

    cover(backend, ["get_state", "set_state"])
    if isinstance(backend, WatchingBackend):
        cover(backend, ["wait_state"])
    if isinstance(backend, SessionBackend):
        opens = backend.open_session

        def open_session() -> Any:
            session = opens()
            cover(session, _SESSION)
            return session

        backend.open_session = open_session  # type: ignore[method-assign]
        cover(backend, ["open_session"])


class LocalNode(Node):
    """A handler in this process.

    Args:
        run: The run.
        low: ``min_nodes``.
        high: ``max_nodes``.
        settings: Other settings of the handler.
    """

    def __init__(self, run: Run, low: int, high: int, **settings: Any) -> None:
        given = {"join_timeout": run.limit, **_SETTINGS, **settings}
        params = run.deployment.parameters(run.id, low, high, **given)
        self._run = run
        self._gate = Gate()
        self.store: Store | None = None
        backend, shared = run.soon(lambda: run.deployment.create(params), "making a client")
        put_behind(self._gate, backend)
        self.handler: RendezvousHandler = create_handler(shared, backend, params)
        run.at_end(self._end)

    def _end(self) -> None:
        self._gate.open()
        leaving = background(self.handler.leave)  # type: ignore[attr-defined]  # the dynamic handler's
        if not self._gate.dead:
            leaving.result()

    def join(self) -> Call[Place]:
        def joining() -> Place:
            place, self.store = place_of(self.handler)
            return place

        return background(joining)

    def told(self) -> Call[None]:
        what = "a new round is due (num_nodes_waiting() >= 1)"
        return background(lambda: eventually(self.waiting, self._run.limit, what))

    def waiting(self) -> int:
        """What ``num_nodes_waiting()`` says."""
        return self.handler.num_nodes_waiting()

    def leave(self) -> None:
        """Leave the run, which goes on."""
        self._run.soon(self.handler.leave, "leave()")  # type: ignore[attr-defined]  # as above

    def close(self) -> None:
        """Close the run."""
        self._run.soon(self.handler.set_closed, "set_closed()")

    def kill(self) -> None:
        self._gate.dead = True

    def pause(self) -> None:
        self._gate.close()

    def wake(self) -> None:
        self._gate.open()

    def heard(self, kind: type[events.Event]) -> list[events.Event]:
        """The events of this kind that this node has told observers of."""
        name = self.handler.node  # type: ignore[attr-defined]  # as above
        return [e for e in _RECORDER.of(self._run.id) if isinstance(e, kind) and e.node == name]


class OtherProcessError(AssertionError):
    """What a node in another process was told to do has failed there."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"in another process: {kind}: {text}")
        self.kind = kind


class _OtherNode(Node):
    """A handler in a process of its own, which is told what to do a line at a time."""

    def __init__(self, run: Run, low: int, high: int, **settings: Any) -> None:
        given = {"join_timeout": run.limit, **_SETTINGS, **settings}
        params = run.deployment.parameters(run.id, low, high, **given)
        self._run = run
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rdzv.testing.contract.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )
        run.at_end(self.kill)
        about = {
            "backend": params.backend,
            "endpoint": params.endpoint,
            "run_id": params.run_id,
            "min_nodes": low,
            "max_nodes": high,
            "local_addr": params.local_addr,
            **params.config,
        }
        run.soon(lambda: self._ask(about), "starting a node in another process")

    def _ask(self, command: object) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError
        with self._lock:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise OtherProcessError("it ended", f"exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise OtherProcessError(answer["error"], answer["text"])
        return answer

    def join(self) -> Call[Place]:
        def joining() -> Place:
            answer = self._ask("join")
            return Place(**{**answer, "master": tuple(answer["master"])})

        return background(joining)

    def told(self) -> Call[None]:
        return background(lambda: (self._ask("told"), None)[1])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # What was not written any more is of no use to anybody.
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def pause(self) -> None:
        # Between two calls: what a process holds that stops in the middle of one, a lock on a
        # file, say, is not what is tested.
        self._run.soon(lambda: self._ask("rest"), "coming to rest")
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._run.soon(lambda: self._ask("go on"), "waking")


def node(run: Run, low: int, high: int, **settings: Any) -> LocalNode:
    """A node in this process."""
    return LocalNode(run, low, high, **settings)


def other_node(run: Run, low: int, high: int, **settings: Any) -> Node:
    """A node in another process where the backend can be reached from there, else in this one."""
    deployment = run.deployment
    elsewhere = deployment.other_processes
    if elsewhere is None:
        elsewhere = isinstance(deployment.backend, str)
    return (_OtherNode if elsewhere else LocalNode)(run, low, high, **settings)


class _Recorder:
    """Keeps what the handlers of this process tell observers."""

    def __init__(self) -> None:
        self._seen: dict[str, list[events.Event]] = defaultdict(list)
        self._lock = threading.Lock()

    def of(self, run_id: str) -> list[events.Event]:
        with self._lock:
            return list(self._seen[run_id])

    def register(self) -> None:
        manager = extensions()
        if not manager.is_registered(self):
            manager.register(self, name="rdzv-contract")

    @hookimpl
    def rdzv_event(self, event: events.Event) -> None:
        with self._lock:
            self._seen[event.run_id].append(event)


_RECORDER = _Recorder()
_RECORDER.register()
