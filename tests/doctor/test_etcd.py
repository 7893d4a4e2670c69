"""The doctor on real etcd: members, permissions, TLS, a database that is full."""

from __future__ import annotations

import pytest

from rdzv_etcd.diagnose import _version
from rdzv_etcd.seam import Get
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.testing import EtcdCluster

from ..etcd.servers import KINDS, Users, ask, distro, program
from ..local_servers import Certificates
from .examining import SECRET, examined, works


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_server_is_sound_and_keeps_nothing(kind):
    with EtcdServer(binary=program(kind), durable=False) as server:
        found = examined("etcd", server.endpoint)
        assert works(found)
        assert found["etcd.members"].level == "note"
        assert "etcd.size" in found
        assert server.get_client().range(Get(b"\0", b"\0")).count == 0


def test_a_version_that_loses_writes_is_warned_of_and_other_defects_are_told():
    with EtcdServer(binary=distro(), durable=False) as server:
        found = examined("etcd", server.endpoint)
        assert found["etcd.version"].seen == "etcd 3.5.1."
        assert found["etcd.loses-writes"].level == "warning"
        assert "13766" in found["etcd.loses-writes"].seen
        assert found["etcd.old"].level == "note"
        assert "15247" in found["etcd.old"].seen
        assert "14110" in found["etcd.old"].seen


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("3.4.22", ["etcd.old"]),
        ("3.4.31", []),
        ("3.5.0", ["etcd.loses-writes", "etcd.old"]),
        ("3.5.3", ["etcd.old"]),
        ("3.5.13", []),
        ("3.6.0-rc.1", []),
        ("4.0", []),
        ("what?", []),
        pytest.param(f"3.5.{'1' * 5000}", [], id="beyond what is read as a number"),
    ],
)
def test_what_is_told_depends_on_the_version(version, told):
    assert [finding.id for finding in _version(version)] == ["etcd.version", *told]


def test_a_user_without_the_prefix_lacks_a_permission_and_one_who_has_it_does_not():
    with EtcdServer(binary=distro(), durable=False) as server:
        users = Users(server)
        users.add("poor", SECRET, "/elsewhere/")
        users.add("good", SECRET, "/rdzv/")
        users.enable()
        found = examined("etcd", server.endpoint, {"username": "poor", "password": SECRET})
        assert found.errors == ["permission.missing"]
        assert "/rdzv/" in found["permission.missing"].remedy
        assert works(examined("etcd", server.endpoint, {"username": "good", "password": SECRET}))
        assert examined("etcd", server.endpoint).errors == ["login.missing"]
        wrong = {"username": "good", "password": f"{SECRET}x"}
        assert examined("etcd", server.endpoint, wrong).errors == ["login.refused"]


def test_tls_is_looked_at_before_etcd_is_asked(tmp_path):
    made = Certificates.make(tmp_path)
    files = {"cert-file": made.path("server.pem"), "key-file": made.path("server.key")}
    with EtcdServer(binary=distro(), durable=False, tls=files) as server:
        assert works(examined("etcd", server.endpoint, {"ca_cert": made.path("ca.pem")}))
        wrong = {"ca_cert": made.path("wrong-ca.pem")}
        assert examined("etcd", server.endpoint, wrong).errors == ["tls.untrusted"]
        assert examined("etcd", server.endpoint).errors == ["tls.wanted"]
    with EtcdServer(binary=distro(), durable=False) as server:
        found = examined("etcd", server.endpoint, {"ca_cert": made.path("ca.pem")}, limit=2.0)
        assert found.errors == ["tls.not-spoken"]


def test_an_alarm_for_space_is_found():
    with EtcdServer(binary=distro(), durable=False) as server:
        member = server.get_client().members().members[0].ID
        question = {"action": "ACTIVATE", "memberID": str(member), "alarm": "NOSPACE"}
        ask(server, "/v3/maintenance/alarm", question)
        found = examined("etcd", server.endpoint)
        assert found.errors == ["etcd.full"]
        assert "disarm" in found["etcd.full"].remedy


def test_a_cluster_is_there_as_long_as_most_of_it_is():
    with EtcdCluster(3, binary=distro(), durable=False) as cluster:
        found = examined("etcd", ",".join(cluster.endpoints))
        assert works(found)
        assert "loss of 1" in found["etcd.members"].seen
        cluster.members[0].kill()
        cluster.leader()  # Another one, where it led.
        found = examined("etcd", ",".join(cluster.endpoints))
        assert works(found)
        assert found["port.refused"].level == "warning"
        cluster.members[1].kill()
        assert examined("etcd", ",".join(cluster.endpoints), limit=2.0).errors != []
