"""Etcd3Client: a client that is made already, of the ``etcd3`` package, behind the seam."""

from __future__ import annotations

from typing import Any

from .client import HAS_LEADER, Connection, EtcdClient

__all__ = ["Etcd3Client"]


class Etcd3Client(EtcdClient):
    """Uses the channel and the login of an ``etcd3.Etcd3Client``, whose own calls it does not use.

    So all calls work as with ``EtcdClient``, but it is limited by what was given to ``etcd3``:

    - There is one endpoint, and no other to go to.
    - A login is never renewed: when its token has expired (by default after 5 minutes without
      a call, or when etcd is restarted), calls raise ``AuthError``.
    - Breaks are noticed, and connections made anew, as ``etcd3``'s ``grpc_options`` have it: by
      default a frozen server is never noticed by a watch, and after a long outage it may be two
      minutes until the next attempt. Give it what ``CHANNEL_OPTIONS`` of
      ``rdzv_etcd.client`` lists.
    - A forked child cannot use it, for the channel is its parent's.

    ``close`` ends watches, and leaves the ``etcd3`` client and its channel open.

    Args:
        client: The ``etcd3.Etcd3Client``.
        timeout: Seconds within which every call returns; without, that of the client, or 5.

    Raises:
        ValueError: It is no such client.
    """

    def __init__(self, client: Any, *, timeout: float | None = None) -> None:
        if not hasattr(client, "channel") or not hasattr(client, "metadata"):
            raise ValueError(f"An etcd3.Etcd3Client is needed, not {type(client).__name__}.")
        self._etcd3 = client
        # It has no public name there.
        endpoint = getattr(client, "_url", "localhost")
        super().__init__(endpoint, timeout=timeout or client.timeout or 5.0)

    def open_channel(self, index: int) -> Connection:
        connection = Connection(index, self.where, self._etcd3.channel, close=_leave_open)
        connection.metadata = (*HAS_LEADER, *(self._etcd3.metadata or ()))
        return connection

    def after_fork(self) -> None:
        super().after_fork()
        self.close()


def _leave_open() -> None:
    """The channel is not this client's to close."""
