"""How soon a run with deferred admission opens once its workers have reached a checkpoint."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

import rdzv
from bench.figures import Options, Row, spread
from rdzv.checkpoints import KEY, WAITING
from rdzv.dynamic_rendezvous import DynamicRendezvousHandler
from rdzv_c10d import C10dRendezvousBackend

__all__ = ["ADMISSION_FIGURES"]

_HOST = "127.0.0.1"
_TARGET = 1.0
_LONG = 30.0


def admission(options: Options) -> Iterator[Row]:
    """From a worker's ``checkpoint_reached()`` until all agents know that a new round opens."""
    server = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    times = [_opened(server.port) for _ in range(max(3, options.repeat))]
    yield Row(
        "checkpoint_reached() to the last of 2 agents knowing that a round opens",
        spread(times),
        "at most 1 s",
        max(times) <= _TARGET,
        {"seconds": times},
    )


def _opened(port: int) -> float:
    run = uuid.uuid4().hex[:8]
    nodes = [_node(run, port) for _ in range(3)]
    try:
        workers: list[rdzv.RendezvousInfo] = []
        joins = [threading.Thread(target=lambda n=n: workers.append(n.next_rendezvous()))
                 for n in nodes[:2]]  # fmt: skip
        for join in joins:
            join.start()
        for join in joins:
            join.join(_LONG)
        master: Any = workers[0].bootstrap_store_info
        store = TCPStore(
            master.master_addr, master.master_port, is_master=False, wait_for_workers=False
        )
        late = threading.Thread(target=_join_late, args=(nodes[2],), daemon=True)
        late.start()
        _wait(lambda: store.check([KEY]) and store.get(KEY) == WAITING.encode())
        started = time.monotonic()
        if not rdzv.checkpoint_reached(store):
            raise RuntimeError("nobody waited for the checkpoint")
        _wait(lambda: all(node.num_nodes_waiting() > 0 for node in nodes[:2]))
        return time.monotonic() - started
    finally:
        for node in nodes:
            node.leave()


def _join_late(node: DynamicRendezvousHandler) -> None:
    with contextlib.suppress(rdzv.RendezvousError):  # It is ended before it gets in.
        node.next_rendezvous()


def _node(run: str, port: int) -> DynamicRendezvousHandler:
    store = TCPStore(_HOST, port, is_master=False, wait_for_workers=False)
    return DynamicRendezvousHandler.from_backend(
        run, store, C10dRendezvousBackend(store, run), 2, 3, _HOST,
        rdzv.RendezvousTimeout(last_call=timedelta(seconds=0.1)), admission="deferred",
    )  # fmt: skip


def _wait(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + _LONG
    while not happened():
        if time.monotonic() > until:
            raise TimeoutError(f"nothing has happened for {_LONG:g} s")
        time.sleep(0.002)


ADMISSION_FIGURES: dict[str, Callable[[Options], Iterator[Row]]] = {"admission": admission}
