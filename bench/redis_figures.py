"""The figures of rdzv-redis: rounds, what the server counts, and its store beside TCPStore."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from torch.distributed import Store, TCPStore

from bench.figures import Options, Row, bytes_row, check_ranks, duration, rounds_of, spread
from bench.fleet import Fleet
from rdzv_redis import RedisServer, RedisStore

__all__ = ["REDIS_FIGURES"]

_SERVER = "bench.redis_server"


def redis(options: Options) -> Iterator[Row]:
    """One round of 64 and of 512 nodes on one server."""
    for nodes, target, repeat in ((64, 0.040, options.repeat), (512, 0.6, options.repeat // 2)):
        with Fleet(server=_SERVER) as fleet:
            times = rounds_of(fleet, "redis", nodes, max(1, repeat))
        with Fleet() as fleet:
            others = rounds_of(fleet, "rdzv", nodes, max(1, repeat // 2))
        ratio = statistics.median(times) / statistics.median(others)
        yield Row(
            f"redis: one round of {nodes} nodes",
            f"{spread(times)}; rdzv-c10d {spread(others)}: {ratio:.2f} times its",
            f"under {duration(target)}",
            statistics.median(times) < target,
            {"redis": times, "rdzv-c10d": others},
        )


def redis_requests(options: Options) -> Iterator[Row]:
    """What the server has counted in a round, a node."""
    del options
    found: dict[int, dict[str, float]] = {}
    for nodes in (8, 64, 512):
        with Fleet(server=_SERVER) as fleet:
            fleet.make("redis", nodes, interval=30.0)
            fleet.server.ask("forget")
            fleet.round()
            counted = fleet.server.ask("counted")
            fleet.drop()
        calls = counted["calls"]
        found[nodes] = {
            "requests": (calls["evalsha"] + calls.get("subscribe", 0)) / nodes,
            "work": sum(n for name, n in calls.items() if "config" not in name) / nodes,
            "in": counted["in"] / nodes,
            "out": counted["out"] / nodes,
        }
        yield Row(
            f"redis: requests a node in a round, {nodes} nodes",
            f"mean {found[nodes]['requests']:.2f}, the leader's included; with what the scripts "
            f"call {found[nodes]['work']:.1f} commands",
            "at most 6",
            found[nodes]["requests"] <= 6,
            {"calls": calls},
        )
    few, many = found[8]["work"], found[512]["work"]
    yield Row(
        "redis: commands a node in a round, 8 and 512 nodes, by the server",
        f"{few:.1f} and {many:.1f} ({100 * (many / few - 1):+.1f} %)",
        "no more with 512",
        many <= few * 1.1,
        {"8": few, "512": many},
    )
    yield bytes_row("redis", found)


def redis_runs(options: Options) -> Iterator[Row]:
    """Ten runs of 64 nodes at once on one server."""
    del options
    with Fleet(server=_SERVER) as fleet:
        runs = [uuid.uuid4().hex[:8] for _ in range(10)]
        fleet.make_several("redis", 64, runs)
        seconds, found = fleet.round()
        for run in runs:
            check_ranks([node for node in found if node["run"] == run])
        fleet.drop()
    yield Row(
        "redis: ten runs of 64 nodes each, at once on one server",
        duration(seconds),
        "all complete",
        True,
        {"seconds": seconds},
    )


# ---------------------------------------------------------------- the store

_CALLS = 2000
_KEYS = 10_000


def redis_store(options: Options) -> Iterator[Row]:
    """RedisStore beside TCPStore, a call from Python."""
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with RedisServer() as server, server.client() as client:
        tcp = TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False)
        ours = RedisStore(client, "bench:{store}")
        calls: dict[str, Callable[[Store], Any]] = {
            "set": lambda store: store.set("key", "value"),
            "get": lambda store: store.get("key"),
            "add": lambda store: store.add("counter", 1),
            # TCPStore's set waits for no answer; this does.
            "set and get": _set_and_get,
        }
        for name, call in calls.items():
            times: dict[str, list[float]] = {"tcp": [], "redis": []}
            for _ in range(max(3, options.repeat)):  # In turns, as both are disturbed alike.
                for kind, store in (("tcp", tcp), ("redis", ours)):
                    times[kind].append(_time(store, call))
            theirs, mine = (statistics.median(times[kind]) for kind in ("tcp", "redis"))
            yield Row(
                f"RedisStore.{name}",
                f"{mine * 1e6:.0f} us; TCPStore {theirs * 1e6:.0f} us: {mine / theirs:.2f} times",
                "at most 2.5 times TCPStore's",
                mine / theirs <= 2.5,
                times,
            )
        keys = [f"key{number}" for number in range(_KEYS)]
        ours.multi_set(keys, ["value"] * _KEYS)
        taken = []
        for _ in range(max(3, options.repeat)):
            started = time.perf_counter()
            values = ours.multi_get(keys)
            taken.append(time.perf_counter() - started)
            if len(values) != _KEYS:
                raise RuntimeError("a value is missing")
        yield Row(
            f"RedisStore.multi_get of {_KEYS:,} keys",
            spread(taken),
            "under 200 ms",
            statistics.median(taken) < 0.2,
            {"seconds": taken},
        )


def _set_and_get(store: Store) -> None:
    store.set("key", "value")
    store.get("key")


def _time(store: Store, call: Callable[[Store], Any]) -> float:
    call(store)
    started = time.perf_counter()
    for _ in range(_CALLS):
        call(store)
    return (time.perf_counter() - started) / _CALLS


REDIS_FIGURES: dict[str, Callable[[Options], Iterator[Row]]] = {
    "redis": redis,
    "redis-requests": redis_requests,
    "redis-runs": redis_runs,
    "redis-store": redis_store,
}
