"""The nodes of a run on etcd, each with threads and a client of its own, and what they come to."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, cast

from rdzv import RendezvousHandler, RendezvousParameters, get_rendezvous_handler
from rdzv.dynamic_rendezvous import DynamicRendezvousHandler
from rdzv.errors import RendezvousError, RendezvousStateError
from rdzv_etcd import seam
from rdzv_etcd.seam import Get, prefix_end
from rdzv_etcd.session import Run

from ..local_servers import LIMIT

Place = tuple[int, int, int]
"""Round, rank and world size."""


def eventually(condition: Callable[[], object], what: str = "", limit: float = 2 * LIMIT) -> None:
    """Wait until the condition holds; one that cannot be asked now is asked again."""
    deadline = time.monotonic() + limit
    while True:
        with contextlib.suppress(seam.EtcdError):
            if condition():
                return
        assert time.monotonic() < deadline, what or "It has not come about in time."
        time.sleep(0.01)


class Group:
    """The nodes of one run.

    Args:
        endpoint: Where they find etcd.
        settings: Their settings, where they are not those of all tests.
    """

    def __init__(self, endpoint: str, **settings: Any) -> None:
        self.endpoint = endpoint
        self.run_id = uuid.uuid4().hex
        self.settings: dict[str, Any] = {
            "local_addr": "127.0.0.1",
            "last_call_timeout": 0.3,
            # A lease of three seconds.
            "keep_alive_interval": 0.3,
            "keep_alive_max_attempt": 10,
            "join_timeout": 2 * LIMIT,
            "patience": 2 * LIMIT,
            "read_timeout": 2,
            "connect_timeout": 2,
            **settings,
        }
        self.handlers: list[RendezvousHandler] = []

    def root(self, *names: str) -> str:
        return Run.names(self.run_id, "/rdzv")(*names)

    def parameters(self, least: int, most: int, **settings: Any) -> RendezvousParameters:
        given = {**self.settings, **settings}
        return RendezvousParameters("etcd", self.endpoint, self.run_id, least, most, **given)

    def add(self, count: int, least: int, most: int, **settings: Any) -> list[RendezvousHandler]:
        made = [
            get_rendezvous_handler(self.parameters(least, most, **settings)) for _ in range(count)
        ]
        self.handlers += made
        return made

    def formed(self, count: int, least: int, most: int) -> list[RendezvousHandler]:
        """So many new nodes, in a round."""
        handlers = self.add(count, least, most)
        assert_one_group(places(joining(*handlers)), count)
        return handlers

    def shutdown(self) -> None:
        threads = [threading.Thread(target=one.shutdown, daemon=True) for one in self.handlers]
        for thread in threads:
            thread.start()
        for thread in threads:
            # It has the run's close_timeout for what it has to say.
            thread.join(2 * LIMIT)
            assert not thread.is_alive(), "shutdown() hangs"

    # ------------------------------------------------------------ what etcd holds

    def keys(self, client: seam.Client, *names: str) -> list[seam.KeyValue]:
        """The run's keys whose names go on so after the epoch."""
        start = self.root("").encode()
        kvs = client.range(Get(start, prefix_end(start))).kvs
        return [kv for kv in kvs if kv.key[len(start) :].decode().split("/")[1:-1] == [*names]]

    def arrived(self, client: seam.Client) -> int:
        """How many tickets are in the log."""
        return len(self.keys(client, "log"))

    def leases(self, client: seam.Client) -> set[int]:
        """Of the nodes that are alive."""
        return {kv.lease for kv in self.keys(client, "beats")}

    def wait_for(self, client: seam.Client, tickets: int) -> None:
        """Wait until so many tickets are taken."""
        eventually(lambda: self.arrived(client) == tickets, "the nodes do not arrive")

    def wait_for_beats(self, client: seam.Client, count: int | None = None) -> None:
        """Wait until all nodes hold their leases again, for one whole length of a lease.

        A lease that nobody renews is gone by then.
        """
        count = len(self.handlers) if count is None else count
        eventually(lambda: len(self.leases(client)) >= count, "the nodes do not beat")
        # A lease as long as theirs, made now, ends after all of theirs that are not renewed.
        interval = self.settings["keep_alive_interval"]
        silence = -int(-interval * self.settings["keep_alive_max_attempt"] // 1)
        mine = client.lease_grant(silence).id
        key = self.root("other", str(mine)).encode()
        client.put(key, b"", mine)
        eventually(lambda: not client.range(Get(key)).kvs, "etcd keeps a lease")
        eventually(lambda: len(self.leases(client)) >= count, "the nodes do not beat")


def joining(*handlers: RendezvousHandler) -> list[Future[Place]]:
    """Have them join at once; each ends with its place or with its error."""

    def join(handler: RendezvousHandler, future: Future[Place]) -> None:
        try:
            info = handler.next_rendezvous()
        except Exception as exc:  # noqa: BLE001 - the test looks at it.
            future.set_exception(exc)
        else:
            number = cast("DynamicRendezvousHandler", handler).round
            future.set_result((number, info.rank, info.world_size))

    futures: list[Future[Place]] = [Future() for _ in handlers]
    for handler, future in zip(handlers, futures, strict=True):
        threading.Thread(target=join, args=(handler, future), daemon=True).start()
    return futures


def places(futures: Iterable[Future[Place]]) -> list[Place]:
    return [future.result(2 * LIMIT) for future in futures]


def assert_one_group(found: Sequence[Place], size: int) -> int:
    """They are all nodes of one round, which is returned."""
    assert {(number, world) for number, _, world in found} == {(found[0][0], size)}
    assert sorted(rank for _, rank, _ in found) == list(range(size))
    return found[0][0]


def settled(handlers: Sequence[RendezvousHandler], futures: Sequence[Future[Place]]) -> int:
    """Act as torch's agents, which join again when told to, until all nodes are in one round.

    Those who are told that the state was lost are not in it. Of one round there is one group.

    Returns:
        The round, or 0 where nobody is in one.
    """
    going = list(futures)
    ended: set[int] = set()
    seen: dict[int, dict[int, int]] = {}

    def all_are() -> bool:
        numbers, busy = set(), False
        for node, handler in enumerate(handlers):
            if node in ended:
                continue
            if not going[node].done():
                busy = True
                continue
            try:
                number, rank, _ = going[node].result()
                waiting = handler.num_nodes_waiting()
            except RendezvousStateError:
                ended.add(node)
                continue
            assert seen.setdefault(number, {}).setdefault(rank, node) == node
            numbers.add(number)
            if waiting:
                going[node] = joining(handler)[0]
                busy = True
        return not busy and len(numbers) <= 1

    eventually(all_are, "the nodes do not come to one round")
    left = [one for node, one in enumerate(going) if node not in ended]
    return assert_one_group(places(left), len(left)) if left else 0


def refuses(handler: RendezvousHandler, error: type[RendezvousError]) -> bool:
    """Whether a node has learnt of an error."""
    try:
        handler.num_nodes_waiting()
    except error:
        return True
    return False


def waiting(handlers: Iterable[RendezvousHandler]) -> list[int]:
    """What they say of nodes that wait."""
    return [handler.num_nodes_waiting() for handler in handlers]
