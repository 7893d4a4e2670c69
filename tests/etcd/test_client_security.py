"""TLS, users and passwords: what works, and what is said where it does not."""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import NoEncryption

from rdzv_etcd.client import EtcdClient, Tls
from rdzv_etcd.seam import AuthError, Compare, Get, Put, UnavailableError, prefix_end
from rdzv_etcd.server import EtcdServer

from .clients import CLIENTS, ends_with, eventually, lacks, make, reader_of, seen, values
from .servers import Users

SECRET = "us3r-s3cr3t"


@pytest.fixture
def key() -> bytes:
    return b"job/" + uuid.uuid4().hex.encode()


@pytest.fixture(params=CLIENTS)
def kind(request) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def keeps_secrets(caplog) -> Iterator[None]:
    """No log record of any test has the password in it, at no level."""
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert SECRET not in record.getMessage() + str(record.exc_info)


# ---------------------------------------------------------------- TLS


@pytest.fixture
def secure(binary, certificates) -> Iterator[EtcdServer]:
    """A server that wants a certificate of its clients."""
    tls = {
        "cert-file": certificates.path("server.pem"),
        "key-file": certificates.path("server.key"),
        "trusted-ca-file": certificates.path("ca.pem"),
        "client-cert-auth": True,
    }
    with EtcdServer(binary=binary, tls=tls, durable=False) as server:
        yield server


@pytest.fixture
def tls(certificates) -> Tls:
    path = certificates.path
    return Tls(path("ca.pem"), path("client.pem"), path("client.key"))


def refusal(client: EtcdClient, key: bytes) -> str:
    """What is said where nothing could be sent."""
    with pytest.raises(UnavailableError) as caught:
        client.put(key, b"a")
    client.close()
    assert not caught.value.sent
    assert client.where in str(caught.value)
    return str(caught.value)


def one_address(server: EtcdServer) -> str:
    """An endpoint with one address, for gRPC tells of the last that it has tried."""
    return f"127.0.0.1:{server.port}"


def test_both_sides_show_a_certificate(kind, secure, tls, key):
    client = make(kind, secure.endpoint, tls=tls)
    watch = client.watch(key)
    client.put(key, b"a")
    assert values(watch, 1) == [b"a"]
    client.close()


def test_a_server_of_another_authority_is_refused(kind, secure, tls, certificates, key):
    wrong = Tls(certificates.path("wrong-ca.pem"), tls.cert, tls.key)
    client = make(kind, one_address(secure), tls=wrong, timeout=2)
    assert "not from the CA that is trusted here" in refusal(client, key)


def test_a_client_without_a_certificate_is_told_to_have_one(secure, certificates, key):
    client = EtcdClient(secure.endpoint, tls=Tls(certificates.path("ca.pem")), timeout=2)
    assert "does not accept this client's certificate" in refusal(client, key)


def test_a_plain_client_is_told_of_tls(kind, secure, key):
    client = make(kind, one_address(secure), timeout=2)
    assert "Perhaps it speaks TLS" in refusal(client, key)


def test_a_client_with_tls_is_told_of_a_plain_server(kind, binary, tls, key):
    with EtcdServer(binary=binary, durable=False) as server:
        client = make(kind, one_address(server), tls=tls, timeout=2)
        assert "Perhaps it does not speak TLS" in refusal(client, key)


def test_files_that_do_not_belong_together_are_refused(secure, certificates, key):
    wrong = Tls(
        certificates.path("ca.pem"), certificates.path("ca.pem"), certificates.path("ca.pem")
    )
    refusal(EtcdClient(secure.endpoint, tls=wrong, timeout=2), key)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=r"none\.pem"):
        EtcdClient("localhost:1", tls=Tls(tmp_path / "none.pem"))


# ---------------------------------------------------------------- users


@pytest.fixture
def locked(binary) -> Iterator[EtcdServer]:
    """A server whose user ``user`` may do what he likes to keys that begin with ``job/``."""
    with EtcdServer(binary=binary, durable=False) as server:
        users = Users(server)
        users.add("user", SECRET, "job/")
        users.enable()
        yield server


@pytest.fixture
def client(kind, locked) -> Iterator[EtcdClient]:
    client = make(kind, locked.endpoint, username="user", password=SECRET)
    yield client
    assert SECRET not in repr(client) + repr(vars(client.__class__))
    client.close()


def test_a_user_does_what_the_roles_permit(client, key):
    watch = client.watch(key, prefix_end(key))
    lease = client.lease_grant(60).id
    client.put(key, b"a", lease)
    assert client.txn([Compare(key, "create", 0, "!=")], [Put(key, b"b", lease)]).succeeded
    assert client.range(Get(key, prefix_end(key))).count == 1
    assert values(watch, 2) == [b"a", b"b"]
    assert client.lease_keepalive(lease) == 60
    client.lease_revoke(lease)


def test_what_the_roles_do_not_permit_is_refused_in_clear_words(client):
    for call in (
        lambda: client.put(b"other", b"a"),
        lambda: client.range(Get(b"other")),
        lambda: client.delete(b"other"),
        lambda: client.txn([Compare(b"other", "create", 0)], []),
        lambda: client.watch(b"other"),
        lambda: client.watch(b"other", start_revision=1).next(30),
    ):
        with pytest.raises(AuthError, match=r"permission denied.*"):
            call()


def test_a_wrong_password_is_refused_without_being_told(locked, key):
    client = EtcdClient(locked.endpoint, username="user", password=SECRET + "!")
    with pytest.raises(AuthError, match="Check the user name and the password") as caught:
        client.put(key, b"a")
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    client.close()


def test_who_does_not_log_in_is_told_to(kind, locked, key):
    client = make(kind, locked.endpoint)
    with pytest.raises(AuthError, match="give a user name and a password"):
        client.put(key, b"a")
    client.close()


def test_a_login_that_nobody_wants_does_no_harm(binary, key):
    with EtcdServer(binary=binary, durable=False) as server:
        client = EtcdClient(server.endpoint, username="user", password=SECRET)
        client.put(key, b"a")
        client.close()


@pytest.mark.parametrize("login", [{"username": "user"}, {"password": SECRET}])
def test_half_a_login_is_refused(login):
    with pytest.raises(ValueError, match="go together") as caught:
        EtcdClient("localhost:1", **login)
    assert SECRET not in str(caught.value)


@pytest.fixture
def forgetful(binary, tmp_path) -> Iterator[EtcdServer]:
    """A server whose tokens are valid for a second."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    traditional, plain = serialization.PrivateFormat.TraditionalOpenSSL, NoEncryption()
    private.write_bytes(key.private_bytes(pem, traditional, plain))
    public.write_bytes(key.public_key().public_bytes(pem, kind))
    token = f"jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=1s"
    with EtcdServer(binary=binary, durable=False, settings={"auth-token": token}) as server:
        users = Users(server)
        users.add("user", SECRET, "job/")
        users.enable()
        yield server


def test_a_token_that_has_expired_is_renewed(kind, forgetful, key):
    client = make(kind, forgetful.endpoint, username="user", password=SECRET)
    watch = client.watch(key, prefix_end(key))
    client.put(key, b"first")
    assert values(watch, 1) == [b"first"]
    connection = client._connection
    assert connection is not None
    first = connection.metadata

    def is_another_token() -> bool:
        client.put(key + b"1", b"")
        return connection.metadata is not first

    if kind == "etcd3":
        with pytest.raises(AuthError, match="invalid auth token"):
            eventually(is_another_token)
        client.close()
        lacks(kind, "The token is etcd3's, which keeps no password to get another one with.")
    eventually(is_another_token)
    # A watch that breaks needs a valid token as well.
    connection.metadata = first
    reader_of(watch).interrupt()
    client.put(key, b"last")
    found = seen(watch, ends_with(b"last"))
    assert None not in found
    assert client._connection is connection
    client.close()


def test_a_renewed_token_leaves_the_connection_and_its_watches(locked, key):
    client = EtcdClient(locked.endpoint, username="user", password=SECRET)
    watch = client.watch(key)
    client.put(key, b"a")
    connection = client._connection
    assert connection is not None
    for _ in range(3):
        # As if it had expired: after that it is unknown to the server.
        metadata = (*connection.metadata[:-1], ("token", "expired.1"))
        connection.metadata = metadata
        client.put(key, b"a")
        assert connection.metadata != metadata
    assert client._connection is connection
    assert values(watch, 4) == [b"a"] * 4
    client.close()


def test_a_watch_is_opened_again_each_time_its_token_has_expired(locked, key):
    client = EtcdClient(locked.endpoint, username="user", password=SECRET)
    watch = client.watch(key)
    for number in (b"0", b"1", b"2"):
        connection = client._connection
        assert connection is not None
        connection.metadata = (*connection.metadata[:-1], ("token", "expired.1"))
        reader_of(watch).interrupt()
        # It stands again before anything happens.
        eventually(lambda: not reader_of(watch)._renewed and reader_of(watch)._call is not None)
        client.put(key, number)
        assert values(watch, 1) == [number]
    client.close()
