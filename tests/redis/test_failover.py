"""What nodes come to when their server fails over, forgets, stands still or refuses."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import redis

from rdzv.errors import RendezvousConnectionError, RendezvousStateError
from rdzv_redis.backend import RedisRendezvousBackend, create_backend
from rdzv_redis.server import RedisServer
from rdzv_redis.session import Run

from .. import groups
from ..groups import assert_one_group, joining, places, refuses, settled
from ..local_servers import LIMIT
from .servers import (
    Cluster,
    Sentinels,
    cluster,
    debian,
    eventually,
    replicated,
    valkey,
    with_sentinels,
)

AFTER_FAILOVER = 1_000_001
"""The first round after the first failover."""


class Group(groups.Group):
    """The nodes of one run on Redis."""

    backend = "redis"
    usual: ClassVar[dict[str, Any]] = {
        "keep_alive_interval": 0.2,
        "keep_alive_max_attempt": 10,
        "join_timeout": LIMIT,
        "patience": LIMIT,
    }

    def key(self, *names: str) -> str:
        return Run.names(self.run_id, "rdzv")(*names)


@pytest.fixture
def group() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(endpoint: str, **settings: Any) -> Group:
        made.append(Group(endpoint, **settings))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()


def document(client: Any, group: Group) -> bytes:
    return bytes(client.hget(group.key("document"), "text") or b"")


def arrived(client: Any, group: Group) -> int:
    """How many tickets nodes have taken."""
    logs = [key for key in client.scan_iter() if key.endswith(b":log")]
    mine = [key for key in logs if key.startswith(group.key().encode())]
    return sum(int(client.hget(key, "tail") or 0) for key in mine)


def beats(client: Any, group: Group) -> dict[bytes, int]:
    keys = [key for key in client.scan_iter() if key.endswith(b":beats")]
    mine = [key for key in keys if key.startswith(group.key().encode())]
    return {slot: int(n) for key in mine for slot, n in client.hgetall(key).items()}


def beat_on(client: Any, group: Group, times: int) -> None:
    """Wait until every node has beaten so often; each in a slot of its own, beside former ones."""
    before = beats(client, group)

    def all_have() -> bool:
        now = beats(client, group)
        grown = [slot for slot in now if now[slot] >= before.get(slot, 0) + times]
        return len(grown) >= len(group.handlers)

    eventually(all_have, "the nodes do not beat")


@pytest.fixture(params=["Redis 7", "Valkey"])
def binary(request) -> str:
    return debian() if request.param == "Redis 7" else valkey()


@pytest.fixture
def server(binary) -> Iterator[RedisServer]:
    with RedisServer(binary=binary) as server:
        yield server


@pytest.fixture
def persistent(binary) -> Iterator[RedisServer]:
    with RedisServer(binary=binary, persistent=True) as server:
        yield server


# ---------------------------------------------------------------- Sentinel


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with with_sentinels() as sentinels:
        yield sentinels


def failed_over(sentinels: Sentinels) -> None:
    """Kill the master, and wait for another."""
    former = sentinels.master
    former.kill()
    eventually(lambda: sentinels.has_failed_over(former), "no replica was promoted")


def test_a_healthy_round_outlives_its_master_and_the_next_has_a_higher_number(sentinels, group):
    run = group(sentinels.endpoint, failover="accept")
    handlers = run.formed(3, 3, 3)
    failed_over(sentinels)
    with sentinels.master.client() as client:
        beat_on(client, run, 15)
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0, 0]
    first = joining(handlers[0])
    eventually(lambda: all(handler.num_nodes_waiting() for handler in handlers[1:]))
    assert assert_one_group(places(first + joining(*handlers[1:])), 3) == AFTER_FAILOVER


@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_round_that_is_forming_outlives_its_master(sentinels, group, early):
    run = group(sentinels.endpoint, failover="accept")
    handlers = run.add(3, 3, 3)
    waiting = joining(*handlers[:early])
    with sentinels.master.client() as client:
        eventually(lambda: arrived(client, run) == early)
    former = sentinels.master
    former.kill()
    settled(handlers, waiting + joining(*handlers[early:]))
    eventually(lambda: sentinels.has_failed_over(former))


def test_a_master_that_is_killed_as_the_last_node_comes_leaves_one_group_or_errors(
    sentinels, group
):
    run = group(sentinels.endpoint, failover="accept")
    handlers = run.add(4, 2, 4)
    killer = threading.Thread(target=sentinels.master.kill)
    futures = joining(*handlers[:3])
    killer.start()
    futures += joining(handlers[3])
    killer.join(LIMIT)
    settled(handlers, futures)


def test_nodes_find_the_new_master_though_their_first_sentinel_is_gone(sentinels, group):
    run = group(sentinels.endpoint, failover="accept")
    handlers = run.formed(2, 2, 2)
    sentinels.sentinels[0].kill()
    former = sentinels.servers[0]
    former.kill()
    seen = sentinels.sentinels[1]
    eventually(lambda: sentinels.master_port(seen) != former.port, "no replica was promoted")
    assert assert_one_group(places(joining(*handlers)), 2) == AFTER_FAILOVER


def test_a_round_that_no_replica_has_ends_in_errors_of_state_and_the_next_is_higher(
    sentinels, group
):
    run = group(sentinels.endpoint, failover="accept")
    handlers = run.formed(2, 2, 2)
    master = sentinels.master
    with master.client() as client:
        eventually(lambda: int(client.execute_command("WAIT", "2", "10")) == 2)
        # From now on no replica is in step, nor can be.
        client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
        client.client_kill_filter(_type="replica")
        eventually(lambda: client.info("replication")["connected_slaves"] == 0)
    assert assert_one_group(places(joining(*handlers)), 2) == 2
    failed_over(sentinels)
    for handler in handlers:
        eventually(partial(refuses, handler, RendezvousStateError), "nobody has told the node")
    run.shutdown()
    run.handlers.clear()
    assert assert_one_group(places(joining(*run.add(2, 2, 2))), 2) >= AFTER_FAILOVER


# ---------------------------------------------------------------- Cluster


def test_rounds_form_on_a_cluster_one_after_another(binary, group):
    with cluster(binary=binary) as three:
        run = group(three.endpoint)
        handlers = run.formed(3, 3, 3)
        for number in (2, 3):
            assert assert_one_group(places(joining(*handlers)), 3) == number
        run.shutdown()


def test_a_round_outlives_the_one_of_a_clusters_masters_that_has_it(group):
    with cluster(with_replicas=True) as six:
        run = group(six.endpoint, failover="accept")
        handlers = run.formed(3, 3, 3)
        master = six.master_of(run.key("document"))
        replica = six.replica_of(master)
        master.kill()
        with replica.client() as client:
            eventually(lambda: client.info("replication")["role"] == "master")
            beat_on(client, run, 15)
        assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0, 0]
        assert assert_one_group(places(joining(*handlers)), 3) == AFTER_FAILOVER
        run.shutdown()


def test_a_slot_that_moves_to_another_server_takes_its_run_along(group):
    with cluster() as three:
        run = group(three.endpoint)
        handlers = run.formed(2, 2, 2)
        move(three, run)
        found = places(joining(*handlers))
        # It cannot be told from a failover, by one who sees another server.
        assert assert_one_group(found, 2) == AFTER_FAILOVER
        run.shutdown()


def test_a_server_that_is_new_to_the_client_is_waited_for(group):
    with cluster() as three:
        run = group(three.endpoint)
        backend = backend_of(run)
        session = backend.open_session()
        _, target, _ = begin_to_move(three, run)
        known = backend.run.client.nodes_manager.nodes_cache
        for name in [name for name in known if name.endswith(f":{target.port}")]:
            del known[name]
        # The document is not there yet, so that its new server is asked.
        with pytest.raises(RendezvousConnectionError):
            session.read(None)
        session.close()


def begin_to_move(three: Cluster, run: Group) -> tuple[RedisServer, RedisServer, str]:
    """Begin to move the run's slot from one server to another."""
    key = run.key("document")
    source = three.master_of(key)
    target = next(server for server in three.masters if server is not source)
    slot = str(source.client().cluster("KEYSLOT", key))
    target.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", my_id(source))
    source.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", my_id(target))
    return source, target, slot


def my_id(server: RedisServer) -> str:
    return bytes(server.client().execute_command("CLUSTER", "MYID")).decode()


def move(three: Cluster, run: Group) -> None:
    """Move the run's slot to another server, key by key."""
    source, target, slot = begin_to_move(three, run)
    with source.client() as client:

        def emptied() -> bool:
            keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, "100")
            if keys:
                client.execute_command("MIGRATE", target.host, target.port, "", 0, 5000,
                                       "KEYS", *keys)  # fmt: skip
            return not keys

        eventually(emptied)
    for server in (target, source, *three.masters):
        server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", my_id(target))


# ---------------------------------------------------------------- replicas that confirm


def backend_of(run: Group, **settings: Any) -> RedisRendezvousBackend:
    return create_backend(run.parameters(1, 1, **settings))[0]


def test_a_change_counts_once_the_replica_has_confirmed_it(group):
    with replicated(1) as (master, replica):
        run = group(master.endpoint, wait_replicas=1, read_timeout=6)
        session = backend_of(run).open_session()
        swap = session.swap(b"{}", None)
        assert swap.won
        assert document(replica.client(), run) == b"{}"
        others = group(master.endpoint, wait_replicas=1, read_timeout=6)
        others.formed(2, 2, 2)
        others.shutdown()
        replica.kill()
        with pytest.raises(RendezvousConnectionError, match="0 of 1 replicas"):
            session.swap(b"[]", swap.token)


def test_a_change_on_a_cluster_counts_once_the_replica_has_confirmed_it(group):
    with cluster(with_replicas=True) as six:
        run = group(six.endpoint, wait_replicas=1, failover="accept", read_timeout=6)
        session = backend_of(run).open_session()
        swap = session.swap(b"{}", None)
        assert swap.won
        six.replica_of(six.master_of(run.key("document"))).kill()
        with pytest.raises(RendezvousConnectionError, match="0 of 1 replicas"):
            session.swap(b"[]", swap.token)


def test_a_master_that_has_too_few_replicas_refuses_and_is_waited_for(group):
    with replicated(1) as (master, replica):
        run = group(master.endpoint)
        handlers = run.formed(2, 2, 2)
        # A replica that is not heard any more is one too few.
        with master.client() as client:
            client.config_set("min-replicas-max-lag", "1")
            client.config_set("min-replicas-to-write", "1")
            replica.kill()
            eventually(lambda: counted(client, "NOREPLICAS"), "no write was refused")
            futures = joining(*handlers)
            client.config_set("min-replicas-to-write", "0")
        assert assert_one_group(places(futures), 2) == 2
        run.shutdown()


def counted(client: Any, error: str) -> int:
    """How often the server has answered with an error of this kind."""
    found = client.info("errorstats").get(f"errorstat_{error}", {"count": 0})
    return int(found["count"])


# ---------------------------------------------------------------- what is lost


def test_a_document_older_than_one_seen_is_an_error_of_state(server, group):
    run = group(server.endpoint)
    handlers = run.formed(2, 2, 3)
    with server.client() as client:
        old = client.hgetall(run.key("document"))
        assert assert_one_group(places(joining(*handlers)), 2) == 2
        client.hset(run.key("document"), mapping=old)
    for future in joining(*handlers):
        assert isinstance(future.exception(LIMIT), RendezvousStateError)


def test_nodes_that_do_nothing_learn_of_an_older_document_when_they_connect_again(server, group):
    run = group(server.endpoint)
    handlers = run.formed(2, 2, 3)
    with server.client() as client:
        old = client.hgetall(run.key("document"))
        places(joining(*handlers))
        client.hset(run.key("document"), mapping=old)
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub", skipme=True)
    for handler in handlers:
        eventually(partial(refuses, handler, RendezvousStateError))


@pytest.mark.parametrize("retries", [0, 3])
def test_a_server_that_lost_everything_ends_nodes_in_a_round(server, group, retries):
    run = group(server.endpoint, retries=retries)
    handlers = run.formed(3, 3, 4)
    server.kill()
    server.restart()
    for handler in handlers:
        eventually(partial(refuses, handler, RendezvousStateError), "nobody has told the node")


@pytest.mark.parametrize("retries", [0, 3])
def test_a_server_that_lost_everything_ends_nodes_that_wait(server, group, retries):
    run = group(server.endpoint, retries=retries)
    futures = joining(*run.add(2, 3, 3))
    with server.client() as client:
        eventually(lambda: arrived(client, run) == 2)
    server.kill()
    server.restart()
    for future in futures:
        assert isinstance(future.exception(LIMIT), RendezvousStateError)


def test_a_restart_with_the_data_is_a_failover_and_rounds_go_on(persistent, group):
    run = group(persistent.endpoint)
    handlers = run.formed(2, 2, 2)
    for failovers in (1, 2):
        persistent.restart()
        found = assert_one_group(places(joining(*handlers)), 2)
        assert found == failovers * (AFTER_FAILOVER - 1) + 1
        with persistent.client() as client:
            assert client.hget(run.key("document"), "failovers") == b"%d" % failovers


def test_nodes_that_wait_go_on_after_a_restart_with_the_data(persistent, group):
    run = group(persistent.endpoint)
    handlers = run.add(3, 3, 3)
    futures = joining(*handlers[:2])
    with persistent.client() as client:
        eventually(lambda: arrived(client, run) == 2)
    persistent.restart()
    settled(handlers, futures + joining(handlers[2]))


# ---------------------------------------------------------------- trouble on one server


def test_a_pause_of_the_server_is_noticed_by_nobody(server, group):
    run = group(server.endpoint, read_timeout=LIMIT)
    handlers = run.formed(3, 2, 4)
    with server.client() as client:
        client.client_pause(3000, True)
        # It is answered once the pause is over.
        assert client.ping()
        beat_on(client, run, 15)
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0, 0]
    assert assert_one_group(places(joining(*handlers)), 3) == 2


def test_connections_that_are_all_killed_are_made_anew(server, group):
    run = group(server.endpoint)
    handlers = run.formed(3, 2, 3)
    with server.client() as client:
        for number in (2, 3):
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            beat_on(client, run, 15)
            assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0, 0]
            assert assert_one_group(places(joining(*handlers)), 3) == number


def test_connections_that_are_killed_while_nodes_wait_are_made_anew(server, group):
    run = group(server.endpoint)
    handlers = run.add(3, 3, 3)
    futures = joining(*handlers[:2])
    with server.client() as client:
        eventually(lambda: arrived(client, run) == 2)
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
    settled(handlers, futures + joining(handlers[2]))


def test_a_full_memory_is_a_clear_error_once_patience_is_over(server, group):
    run = group(server.endpoint, patience=1.0)
    (handler,) = run.add(1, 1, 1)
    with server.client() as client:
        client.config_set("maxmemory", "1")
        (future,) = joining(handler)
        error = future.exception(LIMIT)
        client.config_set("maxmemory", "0")
    assert isinstance(error, RendezvousConnectionError)
    assert "no memory left" in str(error)


def test_a_full_memory_that_is_freed_within_patience_stops_nobody(server, group):
    run = group(server.endpoint)
    handlers = run.formed(2, 2, 2)
    with server.client() as client:
        client.config_set("maxmemory", "1")
        before = counted(client, "OOM")
        futures = joining(*handlers)
        eventually(lambda: counted(client, "OOM") > before + 5, "no write was refused")
        client.config_set("maxmemory", "0")
    assert assert_one_group(places(futures), 2) == 2


def test_a_script_of_somebody_else_that_blocks_the_server_is_survived(server, group, caplog):
    run = group(server.endpoint)
    handlers = run.formed(2, 2, 2)
    caplog.set_level(logging.WARNING)
    with server.client(socket_timeout=LIMIT) as other, server.client() as client:
        client.config_set("lua-time-limit", "50")

        def block() -> None:
            with contextlib.suppress(redis.RedisError):
                other.eval("while true do end", 0)

        thread = threading.Thread(target=block, daemon=True)
        thread.start()
        eventually(lambda: "BUSY" in caplog.text or "busy" in caplog.text, "nobody was refused")
        eventually(client.script_kill)
        thread.join(LIMIT)
        beat_on(client, run, 15)
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0]
    assert assert_one_group(places(joining(*handlers)), 2) == 2


def test_scripts_that_the_server_has_forgotten_are_loaded_again(server, group):
    run = group(server.endpoint)
    handlers = run.formed(2, 2, 2)
    with server.client() as client:
        client.script_flush()
        beat_on(client, run, 3)
    assert assert_one_group(places(joining(*handlers)), 2) == 2


OUTAGE = 10.0
"""Seconds; what is tested is that nodes bear it, so that it takes them."""


@contextlib.contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@contextlib.contextmanager
def killed(server: RedisServer) -> Iterator[None]:
    server.kill()
    yield
    server.restart()


@pytest.mark.parametrize("outage", [stopped, killed])
def test_an_outage_of_ten_seconds_is_noticed_by_no_healthy_node(persistent, group, outage):
    run = group(persistent.endpoint, patience=60)
    handlers = run.formed(3, 2, 4)
    noticed: set[int] = set()
    with outage(persistent):
        over = time.monotonic() + OUTAGE
        while time.monotonic() < over:
            noticed |= {handler.num_nodes_waiting() for handler in handlers}
            time.sleep(0.05)
    with persistent.client() as client:
        beat_on(client, run, 15)
    noticed |= {handler.num_nodes_waiting() for handler in handlers}
    assert noticed == {0}
    assert_one_group(places(joining(*handlers)), 3)
