"""The proxy that makes trouble, before a server that sends back what it gets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from rdzv.testing.proxy import Proxy

LIMIT = 20.0


@pytest.fixture
def proxy():
    server = socket.create_server(("127.0.0.1", 0))

    def echo(connection):
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with server, Proxy("127.0.0.1", server.getsockname()[1]) as proxy:
        yield proxy


def connect(proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT)


def echoed(connection, data: bytes = b"hello") -> bytes:
    connection.sendall(data)
    answer: bytes = connection.recv(100)
    return answer


def test_everything_passes_and_is_counted(proxy):
    with connect(proxy) as one, connect(proxy) as two:
        assert echoed(one) == b"hello"
        assert echoed(two, b"ab") == b"ab"
        assert proxy.totals() == (7, 7)
        assert proxy.connections == 2
    until = time.monotonic() + LIMIT
    while proxy.connections:
        assert time.monotonic() < until


def test_a_connection_that_is_being_made_is_cut_too(proxy, monkeypatch):
    real = socket.create_connection

    def cut_meanwhile(place, **options):
        if place[1] != proxy.port:
            proxy.cut()
        return real(place, **options)

    monkeypatch.setattr("rdzv.testing.proxy.socket.create_connection", cut_meanwhile)
    with connect(proxy) as one, pytest.raises(ConnectionResetError):
        one.recv(1)


def test_a_reset_breaks_what_is_open_and_nothing_that_comes(proxy):
    with connect(proxy) as one:
        echoed(one)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    with connect(proxy) as one:
        assert echoed(one) == b"hello"


def test_a_stopped_server_refuses_until_it_is_started_again(proxy):
    with connect(proxy) as one:
        echoed(one)
        proxy.stop()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.start()
    with connect(proxy) as one:
        assert echoed(one) == b"hello"


def test_a_cut_breaks_what_comes_as_well(proxy):
    proxy.cut()
    with pytest.raises(ConnectionResetError), connect(proxy) as one:
        one.recv(1)
    proxy.mend()
    with connect(proxy) as one:
        assert echoed(one) == b"hello"


def test_what_is_frozen_passes_once_it_thaws(proxy):
    with connect(proxy) as one:
        echoed(one)
        proxy.freeze()
        one.sendall(b"late")
        one.settimeout(0.1)
        with pytest.raises(TimeoutError):
            one.recv(1)
        proxy.thaw()
        one.settimeout(LIMIT)
        assert one.recv(100) == b"late"


@pytest.mark.parametrize("slow", [lambda p: p.delay(0.1), lambda p: p.throttle(50)])
def test_what_is_held_up_takes_as_long_in_each_direction(proxy, slow):
    slow(proxy)
    with connect(proxy) as one:
        began = time.monotonic()
        assert echoed(one) == b"hello"
        assert time.monotonic() - began >= 0.2
