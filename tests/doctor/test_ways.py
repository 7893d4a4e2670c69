"""Names, connections, this node's address: what is found before any server is asked."""

from __future__ import annotations

import errno
import socket
import threading

import pytest

from rdzv.diagnosis import Finding
from rdzv.doctor import bounded, names, node, ports

from .examining import SECRET, examined


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(monkeypatch, known):
    """A name service that knows these hosts, and says of others what the error says."""
    real = socket.getaddrinfo

    def getaddrinfo(host, port, family=0, *more, **others):
        if host not in known:
            return real(host, port, family, *more, **others)
        if isinstance(known[host], Exception):
            raise known[host]
        found = [a for a in known[host] if (":" in a) == (family == socket.AF_INET6)]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def looked_up(*hosts: str) -> dict[str, Finding]:
    return {each.id: each for each in names.check_hosts(names.look_up(hosts, 5.0))}


def test_a_finding_has_an_id_a_level_and_a_remedy_where_something_is_wrong():
    for wrong in (("id", "ok", "x"), ("a.b", "bad", "x"), ("a.b", "error", "x"), ("A.b", "ok", "")):
        with pytest.raises(ValueError, match=r"id|level|remedy"):
            Finding(*wrong)


def test_a_name_without_an_address_ends_what_needs_one(monkeypatch):
    answers(monkeypatch, {"nowhere": []})
    found = examined("redis", "nowhere:6379")
    assert found.errors == ["name.unresolved"]
    assert "nowhere" in found["name.unresolved"].seen
    assert "no host of the endpoint has an address" in found["port.skipped"].seen
    assert "no host of the endpoint has an address" in found["operation.skipped"].seen


def test_a_name_service_that_does_not_answer_is_told_from_a_name_that_is_not_there(monkeypatch):
    failure = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    answers(monkeypatch, {"db": failure, "other": []})
    assert "Temporary failure" in looked_up("db")["name.service"].seen
    assert list(looked_up("other")) == ["name.unresolved"]


def test_a_lookup_that_hangs_is_given_up_and_said_to_be_slow(monkeypatch):
    over = threading.Event()

    def hangs(*_, **__):
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "late")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    (lookup,) = names.look_up(["db"], 0.05)
    over.set()
    assert not lookup.addresses
    assert all("0.05 s" in failure for failure in lookup.failures)


def test_both_families_are_looked_up(monkeypatch):
    answers(monkeypatch, {"db": ["192.0.2.7", "2001:db8::7"]})
    assert "192.0.2.7 (IPv4) and 2001:db8::7 (IPv6)" in looked_up("db")["name.resolved"].seen


def test_one_host_without_an_address_is_a_warning_beside_another_that_has_one(monkeypatch):
    answers(monkeypatch, {"a": [], "b": ["192.0.2.7"]})
    assert looked_up("a", "b")["name.unresolved"].level == "warning"


@pytest.mark.parametrize(
    ("host", "id_", "level"),
    [
        ("127.0.0.1", "name.loopback", "note"),
        ("here", "name.loopback", "warning"),
        ("0.0.0.0", "name.unspecified", "warning"),
        ("::", "name.unspecified", "warning"),
    ],
)
def test_an_address_that_is_another_machines_elsewhere_is_pointed_out(
    monkeypatch, host, id_, level
):
    answers(monkeypatch, {"here": ["127.0.1.1"]})
    assert looked_up(host)[id_].level == level


@pytest.mark.parametrize(
    ("addresses", "id_"),
    [
        (["127.0.1.1"], "node.name-loopback"),
        (["127.0.1.1", "192.0.2.7"], "node.name"),
        ([], "node.name-unresolved"),
    ],
)
def test_this_machines_own_name_is_looked_at(monkeypatch, addresses, id_):
    answers(monkeypatch, {socket.gethostname(): addresses})
    assert names.check_own_name(5.0, local_run=False).id == id_


def test_a_port_where_nothing_listens_is_refused():
    found = examined("redis", f"127.0.0.1:{closed_port()}")
    assert found.errors == ["port.refused"]
    assert "no server of the endpoint accepts" in found["operation.skipped"].seen


def test_an_address_that_swallows_everything_is_a_timeout():
    # Once its queue is full, the system drops who else wants to connect.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        place = server.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        try:
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(place)
            found = examined("redis", f"127.0.0.1:{place[1]}", limit=1.0)
        finally:
            for each in waiting:
                each.close()
    assert found.errors == ["port.timeout"]
    assert "within 1 s" in found["port.timeout"].seen
    assert "firewall" in found["port.timeout"].remedy


@pytest.mark.parametrize(
    ("exc", "outcome"),
    [
        (ConnectionRefusedError(), "refused"),
        (TimeoutError(), "timeout"),
        (bounded.LateError(), "timeout"),
        (OSError(errno.ENETUNREACH, ""), "unreachable"),
        (OSError(errno.EHOSTUNREACH, ""), "unreachable"),
        (OSError(errno.EAFNOSUPPORT, ""), "unreachable"),
        (PermissionError(errno.EPERM, ""), "failed"),
    ],
)
def test_reasons_for_no_connection_are_told_apart(exc, outcome):
    assert ports.why_not(exc) == outcome


def test_a_dead_address_of_a_name_is_a_warning_where_another_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answers(monkeypatch, {"db": ["127.0.0.2", "127.0.0.1"]})
        found = examined("redis", f"db:{port}", {"read_timeout": 0.2}, limit=2.0)
    assert found["port.refused"].level == "warning"
    assert "first" in found["port.refused"].seen
    assert "port.open" in found


# ---------------------------------------------------------------- this node


def at(address: str, *, given: bool = True, local_run: bool = False) -> list[Finding]:
    listener = node.Listener()
    try:
        found = node.check_address(address, listener, 1.0, given=given, local_run=local_run)
        return list(found)
    finally:
        listener.close()


def test_the_address_of_an_interface_is_reached_from_this_machine():
    # All of 127.0.0.0/8 is: the run is said to be elsewhere only to have it looked at.
    found = at("127.0.0.1", local_run=True)
    assert [each.id for each in found] == ["node.loopback", "node.listens"]
    assert [each.level for each in found] == ["note", "ok"]


def test_a_loopback_address_is_no_address_for_other_nodes():
    assert at("127.0.0.1")[0].level == "error"


def test_an_address_that_leads_to_somebody_else_is_found(monkeypatch):
    listener, other = node.Listener(), node.Listener()
    try:
        word = node.greet("127.0.0.1", other.port, 5.0)
        assert word == other.word != listener.word
        monkeypatch.setattr(node, "greet", lambda *_: word)
        *_, finding = node.check_address("127.0.0.1", listener, 5.0, given=True, local_run=True)
    finally:
        listener.close()
        other.close()
    assert finding.id == "node.unreached"
    assert "something else" in finding.seen


def test_a_name_that_does_not_resolve_is_no_address(monkeypatch):
    answers(monkeypatch, {"nowhere": []})
    assert [each.id for each in at("nowhere")] == ["node.unresolved"]


def test_without_a_peer_it_says_what_was_not_checked_and_how_to():
    found = examined("redis", f"127.0.0.1:{closed_port()}", local_addr="127.0.0.1")
    assert "peer.not-checked" not in found, "the run is on this machine"
    found = examined("c10d", "/no/such/folder/file", {"store_type": "file"})
    assert "--peer" in found["peer.not-checked"].seen
    assert found.errors == ["operation.no-connection"]


# ---------------------------------------------------------------- settings and plugins


def test_a_backend_that_is_not_installed_ends_the_examination():
    found = examined("rediss", "127.0.0.1:1")
    assert [each.id for each in found.findings] == ["backend.unavailable"]
    assert "Did you mean 'redis'" in found.text


@pytest.mark.parametrize(
    ("backend", "endpoint", "settings"),
    [
        ("redis", "127.0.0.1:1", {"pasword": SECRET}),
        ("redis", "127.0.0.1:1", {"password": SECRET, "read_timeout": "-1"}),
        ("redis", f"redis://u:{SECRET}@[broken", {}),
        ("etcd", "ftp://127.0.0.1:1", {}),
        ("c10d", "127.0.0.1:0", {}),
        ("c10d", "127.0.0.1:1", {"keep_alive_max_attempt": 1}),
    ],
)
def test_what_is_wrong_with_settings_is_said_and_nothing_is_connected_to(
    backend, endpoint, settings
):
    found = examined(backend, endpoint, settings)
    assert [each.id for each in found.findings] == ["settings.wrong"]


def test_torchruns_name_of_a_backend_is_known():
    assert "backend.loaded" in examined("rdzv-etcd", f"127.0.0.1:{closed_port()}")


def test_a_handler_of_its_own_is_looked_at_as_far_as_it_goes():
    found = examined("static", f"127.0.0.1:{closed_port()}", {"rank": "0"})
    assert not found.errors
    assert "port.nobody-yet" in found
    assert "handler of its own" in found["operation.skipped"].seen
