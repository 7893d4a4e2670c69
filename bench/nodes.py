"""A process that is many nodes: a handler each, and a thread that plays its agent."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import Store, TCPStore

from bench import counting
from bench.child import serve

_HOST = "127.0.0.1"


class Node:
    """One handler, rdzv's or torch's, and what its calls came to.

    Args:
        kind: ``rdzv``, ``counting`` (rdzv with its requests counted), ``redis``, ``etcd``, or
            ``torch``, ``torch-etcd-v2``, ``torch-etcd`` (its legacy handler).
        run: The run id.
        port: The store's port.
        settings: ``min``, ``max`` and, in seconds, ``join``, ``last_call`` and ``interval``;
            ``attempts``.
    """

    def __init__(self, kind: str, run: str, port: int, settings: dict[str, Any]) -> None:
        self.kind = kind
        self.backend: Any
        self.run = run
        join = timedelta(seconds=settings.get("join", 60.0))
        last_call = timedelta(seconds=settings.get("last_call", 5.0))
        # As under torchrun, each node has a client of its own.
        self.handler: Any
        if kind == "torch-etcd":
            self._make_legacy(port, settings, join, last_call)
        elif self.is_theirs:
            self._make_theirs(port, settings, join, last_call)
        else:
            self._make_ours(port, settings, join, last_call)
        self.result: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self._ranked_at = (0, 0)
        if kind == "counting":
            self._mark_rank()

    def _make_theirs(
        self, port: int, settings: dict[str, Any], join: timedelta, last_call: timedelta
    ) -> None:
        from torch.distributed.elastic.rendezvous import dynamic_rendezvous

        store: Store
        if self.kind == "torch-etcd-v2":
            from torch.distributed.elastic.rendezvous import etcd_rendezvous_backend
            from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore

            client = _v2_client(port)
            self.backend = etcd_rendezvous_backend.EtcdRendezvousBackend(
                client, self.run, "/torch/elastic/rendezvous"
            )
            store = EtcdStore(client, f"/torch/elastic/store/{self.run}")
        else:
            from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend

            store = TCPStore(_HOST, port, is_master=False, wait_for_workers=False)
            self.backend = c10d_rendezvous_backend.C10dRendezvousBackend(store, self.run)
        self.handler = dynamic_rendezvous.DynamicRendezvousHandler.from_backend(
            self.run, store, self.backend, settings["min"], settings["max"], _HOST,
            dynamic_rendezvous.RendezvousTimeout(join, last_call),
        )  # fmt: skip

    def _make_legacy(
        self, port: int, settings: dict[str, Any], join: timedelta, last_call: timedelta
    ) -> None:
        from torch.distributed.elastic.rendezvous import etcd_rendezvous

        etcd_rendezvous.logger.setLevel("ERROR")
        make: Any = etcd_rendezvous.EtcdRendezvous
        self.handler = etcd_rendezvous.EtcdRendezvousHandler(
            make(
                _v2_client(port), "/torchelastic/p2p", self.run, settings["min"], settings["max"],
                join.total_seconds(), last_call.total_seconds(),
            ),
            _HOST,
        )  # fmt: skip

    def _make_ours(
        self, port: int, settings: dict[str, Any], join: timedelta, last_call: timedelta
    ) -> None:
        from rdzv.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

        store: Store
        if self.kind == "redis":
            from redis import Redis

            from rdzv_redis import RedisRendezvousBackend, RedisStore

            client = Redis(port=port, protocol=2, socket_timeout=5.0)
            self.backend = RedisRendezvousBackend(client, self.run)
            store = RedisStore(client, self.backend.run.key("store"))
        elif self.kind == "etcd":
            from rdzv_etcd import EtcdClient, EtcdRendezvousBackend, EtcdStore

            etcd_client = EtcdClient(f"{_HOST}:{port}")
            self.backend = EtcdRendezvousBackend(etcd_client, self.run)
            self.backend.run.probe()  # As create_backend does.
            store = EtcdStore(etcd_client, self.backend.run.root("store"))
        else:
            from rdzv_c10d import C10dRendezvousBackend

            counts = self.kind == "counting"
            store = TCPStore(_HOST, port, is_master=False, wait_for_workers=False)
            self.backend = (counting.CountingBackend if counts else C10dRendezvousBackend)(
                store, self.run
            )
        self.handler = DynamicRendezvousHandler.from_backend(
            self.run, store, self.backend, settings["min"], settings["max"], _HOST,
            RendezvousTimeout(join, last_call),
            settings.get("interval", 1.0),
            settings.get("attempts", 5),
        )  # fmt: skip

    def _mark_rank(self) -> None:
        """Note what had been asked by the moment at which this node knew its rank."""
        machine = self.handler._driver.machine
        move = machine._move

        def marked(phase: Any) -> None:
            move(phase)
            if phase.name == "BOOTSTRAPPING":
                self._ranked_at = self.total()[:2]

        machine._move = marked

    def warm_up(self) -> None:
        """Have the connections open before anything is measured."""
        self.handler.is_closed()
        if self.is_theirs:
            return
        until = time.monotonic() + 10
        while not self._listens() and time.monotonic() < until:
            time.sleep(0.002)  # The one that watches is opened in a thread of its own.

    def _listens(self) -> bool:
        """Whether its connections are open, and what is pushed would reach it."""
        sessions = list(self.handler._driver._sessions)
        name = {"redis": "_listeners", "etcd": "_watches"}.get(self.kind)
        pushed = name is None or any(getattr(session, name) for session in sessions)
        return len(sessions) > 1 and pushed

    @property
    def is_theirs(self) -> bool:
        return self.kind.startswith("torch")

    @property
    def leads(self) -> bool:
        return not self.is_theirs and self.handler._driver.machine.leading is not None

    def waits(self) -> bool:
        """Whether this node has entered and waits for the round."""
        if self.kind == "torch":
            return bool(self.handler._state_holder.state.wait_list) or (
                self.handler._this_node in self.handler._state_holder.state.participants
            )
        return str(self.handler._driver.machine.phase.name) == "WAITING"

    def total(self) -> tuple[int, int, dict[str, int]]:
        if self.kind != "counting":
            return 0, 0, {}
        found: tuple[int, int, dict[str, int]] = self.backend.ledger.total()
        return found

    def start(self, go: threading.Event, at: list[float], before: Callable[[], None]) -> None:
        """Have a thread that enters the rendezvous at ``at``, once ``before`` has returned."""

        def play() -> None:
            go.wait()
            time.sleep(max(0.0, at[0] - time.monotonic()))
            before()
            self.enter()

        self.result = {}
        self.thread = threading.Thread(target=play, daemon=True)
        self.thread.start()

    def enter(self) -> None:
        requests, read, kinds = self.total()
        self._ranked_at = requests, read
        error, rank, size = None, -1, 0
        started = time.monotonic()
        try:
            info = self.handler.next_rendezvous()
            ended = time.monotonic()
            rank, size = info.rank, info.world_size
        except Exception as exc:  # noqa: BLE001  # It is a result.
            ended = time.monotonic()
            error = f"{type(exc).__name__}: {exc}"
        more = self.total()
        self.result = {
            "run": self.run,
            "start": started,
            "end": ended,
            "rank": rank,
            "size": size,
            "error": error,
            "leads": self.leads,
            "requests": self._ranked_at[0] - requests,
            "read": self._ranked_at[1] - read,
            "requests in all": more[0] - requests,
            "read in all": more[1] - read,
            "kinds": {k: n - kinds.get(k, 0) for k, n in more[2].items() if n > kinds.get(k, 0)},
        }

    def watch(self, poll: float, seconds: float) -> None:
        """Play an agent whose workers are healthy, until there is a reason to restart them."""
        until = time.monotonic() + seconds
        while self.handler.num_nodes_waiting() == 0:
            if time.monotonic() > until:
                raise TimeoutError("nobody asked for another round")
            time.sleep(poll)

    def drop(self) -> None:
        if self.kind == "torch-etcd":
            self.handler._rdzv_impl._lease_run_id_stop.set()
        elif self.is_theirs:
            self.handler._stop_heartbeats()
        else:
            self.handler.leave()


def _v2_client(port: int) -> Any:
    import etcd

    return etcd.Client(_HOST, port, allow_reconnect=True, read_timeout=60)


class Nodes:
    """The commands of this process."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._started: list[Node] = []
        self._go = threading.Event()
        self._at = [0.0]

    def hello(self) -> None:
        """Answer, and so be known to have started."""

    def make(
        self, *, kind: str, run: str, count: int, port: int, more: bool = False, **settings: Any
    ) -> None:
        """Make ``count`` nodes, ``more`` or others, and open their connections."""
        if kind == "counting":
            counting.install()
        made = [Node(kind, run, port, settings) for _ in range(count)]
        for node in made:
            node.warm_up()
        self._nodes = [*self._nodes, *made] if more else made

    def prepare(
        self, *, skip: int = 0, only: int | None = None, poll: float = 0.0, watchers: int = 0
    ) -> None:
        """Start the threads of the nodes from ``skip`` on (``only`` so many).

        The first ``watchers`` of them poll ``num_nodes_waiting()`` every ``poll`` seconds and
        enter when there is a reason; the others enter at the start signal.
        """
        # What was before is not looked through within the round: each node would have a heap of
        # its own elsewhere, and here one's collection holds up all.
        gc.collect()
        gc.freeze()
        self._go.clear()
        end = len(self._nodes) if only is None else skip + only
        self._started = self._nodes[skip:end]
        for number, node in enumerate(self._started):
            before: Callable[[], None] = _at_once
            if number < watchers:
                before = _watching(node, poll)
            node.start(self._go, self._at, before)

    def start(self, *, at: float) -> None:
        """Give the start signal: a time of the monotonic clock, which all processes share."""
        self._at[0] = at
        self._go.set()

    def finish(self, *, timeout: float) -> list[dict[str, Any]]:
        """Wait for the nodes that were started; what their calls came to."""
        until = time.monotonic() + timeout
        for node in self._started:
            if node.thread is not None:
                node.thread.join(max(0.0, until - time.monotonic()))
        late = {"error": f"not back within {timeout:g} s", "end": time.monotonic()}
        return [node.result or late for node in self._started]

    def late(self, *, at: float) -> None:
        """Have the first node enter at ``at``, after the others have."""
        node, moment = self._nodes[0], [at]
        node.start(self._go, moment, _at_once)
        self._started = list(self._nodes)

    def waiting(self) -> int:
        """How many nodes have entered and wait."""
        return sum(node.waits() for node in self._nodes)

    def tally(self, *, at: float, seconds: float, poll: float) -> list[dict[str, Any]]:
        """Play healthy agents for ``seconds``; the requests that each node made meanwhile."""
        time.sleep(max(0.0, at - time.monotonic()))
        before = [node.total() for node in self._nodes]
        restarts = 0
        while time.monotonic() < at + seconds:
            restarts += sum(node.handler.num_nodes_waiting() > 0 for node in self._nodes)
            time.sleep(poll)
        if restarts:
            raise RuntimeError("a node asked for another round while all were healthy")
        return [
            {
                "requests": node.total()[0] - total[0],
                "leads": node.leads,
                "kinds": {k: n - total[2].get(k, 0) for k, n in node.total()[2].items()},
            }
            for node, total in zip(self._nodes, before, strict=True)
        ]

    def drop(self) -> None:
        """Have all nodes leave."""
        threads = [threading.Thread(target=node.drop, daemon=True) for node in self._nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self._nodes = []
        self._started = []


def _at_once() -> None:
    pass


def _watching(node: Node, poll: float) -> Callable[[], None]:
    return lambda: node.watch(poll, 60.0)


def _stay(place: int) -> None:
    """Have all threads of this process on one core, the next one for each process.

    Nodes that share an interpreter take turns anyway. If the next one waits on another core,
    each turn wakes that, which costs more than the turn; no node that has an interpreter for
    itself pays it.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[place % len(cores)]})


if __name__ == "__main__":
    faulthandler.enable()
    _stay(int(sys.argv[1]))
    # Room for what torch does where it writes a backtrace.
    threading.stack_size(1024 * 1024)
    # Here hundreds of nodes share an interpreter that each has for itself elsewhere. By default
    # every thread that waits for it wakes 200 times a second to ask for it, and that alone takes
    # more time than all of their work.
    sys.setswitchinterval(0.1)
    nodes = Nodes()
    serve(
        {
            name: getattr(nodes, name)
            for name in (
                "hello", "make", "prepare", "start", "late", "finish", "waiting", "tally", "drop",
            )
        }
    )  # fmt: skip
