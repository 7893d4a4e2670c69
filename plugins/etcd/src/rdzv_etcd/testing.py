"""EtcdCluster: several etcd servers of this process's own, for tests of what a cluster survives."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rdzv.testing.local_server import free_ports
from rdzv_etcd.server import EtcdServer, Settings, TlsSettings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EtcdCluster"]

_ATTEMPTS = 5
"""How often ports are chosen: before the members listen somebody else may take one."""

_PAUSE = 0.01
"""Seconds between two questions after the leader."""


class EtcdCluster:
    """Some etcd servers that are one cluster, on free ports of this machine.

    It is gone with its data when the process ends, even by SIGKILL.

        with EtcdCluster(3) as cluster:
            client = EtcdClient(cluster.endpoints)
            cluster.kill(cluster.leader())

    Args:
        size: How many members; more than half of them must run.
        binary: The servers' program; where it is looked for says ``EtcdServer``.
        election_timeout: Seconds without a word of the leader after which members elect
            another. No lease can be shorter than one and a half of it.
        heartbeat_interval: Seconds between two words of the leader, a tenth of it or so.
        settings: More settings of every member, by the names of etcd's options.
        tls: Files for TLS to clients, as for ``EtcdServer``.
        durable: Whether a write is on the disk before it is acknowledged. Without, it
            survives that all members are killed; and a test does not depend on a disk.
        timeout: Seconds within which the cluster, or a restarted member, must be ready.

    Attributes:
        members: The servers, in the order of their numbers; empty before the start.
    """

    def __init__(
        self,
        size: int = 3,
        *,
        binary: str | os.PathLike[str] | None = None,
        election_timeout: float = 1.0,
        heartbeat_interval: float = 0.1,
        settings: Settings | None = None,
        tls: TlsSettings | None = None,
        durable: bool = False,
        timeout: float = 60.0,
    ) -> None:
        self._size = size
        self._binary = binary
        self._settings: dict[str, str | int | bool] = {
            "election-timeout": round(election_timeout * 1000),
            "heartbeat-interval": round(heartbeat_interval * 1000),
            # As etcd 3.5 has it by itself: who comes back does not depose a leader that is well.
            "pre-vote": True,
            **(settings or {}),
        }
        self._tls = tls
        self._durable = durable
        self._timeout = timeout
        self.members: list[EtcdServer] = []

    @property
    def endpoints(self) -> list[str]:
        """``host:port`` of every member."""
        return [member.endpoint for member in self.members]

    def start(self) -> None:
        """Start the members; all answer and have a leader when this returns.

        Raises:
            FileNotFoundError: There is no program to start.
            RuntimeError: It runs already, or a member did not start.
            TimeoutError: It was not ready in time.
        """
        if self.members:
            raise RuntimeError(f"The cluster runs already, on {', '.join(self.endpoints)}.")
        for attempt in range(1, _ATTEMPTS + 1):
            self.members = self._make_members()
            try:
                # A member whose port is lost may have voted: the whole cluster begins anew.
                _together(self.members, lambda member: member.start(num_retries=1))
                self.leader()
                return
            except BaseException as error:
                self.stop()
                if attempt == _ATTEMPTS or "already in use" not in str(error):
                    raise

    def _make_members(self) -> list[EtcdServer]:
        # Each is told all of these before the first starts, so that they stay as they are.
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(self._size)]
        whole = ",".join(f"{number}={url}" for number, url in enumerate(urls))
        shared = {"initial-cluster": whole, "initial-cluster-token": uuid.uuid4().hex}
        return [
            EtcdServer(
                binary=self._binary,
                settings={
                    "name": str(number),
                    "listen-peer-urls": url,
                    "initial-advertise-peer-urls": url,
                    **shared,
                    **self._settings,
                },
                tls=self._tls,
                durable=self._durable,
                timeout=self._timeout,
            )
            for number, url in enumerate(urls)
        ]

    def stop(self) -> None:
        """Stop the members and remove their data. May be repeated."""
        members, self.members = self.members, []
        _together(members, EtcdServer.stop)

    def leader(self, timeout: float | None = None) -> int:
        """Wait until all that run are ready and one alone says that it leads; return its number.

        A former leader that was paused may say so for a moment when it is resumed, and knows no
        other until it has heard of one.

        Args:
            timeout: Seconds to wait; without, as long as for the start.

        Raises:
            TimeoutError: It does not come to that, as where too few run.
        """
        limit = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while True:
            running = [member for member in self.members if member.pid and not member.paused]
            leading = [member for member in running if member.is_leader()]
            ready = [member for member in running if member.is_ready()]
            if len(leading) == 1 and ready == running and len(running) * 2 > self._size:
                return self.members.index(leading[0])
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"Of {len(running)} members that run {len(ready)} are ready and"
                    f" {len(leading)} lead after {limit} seconds."
                )
            time.sleep(_PAUSE)

    def kill(self, number: int) -> None:
        """Kill a member with SIGKILL; ``restart`` brings it back with its data."""
        self.members[number].kill()

    def restart(self, *numbers: int) -> None:
        """Start members anew with their data, together; they answer when this returns.

        Without a majority none of them would.

        Raises:
            RuntimeError: One did not start.
            TimeoutError: One was not ready in time.
        """
        _together([self.members[number] for number in numbers], EtcdServer.restart)

    def pause(self, number: int) -> None:
        """Hold a member up with SIGSTOP: its connections stay open, and it does not answer."""
        self.members[number].pause()

    def resume(self, number: int) -> None:
        """Let a paused member go on."""
        self.members[number].resume()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _together(members: Sequence[EtcdServer], action: Callable[[EtcdServer], None]) -> None:
    """Do it with all at once, for none is ready before most are; the first error is raised."""
    if not members:
        return
    with ThreadPoolExecutor(len(members)) as threads:
        done: Iterable[None] = threads.map(action, members)
        for _ in done:
            pass
