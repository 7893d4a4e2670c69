"""A TCP proxy that counts the bytes which pass through it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Proxy"]


class Proxy:
    """Stands before a server on a port of its own.

    Args:
        host: The server's host, and where to listen.
        port: The server's port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server((host, 0), backlog=128)
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._passed = [0, 0]
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def totals(self) -> tuple[int, int]:
        """Bytes that went to the server, and bytes that came from it."""
        with self._lock:
            return self._passed[0], self._passed[1]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._target)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._sockets += [client, server]
                for direction, (source, sink) in enumerate(((client, server), (server, client))):
                    threading.Thread(
                        target=self._pass, args=(source, sink, direction), daemon=True
                    ).start()

    def _pass(self, source: socket.socket, sink: socket.socket, direction: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    self._passed[direction] += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
