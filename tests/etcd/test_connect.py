"""Connecting to real servers by a run's parameters, and what is said where it cannot be."""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rdzv import RendezvousParameters, get_rendezvous_handler
from rdzv.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from rdzv.errors import RendezvousConnectionError
from rdzv_etcd.backend import EtcdRendezvousBackend, create_backend
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.session import EtcdSession
from rdzv_etcd.store import EtcdStore
from rdzv_etcd.testing import EtcdCluster

from ..local_servers import LIMIT
from .clients import make
from .groups import Group, assert_one_group, eventually, joining, places, waiting
from .servers import KINDS, Users, ask, commit, distro, program

SECRET = "s3cr3t-w0rd"


def parameters(endpoint: str, **settings: Any) -> RendezvousParameters:
    settings = {"local_addr": "127.0.0.1", "last_call_timeout": 0.1, **settings}
    return RendezvousParameters("etcd", endpoint, uuid.uuid4().hex, 1, 1, **settings)


def opened(endpoint: str, **settings: Any) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    backend, store = create_backend(parameters(endpoint, **settings))
    assert isinstance(store, EtcdStore)
    return backend, store


def forms_a_round(endpoint: str, **settings: Any) -> None:
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


def refused(endpoint: str, match: str, **settings: Any) -> RendezvousConnectionError:
    """That it is refused in these words, without a secret."""
    with pytest.raises(RendezvousConnectionError, match=match) as caught:
        create_backend(parameters(endpoint, **settings))
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in f"{chain} {chain!r}"
        chain = chain.__cause__ or chain.__context__
    return caught.value


@pytest.fixture(autouse=True)
def keeps_secrets(caplog) -> Iterator[None]:
    """No log record of any test has the password in it, at no level."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert SECRET not in record.getMessage()
        assert SECRET not in str(record.exc_info)


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind) -> Iterator[EtcdServer]:
    with EtcdServer(binary=program(kind), durable=False) as server:
        yield server


# ---------------------------------------------------------------- endpoints


@pytest.mark.parametrize("form", ["{}", "http://{}", "http://{}/", "localhost:1,{}", "{},nobody:1"])
def test_a_round_forms_on_a_server_named_in_any_form(server, form):
    forms_a_round(form.format(server.endpoint))


def test_a_member_that_answers_nothing_is_passed_over(server):
    with socket.create_server(("127.0.0.1", 0)) as hole:
        where = f"127.0.0.1:{hole.getsockname()[1]}"
        forms_a_round(f"{where},{server.endpoint}", connect_timeout=0.5)


def test_all_settings_reach_what_they_are_for(server):
    backend, store = opened(
        server.endpoint, prefix="/jobs/mine", ttl=60, lease_ttl=4, read_timeout=3, timeout=7
    )
    assert backend.run.root().startswith("/jobs/mine/")
    assert backend.run.ttl == 60
    session, client = backend.open_session(), backend.run.client
    assert isinstance(session, EtcdSession)
    assert isinstance(client, EtcdClient)
    assert (session._lease_ttl, client.timeout) == (4, 3)
    assert store.timeout.total_seconds() == 7
    store.set("key", "value")
    assert client.lease_grant(1, backend.run.lease).ttl == 60


def test_a_name_that_a_run_may_have_is_no_other_runs(server):
    client = server.get_client()
    first = EtcdRendezvousBackend(client, "a/b c", "/p")
    other = EtcdRendezvousBackend(client, "a", "/p")
    first.set_state(b"first")
    other.set_state(b"other")
    assert (first.get_state() or [b""])[0] == b"first"
    assert not first.run.root().startswith(other.run.root(""))
    client.close()


# ---------------------------------------------------------------- nobody there


def test_nothing_listening_is_an_error_that_names_the_member():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(where, f"{where} cannot be reached", connect_timeout=0.3, read_timeout=2)


def test_a_name_that_does_not_resolve_is_an_error_that_names_it():
    refused("no-such-host.invalid", "no-such-host.invalid", connect_timeout=0.3, read_timeout=2)


def test_a_server_that_never_answers_is_an_error_within_the_timeouts(server):
    with socket.create_server(("127.0.0.1", 0)) as hole:
        where = f"127.0.0.1:{hole.getsockname()[1]}"
        began = time.monotonic()
        refused(where, where, connect_timeout=0.3, read_timeout=1)
        # Of which it is far away: a limit of gRPC's own is 20 s.
        assert time.monotonic() - began < LIMIT / 2


def test_a_frozen_server_is_an_error_that_names_it():
    with EtcdServer(durable=False) as frozen:
        frozen.pause()
        refused(frozen.endpoint, frozen.endpoint, connect_timeout=0.3, read_timeout=1)


def test_a_cluster_without_a_quorum_is_an_error():
    with EtcdCluster(3, binary=distro()) as cluster:
        cluster.kill(0)
        cluster.kill(1)
        refused(",".join(cluster.endpoints), cluster.endpoints[2], read_timeout=1)


def test_what_is_no_etcd_is_an_error_that_says_so():
    # It talks first, and no HTTP/2.
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            for _ in range(20):
                try:
                    connection, _ = other.accept()
                except OSError:
                    return
                connection.sendall(b"220 mail.example ESMTP\r\n")

        threading.Thread(target=answer, daemon=True).start()
        where = f"127.0.0.1:{other.getsockname()[1]}"
        refused(where, where, connect_timeout=1, read_timeout=1)


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def tls_server(certificates, kind) -> Iterator[EtcdServer]:
    """One that wants a certificate of its clients."""
    files: dict[str, str | bool] = {
        "cert-file": certificates.path("server.pem"),
        "key-file": certificates.path("server.key"),
        "trusted-ca-file": certificates.path("ca.pem"),
        "client-cert-auth": True,
    }
    with EtcdServer(binary=program(kind), durable=False, tls=files) as server:
        yield server


def test_a_round_forms_over_tls_with_a_clients_certificate(certificates, tls_server):
    pem, key = certificates.path("client.pem"), certificates.path("client.key")
    ca_cert = certificates.path("ca.pem")
    forms_a_round(f"https://{tls_server.endpoint}", ca_cert=ca_cert, ssl_cert=pem, ssl_cert_key=key)
    both = Path(certificates.path("both.pem"))
    both.write_text(Path(key).read_text() + Path(pem).read_text())
    forms_a_round(tls_server.endpoint, ca_cert=ca_cert, ssl_cert=str(both))


def test_a_client_without_the_certificate_is_refused(certificates, tls_server):
    endpoint, ca_cert = tls_server.endpoint, certificates.path("ca.pem")
    refused(endpoint, "certificate", ca_cert=ca_cert, read_timeout=2)


def test_a_server_of_another_authority_is_refused(certificates, tls_server):
    pem, key = certificates.path("client.pem"), certificates.path("client.key")
    wrong = certificates.path("wrong-ca.pem")
    given = {"ssl_cert": pem, "ssl_cert_key": key, "read_timeout": 2}
    refused(tls_server.endpoint, "CA that is trusted", ca_cert=wrong, **given)
    refused(tls_server.endpoint, "CA that is trusted", **given)


def test_tls_on_one_side_alone_is_an_error_that_says_so(certificates, tls_server, server):
    refused(f"http://{tls_server.endpoint}", "it speaks TLS", read_timeout=2)
    ca_cert = certificates.path("ca.pem")
    refused(server.endpoint, "does not speak TLS", ca_cert=ca_cert, read_timeout=2)


# ---------------------------------------------------------------- users


USER = {"username": "job", "password": SECRET}


def lock(server: EtcdServer, may: str = "READWRITE") -> None:
    """Have the server ask for logins, and permit the user ``job`` the keys of rdzv."""
    users = Users(server)
    users.add("job", SECRET, "/rdzv/", may)
    users.enable()


@pytest.fixture(scope="module")
def locked(kind) -> Iterator[EtcdServer]:
    with EtcdServer(binary=program(kind), durable=False) as server:
        lock(server)
        yield server


def test_a_role_for_the_prefix_suffices_for_whole_rounds(locked):
    forms_a_round(locked.endpoint, **USER)
    run = Group(locked.endpoint, **USER)
    handlers = run.formed(3, 2, 4)
    # Arrivals, returns, leases, watches, what is freed.
    for number in (2, 3):
        first = joining(handlers[0])
        assert assert_one_group(places(first + joining(*handlers[1:])), 3) == number
    run.shutdown()


def test_a_password_is_accepted_from_every_place(locked, tmp_path, monkeypatch):
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    opened(f"http://job:{SECRET}@{locked.endpoint}")
    opened(locked.endpoint, username="job", password_file=str(file))
    monkeypatch.setenv("RDZV_ETCD_USERNAME", "job")
    monkeypatch.setenv("RDZV_ETCD_PASSWORD", SECRET)
    opened(locked.endpoint)


def test_a_server_without_users_takes_a_login(server):
    forms_a_round(server.endpoint, **USER)


def test_a_missing_or_wrong_login_is_refused_with_where_to_give_it(locked):
    refused(locked.endpoint, "RDZV_ETCD_PASSWORD")
    refused(locked.endpoint, "RDZV_ETCD_PASSWORD", username="job", password=f"{SECRET}-wrong")
    refused(locked.endpoint, "RDZV_ETCD_PASSWORD", username="nobody", password=SECRET)


def test_a_user_of_other_keys_is_refused_with_what_it_needs(locked):
    refused(locked.endpoint, "role that may read and write", prefix="/other", **USER)


@pytest.mark.parametrize("may", ["READ", "WRITE"])
def test_a_user_who_may_do_half_of_it_is_refused_with_what_it_needs(kind, may):
    with EtcdServer(binary=program(kind), durable=False) as server:
        lock(server, may)
        refused(server.endpoint, "role that may read and write", **USER)


def test_a_restart_forgets_all_tokens_and_nodes_log_in_again(kind):
    with EtcdServer(binary=program(kind), durable=False) as server:
        lock(server)
        run = Group(server.endpoint, **USER)
        handlers = run.formed(2, 2, 3)
        root = {"name": "root", "password": Users.ROOT}
        commit(server, token=ask(server, "/v3/auth/authenticate", root)["token"])
        server.restart()
        first = joining(handlers[0])
        assert assert_one_group(places(first + joining(handlers[1])), 2) == 2
        run.shutdown()


def test_nodes_outlive_their_tokens(kind):
    # A token lives on while it is used, so that of a watch may end.
    settings = {"auth-token-ttl": 1}
    with EtcdServer(binary=program(kind), durable=False, settings=settings) as server:
        lock(server)
        run = Group(server.endpoint, **USER, keep_alive_interval=2.0, keep_alive_max_attempt=4)
        handlers = run.formed(2, 2, 3)
        backend, _ = create_backend(run.parameters(2, 3))
        client = backend.run.client
        run.wait_for_beats(client, 2)
        first = joining(handlers[0])
        assert assert_one_group(places(first + joining(handlers[1])), 2) == 2
        run.shutdown()


# ---------------------------------------------------------------- a client of etcd3's


def test_rounds_form_over_clients_of_etcd3(server):
    run_id = uuid.uuid4().hex
    handlers = []
    for _ in range(3):
        client = make("etcd3", server.endpoint)
        backend = EtcdRendezvousBackend(client, run_id)
        handlers.append(
            DynamicRendezvousHandler.from_backend(
                run_id,
                EtcdStore(client, backend.run.root("store")),
                backend,
                2,
                3,
                local_addr="127.0.0.1",
                timeout=RendezvousTimeout(last_call=timedelta(seconds=LIMIT)),
            )
        )
    for number in (1, 2):
        assert assert_one_group(places(joining(*handlers)), 3) == number
    handlers[0].leave()
    eventually(lambda: all(waiting(handlers[1:])), "nobody has told the others")
    for handler in handlers:
        handler.shutdown()
