"""A TCP proxy that stands before a server and makes trouble: delays, cuts, freezes, counts."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Proxy"]

_CONNECT = 5.0
"""Seconds that connecting to the server may take."""

# Closing a socket with this option sends a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Stands before a server on a port of its own, and serves until the ``with`` block ends.

    Every method that changes what happens may be called from any thread, and
    holds for the connections that are open and for those that come.

    Args:
        host: The server's host.
        port: The server's port.
        listen: The address of this machine to listen on.

    Attributes:
        port: The port that clients connect to.
    """

    def __init__(self, host: str, port: int, *, listen: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listen = listen
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._passed = [0, 0]
        self._pause = 0.0
        self._rate = 0.0
        self._cut = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._ended = threading.Event()
        self._listener: socket.socket | None = None
        self.port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.thaw()
        self.stop()

    # ------------------------------------------------------------ looking

    def totals(self) -> tuple[int, int]:
        """Bytes that went to the server, and bytes that came from it."""
        with self._lock:
            return self._passed[0], self._passed[1]

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._pairs)

    # ------------------------------------------------------------ trouble

    def stop(self) -> None:
        """Break all connections and refuse new ones, as where the server's process has ended."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone would not call the accepting thread out of accept().
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.reset()

    def start(self) -> None:
        """Accept connections again, on the same port."""
        if self._listener is None:
            family = socket.AF_INET6 if ":" in self._listen else socket.AF_INET
            address = (self._listen, self.port)
            listener = socket.create_server(address, family=family, backlog=128)
            self.port = listener.getsockname()[1]
            self._listener = listener
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and every new one as soon as it is made, until :meth:`mend`."""
        self._cut = True
        self.reset()

    def mend(self) -> None:
        """Let new connections pass again."""
        self._cut = False

    def reset(self) -> None:
        """Break all connections that are open now, with a TCP reset to both sides."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for each in pair:
                _break(each)

    def freeze(self) -> None:
        """Let nothing pass, in either direction, and keep everything open, until :meth:`thaw`."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let what was held up pass, and go on."""
        self._flowing.set()

    def delay(self, seconds: float) -> None:
        """Hold up whatever passes, in each direction, for so long; 0 ends it."""
        self._pause = seconds

    def throttle(self, bytes_per_second: float) -> None:
        """Let no more than this pass on each connection and direction; 0 for no limit."""
        self._rate = bytes_per_second

    # ------------------------------------------------------------ passing

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._flowing.wait()
        if self._cut or self._ended.is_set():
            _break(client)
            return
        try:
            server = socket.create_connection(self._target, timeout=_CONNECT)
        except OSError:
            _break(client)
            return
        server.settimeout(None)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (client, server)
        with self._lock:
            # It was cut while this connection was being made.
            late = self._cut or self._ended.is_set()
            if not late:
                self._pairs.add(pair)
        if late:
            for each in pair:
                _break(each)
            return
        back = threading.Thread(target=self._pass, args=(pair, 1), daemon=True)
        back.start()
        self._pass(pair, 0)
        back.join()
        with self._lock:
            self._pairs.discard(pair)
        client.close()
        server.close()

    def _pass(self, pair: tuple[socket.socket, socket.socket], direction: int) -> None:
        source, sink = pair if direction == 0 else pair[::-1]
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    self._passed[direction] += len(data)
                pause = self._pause + (len(data) / self._rate if self._rate else 0.0)
                if pause:
                    self._ended.wait(pause)
                self._flowing.wait()
                sink.sendall(data)
        with self._lock, contextlib.suppress(OSError):
            if pair in self._pairs:  # Else both are being reset: no orderly end.
                sink.shutdown(socket.SHUT_WR)


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    # A thread that is in recv() on it holds it open: shutdown calls that out.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()
