"""The figures of rdzv-etcd beside torch's backends for etcd, and what the server counts."""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bench.figures import Options, Row, bytes_row, duration, rounds_of, spread
from bench.fleet import Fleet
from rdzv_etcd import EtcdClient, EtcdServer, EtcdStore

if TYPE_CHECKING:
    from torch.distributed import Store

__all__ = ["ETCD_FIGURES"]

_SERVER = "bench.etcd_server"
_KV = ("calls Range", "calls Txn", "calls Put", "calls DeleteRange", "calls Watch")


def etcd(options: Options) -> Iterator[Row]:
    """One round of 64 and of 512 nodes on one server, and of 64 with torch's backends."""
    for nodes, target, repeat in ((64, 0.080, options.repeat), (512, 1.2, options.repeat // 2)):
        with Fleet(server=_SERVER) as fleet:
            times = rounds_of(fleet, "etcd", nodes, max(1, repeat))
            data = {"etcd": times}
            said = spread(times)
            # torch's take far too long for more.
            for kind in ("torch-etcd-v2", "torch-etcd") if nodes == 64 else ():
                theirs = data[kind] = rounds_of(fleet, kind, nodes, min(options.repeat, 3))
                ratio = statistics.median(theirs) / statistics.median(times)
                said += f"; {kind.replace('-', chr(39) + 's ', 1)} {spread(theirs)}: {ratio:.0f} x"
        yield Row(
            f"etcd: one round of {nodes} nodes",
            said,
            f"under {duration(target)}",
            statistics.median(times) < target,
            data,
        )


def etcd_requests(options: Options) -> Iterator[Row]:
    """What the server has counted in a round, a node."""
    del options
    found: dict[int, dict[str, float]] = {}
    for nodes in (8, 64, 512):
        with Fleet(server=_SERVER) as fleet:
            fleet.make("etcd", nodes, interval=30.0)
            fleet.server.ask("forget")
            fleet.round()
            counted = fleet.server.ask("counted")
            fleet.drop()
        calls = {name: n for name, n in counted.items() if name.startswith("calls") and n}
        found[nodes] = {
            "requests": sum(calls.get(name, 0) for name in _KV) / nodes,
            "in": counted["in"] / nodes,
            "out": counted["out"] / nodes,
        }
        yield Row(
            f"etcd: requests a node in a round, {nodes} nodes",
            f"mean {found[nodes]['requests']:.2f}, the leader's and watches included",
            "at most 6",
            found[nodes]["requests"] <= 6,
            {"calls": calls},
        )
    yield bytes_row("etcd", found)


_HEALTHY = 20.0


def etcd_healthy(options: Options) -> Iterator[Row]:
    """What 512 healthy nodes ask for in a second."""
    del options
    nodes = 512
    with Fleet(server=_SERVER) as fleet:
        fleet.make("etcd", nodes)
        fleet.round()
        time.sleep(5.0)  # Until the first beats have made the leases.
        before = fleet.server.ask("revision")
        fleet.server.ask("forget")
        time.sleep(_HEALTHY)
        counted = fleet.server.ask("counted")
        written = fleet.server.ask("revision") - before
        fleet.drop()
    calls = {name: n for name, n in counted.items() if name.startswith("calls") and n}
    each = sum(calls.values()) / nodes / _HEALTHY
    keepalives = calls.get("calls LeaseKeepAlive", 0) / nodes / _HEALTHY
    yield Row(
        f"etcd: a second of {nodes} healthy nodes",
        f"{written} writes in {_HEALTHY:.0f} s; {each:.2f} requests a node and second, "
        f"{keepalives:.2f} of them keep its lease alive",
        "no writes",
        written == 0,
        {"calls": calls},
    )


# ---------------------------------------------------------------- the client and the store

_CALLS = 1000
_KEYS = (100, 1000)


def etcd_watch(options: Options) -> Iterator[Row]:
    """From a put to its event: the client beside a bare stream of grpcio's."""
    times: dict[str, list[float]] = {"client": [], "bare": []}
    with EtcdServer() as server:
        client = EtcdClient(server.get_endpoint())
        watch = client.watch(b"client")
        bare = _Bare(server.get_endpoint(), b"bare")
        for _ in range(max(3, options.repeat)):
            waits: dict[str, Callable[[], object]] = {
                "client": lambda: watch.next(10.0),
                "bare": bare.next,
            }
            for kind, wait in waits.items():
                taken = []
                for _ in range(_CALLS // 5):
                    started = time.perf_counter()
                    client.put(kind.encode(), b"value")
                    wait()
                    taken.append(time.perf_counter() - started)
                times[kind].append(statistics.median(taken))
        client.close()
        bare.close()
    ours, theirs = (statistics.median(times[kind]) for kind in ("client", "bare"))
    yield Row(
        "etcd: from a put to its event",
        f"{duration(ours)}; a bare stream {duration(theirs)}: {ours / theirs:.2f} times",
        "at most 1.2 times",
        ours / theirs <= 1.2,
        times,
    )


class _Bare:
    """A watch as grpcio has it, with nothing around it."""

    def __init__(self, endpoint: str, key: bytes) -> None:
        import grpc

        from rdzv_etcd.wire import message

        self._channel = grpc.insecure_channel(endpoint)
        call = self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            message("WatchRequest").SerializeToString,
            message("WatchResponse").FromString,
        )
        self._over = threading.Event()
        create = message("WatchCreateRequest")(key=key)

        def requests() -> Iterator[Any]:
            yield message("WatchRequest")(create_request=create)
            self._over.wait()

        self._responses = call(requests())
        next(self._responses)  # It stands.

    def next(self) -> None:
        next(self._responses)

    def close(self) -> None:
        self._over.set()
        self._channel.close()


def etcd_store(options: Options) -> Iterator[Row]:
    """EtcdStore beside torch's, a call from Python."""
    import etcd
    from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore as TorchStore

    with EtcdServer(enable_v2=True) as server:
        v2 = etcd.Client("127.0.0.1", server.get_port(), allow_reconnect=True)
        theirs: Store = TorchStore(v2, f"/bench/{uuid.uuid4().hex}")
        client = EtcdClient(server.get_endpoint())
        ours: Store = EtcdStore(client, f"/bench/{uuid.uuid4().hex}")
        calls: dict[str, Callable[[Store], Any]] = {
            "set": lambda store: store.set("key", "value"),
            "get": lambda store: store.get("key"),
            "add": lambda store: store.add("counter", 1),
        }
        bare = _BareCalls(server.get_endpoint())
        there = 0
        for keys in _KEYS:
            # torch's reads all of them to get one.
            for store in (ours, theirs):
                for number in range(there, keys):
                    store.set(f"key {number}", "v" * 100)
            there = keys
            for name, call in calls.items():
                yield _compared(options, f"EtcdStore.{name}, {keys} keys there", call, ours, theirs,
                                bare.get if name == "get" else bare.put)  # fmt: skip
        bare.close()
        client.close()


class _BareCalls:
    """One read and one write as grpcio has them, with nothing around them: what no store beats."""

    def __init__(self, endpoint: str) -> None:
        import grpc

        from rdzv_etcd.wire import message

        self._channel = grpc.insecure_channel(endpoint)

        def method(name: str, kind: str) -> Callable[[Any], Any]:
            return self._channel.unary_unary(
                f"/etcdserverpb.KV/{name}",
                message(f"{kind}Request").SerializeToString,
                message(f"{kind}Response").FromString,
            )

        read, write = method("Range", "Range"), method("Put", "Put")
        wanted, written = message("RangeRequest"), message("PutRequest")
        self.get = lambda: read(wanted(key=b"bare"))
        self.put = lambda: write(written(key=b"bare", value=b"value"))

    def close(self) -> None:
        self._channel.close()


def _compared(
    options: Options,
    name: str,
    call: Callable[[Store], Any],
    ours: Store,
    theirs: Store,
    bare: Callable[[], Any],
) -> Row:
    times: dict[str, list[float]] = {"ours": [], "torch": [], "bare": []}
    for _ in range(max(3, options.repeat // 2)):
        times["ours"].append(_time(lambda: call(ours)))
        times["torch"].append(_time(lambda: call(theirs)))
        times["bare"].append(_time(bare))
    mine, others, least = (statistics.median(found) for found in times.values())
    return Row(
        name,
        f"{mine * 1e6:.0f} us; torch's EtcdStore {others * 1e6:.0f} us: {others / mine:.1f} times "
        f"faster; one bare request through grpcio {least * 1e6:.0f} us",
        "at least 5 times faster than torch's",
        others / mine >= 5,
        times,
    )


def _time(call: Callable[[], Any]) -> float:
    call()
    started = time.perf_counter()
    for _ in range(_CALLS // 5):
        call()
    return (time.perf_counter() - started) / (_CALLS // 5)


ETCD_FIGURES: dict[str, Callable[[Options], Iterator[Row]]] = {
    "etcd": etcd,
    "etcd-requests": etcd_requests,
    "etcd-healthy": etcd_healthy,
    "etcd-watch": etcd_watch,
    "etcd-store": etcd_store,
}
