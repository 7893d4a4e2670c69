"""Connecting to real servers of every kind, and what is said where it cannot be."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from rdzv import RendezvousParameters, get_rendezvous_handler
from rdzv.dynamic_rendezvous.backend import Session
from rdzv.errors import RendezvousConnectionError
from rdzv_redis.backend import RedisRendezvousBackend, create_backend
from rdzv_redis.errors import COMMANDS
from rdzv_redis.server import RedisServer
from rdzv_redis.store import RedisStore

from ..local_servers import LIMIT, Certificates
from .servers import Cluster, Sentinels, cluster, debian, replicated, valkey, with_sentinels

SECRET = "s3cr3t-w0rd"


def parameters(endpoint: str, **settings) -> RendezvousParameters:
    settings = {"local_addr": "127.0.0.1", "last_call_timeout": 0.1, **settings}
    return RendezvousParameters("redis", endpoint, uuid.uuid4().hex, 1, 1, **settings)


def opened(endpoint: str, **settings) -> tuple[RedisRendezvousBackend, RedisStore]:
    backend, store = create_backend(parameters(endpoint, **settings))
    assert isinstance(store, RedisStore)
    return backend, store


def forms_a_round(endpoint: str, **settings) -> None:
    """A whole round of one node, with its store."""
    handler = get_rendezvous_handler(parameters(endpoint, **settings))
    try:
        found = handler.next_rendezvous()
        assert (found.rank, found.world_size) == (0, 1)
        found.store.set("key", "value")
        assert found.store.get("key") == b"value"
        assert handler.num_nodes_waiting() == 0
        handler.set_closed()
        assert handler.is_closed()
    finally:
        handler.shutdown()


def refused(endpoint: str, match: str, **settings) -> RendezvousConnectionError:
    """That it is refused in these words, without a secret and in time."""
    began = time.monotonic()
    with pytest.raises(RendezvousConnectionError, match=match) as caught:
        create_backend(parameters(endpoint, **settings))
    assert time.monotonic() - began < LIMIT
    return caught.value


@pytest.fixture(autouse=True)
def keeps_secrets(caplog) -> Iterator[None]:
    """No log record of any test has the password in it, at no level."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert SECRET not in record.getMessage()
        assert SECRET not in str(record.exc_info)


@pytest.fixture(params=["Redis 7", "Valkey"], scope="module")
def binary(request) -> str:
    return debian() if request.param == "Redis 7" else valkey()


@pytest.fixture(scope="module")
def server(binary) -> Iterator[RedisServer]:
    with RedisServer(binary=binary) as server:
        yield server


@pytest.fixture(scope="module")
def locked(binary) -> Iterator[RedisServer]:
    with RedisServer(binary=binary, password=SECRET) as server:
        yield server


# ---------------------------------------------------------------- one server


@pytest.mark.parametrize("form", ["{}", "redis://{}", "redis://{}/3", "localhost:1,{}"])
def test_a_round_forms_on_a_server_named_in_any_form(server, form):
    forms_a_round(form.format(server.endpoint))


def test_a_server_is_asked_once_what_it_is(server):
    with server.client() as client:
        client.config_resetstat()
        opened(server.endpoint)
        # min-replicas-to-write and maxmemory-policy.
        assert client.info("commandstats")["cmdstat_config|get"]["calls"] == 2


def test_a_number_of_a_database_is_used(server):
    _, store = opened(server.endpoint, db=5)
    store.set("key", "value")
    with server.client(db=5) as client:
        assert client.dbsize()
        client.flushdb()
    with server.client() as client:
        assert not [key for key in client.scan_iter() if store._base in key]


def test_a_database_that_the_server_does_not_have_is_refused(server):
    refused(server.endpoint, "out of range", db=10_000)


def test_a_round_forms_over_a_unix_socket(binary, tmp_path):
    path = tmp_path / "redis.sock"
    with RedisServer(binary=binary, unix_socket=path):
        forms_a_round(f"unix://{path}")
        forms_a_round(f"unix://{path}?db=2")


def test_a_socket_that_is_not_there_is_an_error_that_names_it(tmp_path):
    refused(f"unix://{tmp_path}/none.sock", "none.sock")


def test_nothing_listening_is_an_error_that_names_the_server():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        refused(f"127.0.0.1:{port}", f"127.0.0.1:{port} has failed.*refused")


def test_a_name_that_does_not_resolve_is_an_error_that_names_it():
    refused("no-such-host.invalid:6379", "no-such-host.invalid")


def test_a_server_that_accepts_and_never_answers_is_given_up(binary):
    with RedisServer(binary=binary) as frozen:
        frozen.pause()
        refused(frozen.endpoint, frozen.endpoint, connect_timeout=0.3, read_timeout=0.3)


def test_an_eviction_policy_is_warned_of(binary, caplog):
    settings = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with RedisServer(binary=binary, settings=settings) as server:
        opened(server.endpoint)
        assert "allkeys-lru" in caplog.text
        caplog.clear()
        server.client().config_set("maxmemory-policy", "noeviction")
        opened(server.endpoint)
        assert "evict" not in caplog.text


# ---------------------------------------------------------------- passwords and users


def test_a_password_is_accepted_from_every_place(locked, tmp_path, monkeypatch):
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    forms_a_round(f"redis://:{SECRET}@{locked.endpoint}")
    forms_a_round(locked.endpoint, password=SECRET)
    forms_a_round(locked.endpoint, password=SECRET, username="default")
    forms_a_round(locked.endpoint, password_file=str(file))
    monkeypatch.setenv("RDZV_REDIS_PASSWORD", SECRET)
    forms_a_round(locked.endpoint)


@pytest.mark.parametrize("password", [None, f"{SECRET}-wrong"])
def test_a_missing_or_wrong_password_is_refused_and_not_shown(locked, password):
    given = {} if password is None else {"password": password}
    error = refused(locked.endpoint, "RDZV_REDIS_PASSWORD", **given)
    chain: BaseException | None = error
    while chain is not None:
        assert SECRET not in f"{chain} {chain!r}"
        chain = chain.__cause__ or chain.__context__


def test_a_wrong_password_in_the_url_is_refused_and_not_shown(locked):
    error = refused(f"redis://me:{SECRET}-wrong@{locked.endpoint}", "does not accept the login")
    assert SECRET not in str(error)


def test_no_password_is_shown_where_the_server_goes_away(binary):
    with RedisServer(binary=binary, password=SECRET) as server:
        backend, store = opened(f"redis://:{SECRET}@{server.endpoint}")
        session = backend.open_session()
        server.kill()
        with pytest.raises(RendezvousConnectionError) as caught:
            session.read(None)
        assert SECRET not in str(caught.value)
        with pytest.raises(Exception, match=str(server.port)) as other:
            store.set("key", "value")
        assert SECRET not in str(other.value)


USER = {"username": "job", "password": SECRET}
KEYS = ("~rdzv:*", "&rdzv:*")


def permit(server: RedisServer, *rules: str) -> None:
    with server.client() as client:
        client.execute_command("ACL", "DELUSER", "job")
        client.execute_command("ACL", "SETUSER", "job", "on", f">{SECRET}", *KEYS, "-@all", *rules)


def test_a_user_with_just_the_commands_that_are_named_passes_a_whole_round(server):
    permit(server, *COMMANDS.split())
    forms_a_round(server.endpoint, **USER)
    backend, store = opened(server.endpoint, **USER)
    does_everything(backend.open_session())
    keeps_everything(store)
    with server.client() as client:
        denied = [entry for entry in client.acl_log() if entry["username"] == "job"]
    # What redis-py says of itself, and what is only looked at to warn.
    assert {entry["object"] for entry in denied} <= {"client|setinfo", "config|get"}


def does_everything(session: Session) -> None:
    """All that a session can be asked for."""
    swap = session.swap(b"{}", None)
    session.listen(swap.token)
    session.attach("epoch")
    assert session.read(None) == (swap.document, swap.token)
    assert session.enter(b"record") == 1
    session.wait_records(0, 1, LIMIT)
    assert session.records(0) == [(1, b"record")]
    session.bury(1)
    assert session.beat(1)[1] == 1
    assert session.beats([1]) == {1: 1}
    session.publish("nonce", {"1": b"piece"})
    assert session.fetch("nonce", ["1"]) == [b"piece"]
    session.forget(0, 1, "nonce", ["1"])
    new = session.swap(b"[]", swap.token)
    assert session.wait(swap.token, LIMIT) == (b"[]", new.token)
    session.close()


def keeps_everything(store: RedisStore) -> None:
    """All that a store can be asked for."""
    store.set("key", "1")
    assert store.add("key", 1) == 2
    assert store.compare_set("key", "2", "3") == b"3"
    store.append("key", "4")
    assert store.multi_get(["key"]) == [b"34"]
    store.multi_set(["other"], ["5"])
    assert store.check(["key", "other"])
    store.wait(["key"])
    assert store.num_keys() == 2
    assert sorted(store.list_keys()) == ["key", "other"]
    assert store.delete_key("other")
    store.queue_push("queue", "6")
    assert store.queue_len("queue") == 1
    assert store.queue_pop("queue") == b"6"
    with pytest.raises(Exception, match="timeout"):
        store.wait(["missing"], 0.01)


@pytest.mark.parametrize("command", COMMANDS.split())
def test_a_user_without_one_of_the_commands_is_told_at_start_which_are_needed(server, command):
    permit(server, *(one for one in COMMANDS.split() if one != command))
    with server.client() as client:
        # As on a new server: whoever may not load the scripts is not to find them.
        client.script_flush()
    error = refused(server.endpoint, "ACL SETUSER", **USER)
    assert COMMANDS in str(error)


@pytest.mark.parametrize("rules", [("+@all", "-evalsha"), ("+@all", "-@scripting")])
def test_a_user_without_scripts_is_told_at_start_which_commands_are_needed(server, rules):
    permit(server, *rules)
    assert "+evalsha" in str(refused(server.endpoint, "does not permit", **USER))


@pytest.mark.parametrize("wrong", ["~other:*", "&other:*"])
def test_a_user_of_other_keys_or_channels_is_told_at_start(server, wrong):
    other = "resetkeys" if wrong.startswith("~") else "resetchannels"
    permit(server, *COMMANDS.split(), other, wrong)
    assert wrong[0] + "<prefix>:*" in str(refused(server.endpoint, "does not permit", **USER))


def test_a_user_needs_some_more_for_databases_and_replicas(server):
    permit(server, *COMMANDS.split())
    for settings in ({"db": 1}, {"wait_replicas": 1}):
        refused(server.endpoint, r"\+select where db.*\+wait for wait_replicas", **settings, **USER)
    permit(server, *COMMANDS.split(), "+select", "+wait")
    forms_a_round(server.endpoint, db=1, **USER)
    opened(server.endpoint, wait_replicas=1, **USER)


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    made = Certificates.make(tmp_path_factory.mktemp("tls"))
    made.issue("elsewhere", "elsewhere.example")
    return made


def tls_server(certificates: Certificates, name: str = "server", **settings) -> RedisServer:
    files = {
        "cert-file": certificates.path(f"{name}.pem"),
        "key-file": certificates.path(f"{name}.key"),
        "ca-cert-file": certificates.path("ca.pem"),
    }
    return RedisServer(binary=debian(), tls=files, settings=settings)


@pytest.fixture(scope="module")
def tls_for_all(certificates) -> Iterator[RedisServer]:
    with tls_server(certificates, **{"tls-auth-clients": "no"}) as server:
        yield server


def test_a_round_forms_over_tls_with_the_right_authority(certificates, tls_for_all):
    forms_a_round(f"rediss://{tls_for_all.endpoint}", ca_cert=certificates.path("ca.pem"))
    forms_a_round(f"localhost:{tls_for_all.port}", ca_cert=certificates.path("ca.pem"))


def test_a_server_of_another_authority_is_refused(certificates, tls_for_all):
    endpoint = f"rediss://{tls_for_all.endpoint}"
    refused(endpoint, "(?i)certificate.verify.failed", ca_cert=certificates.path("wrong-ca.pem"))
    refused(endpoint, "(?i)certificate.verify.failed")


def test_a_certificate_must_name_the_host_unless_that_is_switched_off(certificates):
    with tls_server(certificates, "elsewhere", **{"tls-auth-clients": "no"}) as server:
        endpoint, ca_cert = f"rediss://{server.endpoint}", certificates.path("ca.pem")
        refused(endpoint, "(?i)certificate.*127.0.0.1", ca_cert=ca_cert)
        forms_a_round(endpoint, ca_cert=ca_cert, ssl_check_hostname=False)


def test_a_client_needs_the_certificate_that_the_server_asks_for(certificates):
    with tls_server(certificates) as server:
        endpoint, ca_cert = f"rediss://{server.endpoint}", certificates.path("ca.pem")
        pem, key = certificates.path("client.pem"), certificates.path("client.key")
        forms_a_round(endpoint, ca_cert=ca_cert, ssl_cert=pem, ssl_cert_key=key)
        both = Path(certificates.path("both.pem"))
        both.write_text(Path(key).read_text() + Path(pem).read_text())
        forms_a_round(endpoint, ca_cert=ca_cert, ssl_cert=str(both))
        refused(endpoint, server.endpoint, ca_cert=ca_cert)


def test_tls_on_one_side_alone_is_an_error(certificates, tls_for_all, server):
    refused(tls_for_all.endpoint, tls_for_all.endpoint, read_timeout=1)
    refused(f"rediss://{server.endpoint}", server.endpoint, read_timeout=1)


# ---------------------------------------------------------------- replicas


@pytest.fixture(scope="module")
def pair() -> Iterator[list[RedisServer]]:
    with replicated(1) as servers:
        yield servers


def test_a_replica_is_refused_with_the_remedy(pair):
    refused(pair[1].endpoint, r"read-only replica.*Name the master.*redis\+sentinel://")


def test_of_a_list_the_master_is_taken(pair):
    master, replica = pair
    backend, _ = opened(f"{replica.endpoint},{master.endpoint}", failover="accept")
    assert backend.open_session().swap(b"{}", None).won


def test_two_masters_in_a_list_are_refused(pair, server):
    refused(f"{pair[0].endpoint},{server.endpoint}", "two masters", failover="accept")


def test_one_server_with_a_replica_is_warned_of_and_a_list_is_refused(pair, caplog):
    master, replica = pair
    opened(master.endpoint)
    assert "failover=accept silences" in caplog.text
    refused(f"{master.endpoint},{replica.endpoint}", "failover=accept.*wait_replicas=1")


# ---------------------------------------------------------------- Sentinel


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with with_sentinels() as sentinels:
        yield sentinels


def test_sentinels_with_replicas_are_refused_until_the_risk_is_accepted(sentinels):
    endpoint = sentinels.endpoint
    refused(endpoint, "2 replicas.*failover=accept.*wait_replicas=2.*min-replicas-to-write")
    refused(endpoint, "min-replicas-to-write", wait_replicas=2)
    forms_a_round(endpoint, failover="accept")


def test_sentinels_are_taken_where_every_replica_confirms_every_change(sentinels):
    with sentinels.master.client() as client:
        client.config_set("min-replicas-to-write", "1")
        try:
            refused(sentinels.endpoint, "does not wait", wait_replicas=1)
            forms_a_round(sentinels.endpoint, wait_replicas=2)
        finally:
            client.config_set("min-replicas-to-write", "0")


def test_a_server_that_does_not_tell_its_settings_is_refused_with_how_to_permit_it(sentinels):
    user = ("ACL", "SETUSER", "mute", "on", f">{SECRET}", "~*", "&*", "+@all", "-config")
    with sentinels.master.client() as client:
        client.execute_command(*user)
        try:
            given = {"username": "mute", "password": SECRET, "wait_replicas": 2}
            refused(sentinels.endpoint, r"\+config\|get would permit it", **given)
        finally:
            client.execute_command("ACL", "DELUSER", "mute")


def test_a_sentinels_own_port_is_refused_with_the_right_url(sentinels):
    where = sentinels.sentinels[0].endpoint
    refused(where, rf"is a sentinel.*redis\+sentinel://{where}/<service>")


def test_a_service_that_the_sentinels_do_not_know_is_an_error_that_names_it(sentinels):
    refused(sentinels.endpoint.replace("/job", "/other"), "other")


def test_a_sentinel_that_is_down_is_passed_over(sentinels):
    hosts = sentinels.endpoint.removeprefix("redis+sentinel://")
    forms_a_round(f"redis+sentinel://127.0.0.1:1,{hosts}", failover="accept")


def test_all_sentinels_down_is_an_error_that_names_the_service():
    refused("redis+sentinel://127.0.0.1:1,127.0.0.1:2/job", "job")


# ---------------------------------------------------------------- Cluster


@pytest.fixture(scope="module")
def three(binary) -> Iterator[Cluster]:
    with cluster(binary=binary) as three:
        yield three


def test_a_round_forms_on_a_cluster(three):
    forms_a_round(three.endpoint)


def test_a_node_of_a_cluster_becomes_a_cluster(three):
    for server in three.masters:
        forms_a_round(server.endpoint)
        backend, _ = opened(server.endpoint)
        assert isinstance(backend.run.client, RedisCluster)


def test_a_server_is_no_cluster(server):
    backend, _ = opened(server.endpoint)
    assert isinstance(backend.run.client, Redis)
    refused(f"redis+cluster://{server.endpoint}", f"{server.endpoint}.*cluster support disabled")


def test_a_cluster_has_no_databases(three):
    refused(f"{three.endpoint}/1", "Cluster, which has no database 1: leave db out")
    refused(three.masters[0].endpoint, "A Cluster has only number 0: leave db out", db=1)


def test_a_socket_of_a_cluster_is_refused(binary, tmp_path):
    path = tmp_path / "redis.sock"
    settings = {"cluster-enabled": "yes"}
    with RedisServer(binary=binary, unix_socket=path, settings=settings):
        refused(f"unix://{path}", "write its host and port")


def test_a_cluster_without_slots_is_an_error(binary):
    with RedisServer(binary=binary, settings={"cluster-enabled": "yes"}) as server:
        refused(server.endpoint, server.endpoint)
        refused(f"redis+cluster://{server.endpoint}", server.endpoint)


def test_a_user_with_the_commands_that_are_named_passes_a_round_on_a_cluster(three):
    for server in three.masters:
        permit(server, *COMMANDS.split(), "+cluster|slots", "+command", "+wait")
    forms_a_round(three.endpoint, **USER)
    opened(three.endpoint, wait_replicas=1, **USER)
    for server in three.masters:
        permit(server, *COMMANDS.split())
    refused(three.endpoint, r"\+cluster\|slots", **USER)


def test_a_cluster_with_replicas_is_refused_until_the_risk_is_accepted():
    with cluster(with_replicas=True) as six:
        refused(six.endpoint, "1 replicas.*failover=accept.*wait_replicas=1")
        forms_a_round(six.endpoint, failover="accept")
        refused(six.endpoint, "min-replicas-to-write", wait_replicas=1)
        for server in six.masters:
            server.client().config_set("min-replicas-to-write", "1")
        forms_a_round(six.endpoint, wait_replicas=1)
