"""The nodes of a run on etcd, and what etcd holds of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from rdzv import RendezvousHandler
from rdzv_etcd import seam
from rdzv_etcd.seam import Get, prefix_end
from rdzv_etcd.session import Run

from .. import groups, local_servers
from ..groups import assert_one_group, joining, places, refuses, settled
from ..local_servers import LIMIT

__all__ = [
    "Group",
    "assert_one_group",
    "eventually",
    "joining",
    "places",
    "refuses",
    "settled",
    "waiting",
]

eventually = partial(local_servers.eventually, limit=2 * LIMIT, unknown=(seam.EtcdError,))
"""Wait until a condition holds; one that cannot be asked now is asked again."""


class Group(groups.Group):
    """The nodes of one run on etcd."""

    backend = "etcd"
    usual: ClassVar[dict[str, Any]] = {
        # A lease of three seconds.
        "keep_alive_interval": 0.3,
        "keep_alive_max_attempt": 10,
        "join_timeout": 2 * LIMIT,
        "patience": 2 * LIMIT,
        "connect_timeout": 2,
    }

    def root(self, *names: str) -> str:
        return Run.names(self.run_id, "/rdzv")(*names)

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
        # Where a leader is new, it may refuse at first.
        eventually(lambda: client.put(key, b"", mine), unknown=(seam.UnavailableError,))
        eventually(lambda: not client.range(Get(key)).kvs, "etcd keeps a lease")
        eventually(lambda: len(self.leases(client)) >= count, "the nodes do not beat")


def waiting(handlers: Iterable[RendezvousHandler]) -> list[int]:
    """What they say of nodes that wait."""
    return [handler.num_nodes_waiting() for handler in handlers]
