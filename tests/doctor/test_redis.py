"""The doctor on real Redis servers: logins, permissions, TLS, settings."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from rdzv_redis.server import RedisServer

from ..local_servers import Certificates
from ..redis.servers import cluster, debian, replicated, with_sentinels
from .examining import SECRET, examined, works


@pytest.fixture(scope="module")
def server():
    with RedisServer(password=SECRET) as server:
        yield server


def test_a_sound_server_is_sound_and_keeps_nothing(server):
    found = examined("redis", server.endpoint, {"password": SECRET})
    assert works(found)
    assert "redis.version" in found
    with server.client() as client:
        # What the probe of permissions leaves expires after a second.
        assert [key for key in client.keys("*") if b"probe" not in key] == []


def test_a_login_that_is_missing_is_told_from_one_that_is_refused(server):
    assert examined("redis", server.endpoint).errors == ["login.missing"]
    wrong = examined("redis", server.endpoint, {"password": SECRET + "!"})
    assert wrong.errors == ["login.refused"]
    assert not wrong["login.refused"].seen.endswith("!")


def test_a_user_without_scripts_lacks_a_permission(server):
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", f">{SECRET}", "~*", "&*",
                               "+@all", "-@scripting")  # fmt: skip
    found = examined("redis", server.endpoint, {"username": "poor", "password": SECRET})
    assert found.errors == ["permission.missing"]
    assert "+eval" in found["permission.missing"].remedy


def test_a_user_who_may_not_see_settings_is_told_so(server):
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "shy", "on", f">{SECRET}", "~*", "&*",
                               "+@all", "-config")  # fmt: skip
    found = examined("redis", server.endpoint, {"username": "shy", "password": SECRET})
    assert works(found)
    assert "redis.settings-hidden" in found


def test_eviction_and_a_memory_that_is_nearly_full_are_warnings():
    settings = {"maxmemory-policy": "allkeys-lru"}
    with RedisServer(settings=settings) as server, server.client() as client:
        client.set("big", b"x" * 20_000_000)
        used: Any = client.info("memory")
        client.config_set("maxmemory", int(used["used_memory"] * 1.2))
        found = examined("redis", server.endpoint)
    assert works(found)
    assert found["redis.evicts"].level == "warning"
    assert found["redis.nearly-full"].level == "warning"
    assert "redis.no-persistence" in found


def test_replicas_that_nobody_waits_for_are_a_warning_until_that_is_accepted():
    with replicated(1) as (master, replica):
        assert "redis.may-lose-writes" in examined("redis", master.endpoint)
        accepted = examined("redis", master.endpoint, {"failover": "accept"})
        assert works(accepted)
        assert "redis.may-lose-writes" not in accepted
        assert examined("redis", replica.endpoint).errors == ["redis.refused"]


def test_a_unix_socket_has_no_port_to_connect_to(tmp_path):
    path = tmp_path / "redis.sock"
    with RedisServer(unix_socket=path):
        found = examined("redis", f"unix://{path}")
    assert works(found)
    assert "redis.version" in found


def test_sentinels_lead_to_a_master_whose_failovers_have_to_be_accepted():
    with with_sentinels() as sentinels:
        assert examined("redis", sentinels.endpoint).errors == ["redis.refused"]
        found = examined("redis", sentinels.endpoint, {"failover": "accept"})
    assert works(found)
    assert "redis.version" in found


def test_a_cluster_is_examined_through_the_server_that_has_the_runs_keys():
    with cluster() as made:
        found = examined("redis", made.endpoint, {"failover": "accept"})
    assert works(found)
    assert "redis.version" in found


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    made = Certificates.make(tmp_path_factory.mktemp("certificates"))
    made.issue("elsewhere", "elsewhere.example")
    for name, before, after in (("expired", -30, -1), ("early", 1, 30), ("short", -1, 3)):
        days = [dt.datetime.now(dt.timezone.utc) + dt.timedelta(n)
                for n in (before, after)]  # fmt: skip
        issued = made.authority.issue_cert("127.0.0.1", not_before=days[0], not_after=days[1])
        issued.private_key_pem.write_to_path(made.folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(made.folder / f"{name}.pem")
    return made


def speaking_tls(made: Certificates, name: str, clients: str = "no") -> RedisServer:
    files = {"cert-file": made.path(f"{name}.pem"), "key-file": made.path(f"{name}.key")}
    files["ca-cert-file"] = made.path("ca.pem")
    return RedisServer(binary=debian(), tls=files, settings={"tls-auth-clients": clients})


def test_a_sound_certificate_is_told_with_its_names_and_its_end(certificates):
    with speaking_tls(certificates, "server") as server:
        found = examined("redis", server.endpoint, {"ca_cert": certificates.path("ca.pem")})
    assert works(found)
    assert "127.0.0.1, localhost" in found["tls.sound"].seen.replace("localhost, 127.0.0.1",
        "127.0.0.1, localhost")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ca", "errors"),
    [
        ("server", "wrong-ca.pem", ["tls.untrusted"]),
        ("elsewhere", "ca.pem", ["tls.wrong-name"]),
        ("expired", "ca.pem", ["tls.expired"]),
        ("early", "ca.pem", ["tls.not-yet-valid"]),
        ("expired", "wrong-ca.pem", ["tls.untrusted", "tls.expired"]),
    ],
)
def test_each_thing_that_is_wrong_with_a_certificate_is_named(certificates, name, ca, errors):
    with speaking_tls(certificates, name) as server:
        found = examined("redis", server.endpoint, {"ca_cert": certificates.path(ca)})
    assert found.errors == errors
    assert "TLS does not work" in found["operation.skipped"].seen


def test_names_are_left_unchecked_where_that_was_asked_for(certificates):
    settings = {"ca_cert": certificates.path("ca.pem"), "ssl_check_hostname": "false"}
    with speaking_tls(certificates, "elsewhere") as server:
        found = examined("redis", server.endpoint, settings)
    assert works(found)
    assert "tls.names-unchecked" in found


def test_a_certificate_that_ends_soon_is_a_warning(certificates):
    with speaking_tls(certificates, "short") as server:
        found = examined("redis", server.endpoint, {"ca_cert": certificates.path("ca.pem")})
    assert works(found)
    assert found["tls.ends-soon"].level == "warning"


def test_a_server_that_wants_a_certificate_says_so(certificates, monkeypatch):
    monkeypatch.setattr("rdzv.doctor.tls._SETTLING", 2.0)
    settings = {"ca_cert": certificates.path("ca.pem")}
    with speaking_tls(certificates, "server", clients="yes") as server:
        assert examined("redis", server.endpoint, settings).errors == ["tls.client-certificate"]
        settings["ssl_cert"] = certificates.path("client.pem")
        settings["ssl_cert_key"] = certificates.path("client.key")
        assert works(examined("redis", server.endpoint, settings))


def test_tls_against_a_plain_server_and_the_other_way_round(certificates, server):
    ca = certificates.path("ca.pem")
    found = examined("redis", server.endpoint, {"ca_cert": ca, "password": SECRET}, limit=2.0)
    assert found.errors == ["tls.not-spoken"]
    with speaking_tls(certificates, "server") as secure:
        assert examined("redis", secure.endpoint).errors == ["tls.wanted"]


def test_a_file_that_is_no_certificate_is_a_finding(certificates, tmp_path: Path):
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    with speaking_tls(certificates, "server") as server:
        found = examined("redis", server.endpoint, {"ca_cert": str(bad)})
    assert found.errors == ["tls.failed"]


def test_the_secret_in_an_endpoint_is_never_shown(server):
    found = examined("redis", f"redis://default:{SECRET}@{server.endpoint}")
    assert works(found)
    assert examined("redis", f"redis://default:x{SECRET}@{server.endpoint}").errors == [
        "login.refused"
    ]
