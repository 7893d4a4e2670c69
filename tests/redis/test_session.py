"""A session on a real server: what the kit does not ask, since it is of this backend alone."""

from __future__ import annotations

import pytest

from rdzv.errors import RendezvousConnectionError
from rdzv_redis import RedisRendezvousBackend, RedisServer

LIMIT = 30.0


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture
def backend(server, request):
    with server.client(protocol=2, socket_timeout=LIMIT) as client:
        yield RedisRendezvousBackend(client, request.node.name, server.endpoint)


def test_a_session_that_returns_to_an_epoch_waits_for_nothing_that_is_there(backend):
    waits, enters = backend.open_session(), backend.open_session()
    for epoch in ("one", "another"):
        for session in (waits, enters):
            session.attach(epoch)
        enters.enter(b"first")
        waits.wait_records(0, 1, LIMIT)
    for session in (waits, enters):
        session.attach("one")
    assert enters.enter(b"second") == 2
    waits.wait_records(1, 1, LIMIT)
    assert [ticket for ticket, _ in waits.records(0)] == [1, 2]
    waits.close()
    enters.close()


def test_each_write_of_a_record_has_one_ticket_however_often_it_is_sent(backend):
    session = backend.open_session()
    session.attach("epoch")
    sent = session._run._send

    def twice(*command):
        sent(*command)
        return sent(*command)

    session._run._send = twice
    assert [session.enter(b"same") for _ in range(3)] == [1, 2, 3]
    session.close()


def test_a_write_of_the_document_that_is_sent_twice_has_won(backend):
    session = backend.open_session()
    token = session.swap(b"first", None).token
    sent = session._run._send

    def twice(*command):
        sent(*command)
        return sent(*command)

    session._run._send = twice
    swap = session.swap(b"second", token)
    assert (swap.won, swap.document) == (True, b"second")
    session.close()


def test_the_first_write_after_a_failover_is_refused_and_says_so(backend, server):
    session, other = backend.open_session(), backend.open_session()
    token = session.swap(b"first", None).token
    (key,) = server.client().keys(backend.run.key("document"))
    server.client().hset(key, "server", "another")
    for each in (session, other):
        refused = each.swap(b"second", token)
        assert (refused.won, refused.document, refused.failovers) == (False, b"first", 1)
    assert session.swap(b"second", token).won
    late = other.swap(b"late", token)
    assert (late.won, late.document, late.failovers) == (False, b"second", 1)
    session.close()
    other.close()


def test_a_connection_that_broke_is_noticed_though_the_client_checks_its_health(server):
    # redis-py checks before a command that comes so many seconds after the last, and connects anew.
    with server.client(protocol=2, socket_timeout=LIMIT, health_check_interval=1e-9) as client:
        session = RedisRendezvousBackend(client, "checked", server.endpoint).open_session()
        assert session.read(None) is None
        with server.client() as other:
            other.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(RendezvousConnectionError):
            session.read(None)
        session.close()
