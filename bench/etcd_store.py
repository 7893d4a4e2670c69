"""EtcdStore beside torch's on one server: milliseconds for an operation, medians of several runs.

    python -m bench.etcd_store [RUNS]

torch's needs python-etcd, and an etcd that speaks the v2 API (3.4 or 3.5). Without python-etcd
rdzv's figures are taken alone.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from rdzv_etcd.server import EtcdServer
from rdzv_etcd.store import EtcdStore

OPERATIONS = 200
KEYS = 100
THREADS = 64


def cost(operation: Callable[[int], object], count: int = OPERATIONS) -> float:
    operation(0)
    start = time.perf_counter()
    for number in range(count):
        operation(number)
    return (time.perf_counter() - start) / count * 1000


def woken(reader: Any, writer: Any, name: str) -> float:
    """From the write to the waiting reader that has the value."""
    done: list[float] = []
    thread = threading.Thread(target=lambda: (reader.get(name), done.append(time.perf_counter())))
    thread.start()
    time.sleep(0.05)  # It waits by now; if not, the figure is only better.
    start = time.perf_counter()
    writer.set(name, "x")
    thread.join()
    return (done[0] - start) * 1000


def contended(open_store: Callable[[], Any]) -> float:
    """One add by each of many threads with a store of their own."""
    stores = [open_store() for _ in range(THREADS)]
    for store in stores:
        store.check(["connected"])
    threads = [threading.Thread(target=store.add, args=("contended", 1)) for store in stores]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - start) * 1000


def figures(open_store: Callable[[], Any], run: int) -> dict[str, float]:
    store, other = open_store(), open_store()
    # Their directories are as large as those of a job: torch's reads all to get one.
    found = {"set": cost(lambda number: store.set(f"{run}/{number % KEYS}", "v" * 100))}
    found["get"] = cost(lambda number: store.get(f"{run}/{number % KEYS}"))
    found["add"] = cost(lambda _: store.add(f"{run}/n", 1))
    found["check"] = cost(lambda _: store.check([f"{run}/0"]))
    wakes = [woken(store, other, f"{run}/wake/{number}") for number in range(20)]
    found["set until a waiting get has it"] = statistics.median(wakes)
    found[f"one add by each of {THREADS} threads"] = contended(open_store)
    return found


def medians(open_store: Callable[[int], Callable[[], Any]], runs: int) -> dict[str, float]:
    taken = [figures(open_store(run), run) for run in range(runs)]
    return {name: statistics.median(each[name] for each in taken) for name in taken[0]}


def theirs(port: int) -> Callable[[int], Callable[[], Any]] | None:
    try:
        import etcd
    except ImportError:
        return None
    from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore as TorchStore

    def for_run(run: int) -> Callable[[], Any]:
        return lambda: TorchStore(etcd.Client(port=port), f"/torch/{run}")

    return for_run


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with EtcdServer(enable_v2=True) as server:

        def ours(run: int) -> Callable[[], Any]:
            return lambda: EtcdStore(server.get_client(), f"/rdzv/{run}")

        mine = medians(ours, runs)
        other = theirs(server.port)
        torchs = medians(other, runs) if other else {}
    for name, value in mine.items():
        line = f"{name}: {value:.2f} ms"
        if name in torchs:
            line += f"; torch {torchs[name]:.2f} ms: {torchs[name] / value:.1f} times"
        print(line)


if __name__ == "__main__":
    main()
