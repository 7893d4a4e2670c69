"""Endpoints: how they are read, whose they are, and what of them may be shown."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rdzv
import rdzv.utils
from rdzv import endpoint
from rdzv.endpoint import (
    default_address,
    free_port,
    hold_port,
    host_of,
    matches_machine,
    names_secret,
    parse_rendezvous_endpoint,
    redact,
    redact_endpoint,
)

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str)
ports = st.integers(0, 65535)


@given(host=names | ipv4, port=ports)
def test_a_host_and_a_port_are_split(host, port):
    assert parse_rendezvous_endpoint(f"{host}:{port}", 7) == (host, port)


@given(host=names | ipv4 | ipv6, port=ports)
def test_anything_in_brackets_is_the_host(host, port):
    assert parse_rendezvous_endpoint(f"[{host}]:{port}", 7) == (host, port)
    assert parse_rendezvous_endpoint(f"[{host}]", 7) == (host, 7)


@given(host=names | ipv4)
def test_a_host_without_a_port_gets_the_default_port(host):
    assert parse_rendezvous_endpoint(host, 7) == (host, 7)


@given(host=ipv6)
def test_a_bare_ipv6_address_is_an_address_or_is_refused_as_ambiguous(host):
    try:
        assert parse_rendezvous_endpoint(host, 7) == (host, 7)
    except ValueError as error:
        head, _, tail = host.rpartition(":")
        assert ipaddress.ip_address(head).version == 6
        assert tail.isdecimal()
        assert f"'[{host}]'" in str(error)
        assert f"'[{head}]:{tail}'" in str(error)


@given(text=st.text(max_size=30))
def test_any_text_gives_a_usable_answer_or_a_value_error(text):
    try:
        host, port = parse_rendezvous_endpoint(text, 7)
    except ValueError as error:
        assert "endpoint" in str(error)
    else:
        assert host
        assert 0 <= port <= 65535
        assert not set(host) & set(" []/@")


hosts_of_both = names | ipv4 | ipv6.map(lambda address: f"[{address}]")
endpoints_of_both = st.one_of(
    hosts_of_both,
    st.builds(lambda host, port: f"{host}:{port}", hosts_of_both, ports),
    st.builds(lambda host: f" {host}\n", hosts_of_both),
)


@given(text=endpoints_of_both)
def test_torch_reads_the_same_out_of_a_well_formed_endpoint(text):
    theirs = pytest.importorskip("torch.distributed.elastic.rendezvous.utils")
    assert parse_rendezvous_endpoint(text, 7) == theirs.parse_rendezvous_endpoint(text, 7)


@given(text=st.text("ab1:.[]- %/@", max_size=14))
def test_what_torch_refuses_is_accepted_only_for_a_bare_or_zoned_ipv6_address(text):
    theirs = pytest.importorskip("torch.distributed.elastic.rendezvous.utils")
    try:
        ours = parse_rendezvous_endpoint(text, 7)
    except ValueError:
        return
    try:
        expected = theirs.parse_rendezvous_endpoint(text, 7)
    except ValueError:
        expected = None
    if ours != expected:
        assert ipaddress.ip_address(ours[0]).version == 6


@pytest.mark.parametrize("text", [None, "", "  \t"])
def test_no_endpoint_stands_for_localhost(text):
    assert parse_rendezvous_endpoint(text, 29400) == ("localhost", 29400)


def test_an_ipv6_address_with_a_port_of_five_digits_is_read_as_torch_reads_it():
    assert parse_rendezvous_endpoint("fe80::1:29400", 7) == ("fe80::1", 29400)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (":29400", "the host is missing"),
        ("[]:29400", "the host is missing"),
        ("host:", "the port after the colon is missing"),
        ("host:99999", "the port '99999' is no whole number from 0 to 65535"),
        ("host:-1", "the port '-1' is no"),
        ("host:x", "the port 'x' is no"),
        ("host:٣", "is no whole number"),
        ("ho st:1", "it contains blanks"),
        ("a:b:1", "'a:b' is no IPv6 address"),
        ("[::1", "the closing bracket is missing"),
        ("[::1]29400", "only a colon and a port may follow"),
        ("tcp://host:1", "it is a URL"),
        ("/tmp/file", "it is a URL or a path"),
        ("ho$t", "'ho$t' is no host name"),
    ],
)
def test_a_malformed_endpoint_is_refused_with_the_reason_and_the_remedy(text, reason):
    with pytest.raises(ValueError, match="Please write it as host") as caught:
        parse_rendezvous_endpoint(text, 7)
    assert reason in str(caught.value)


def test_the_error_about_an_endpoint_hides_the_password_in_it():
    for text in ("redis://user:hunter2@host:1", "user:hunter2@host:1", "user:hunter2@ho st"):
        with pytest.raises(ValueError, match="endpoint") as caught:
            parse_rendezvous_endpoint(text, 7)
        assert "hunter2" not in str(caught.value)


def test_the_parser_is_found_where_torch_has_it():
    assert rdzv.utils.parse_rendezvous_endpoint is parse_rendezvous_endpoint
    assert rdzv.parse_rendezvous_endpoint is parse_rendezvous_endpoint


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3"])
def test_loopback_is_this_machine(host):
    assert matches_machine(host)


def test_every_address_of_this_machine_matches_it():
    for info in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_DGRAM):
        assert matches_machine(str(info[4][0]))


@pytest.mark.parametrize(
    "host",
    [
        "203.0.113.77",  # a documentation address: nobody's
        "no-such-host.invalid",
        "a" * 70,  # longer than a label may be
        "224.0.0.1",
        "255.255.255.255",
        "",
    ],
)
def test_a_foreign_unresolvable_or_group_address_is_not_this_machine(host, monkeypatch):
    if not host or not host[0].isdigit():
        monkeypatch.setattr(socket, "getaddrinfo", unresolvable)
    assert not matches_machine(host)


def test_an_alias_of_this_machine_matches_it(monkeypatch):
    resolve_to(monkeypatch, {"alias.example": ["203.0.113.5", "127.0.0.1"]})
    assert matches_machine("alias.example")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
    ],
)
def test_a_run_on_loopback_gets_a_loopback_address(host, address):
    assert default_address(host) == address


def test_towards_another_machine_the_address_of_the_route_there_is_chosen(monkeypatch):
    route(monkeypatch, {"203.0.113.9": "198.51.100.7"})
    assert default_address("203.0.113.9") == "198.51.100.7"


def test_a_name_that_this_machine_resolves_to_loopback_is_given_to_the_others_as_it_is(monkeypatch):
    resolve_to(monkeypatch, {"node0": ["127.0.1.1"]})
    assert default_address("node0") == "node0"


def test_without_an_endpoint_the_full_name_is_chosen_if_others_can_use_it(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "node0.example")
    resolve_to(monkeypatch, {"node0.example": ["198.51.100.7"]})
    assert default_address() == "node0.example"
    assert default_address("no-such-host.invalid") == "node0.example"


def test_a_full_name_that_is_loopback_gives_way_to_the_address_towards_the_world(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "node0.example")
    resolve_to(monkeypatch, {"node0.example": ["127.0.1.1"]})
    route(monkeypatch, {"192.0.2.1": "198.51.100.7"})
    assert default_address() == "198.51.100.7"


def test_a_machine_without_a_network_gets_what_works_on_it(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "node0.example")
    route(monkeypatch, {})
    monkeypatch.setattr(socket, "getaddrinfo", unresolvable)
    assert default_address() in ("127.0.0.1", "::1")
    resolve_to(monkeypatch, {"node0.example": ["127.0.1.1"]})
    assert default_address() == "node0.example"


def test_a_held_port_is_nobody_elses_until_it_is_let_go():
    with hold_port() as held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("", port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    with socket.create_server(("", port)):
        pass


def test_a_free_port_can_be_listened_on():
    with socket.create_server(("", free_port())):
        pass


@pytest.mark.parametrize(
    "key", ["password", "redis_password", "ssl-key", "API.TOKEN", "apikey", "auth", "credentials"]
)
def test_names_of_secrets_are_recognised(key):
    assert names_secret(key)


@pytest.mark.parametrize(
    "key", ["keep_alive_interval", "monkey", "passenger", "author", "keyspace", "tokenizer"]
)
def test_names_that_only_contain_such_a_word_are_no_secrets(key):
    assert not names_secret(key)


words = st.text("abcXYZ019!#$%*()/:@,;", min_size=1, max_size=10)


@given(password=words, user=st.text("abc", max_size=3), scheme=st.sampled_from(["redis://", ""]))
def test_no_password_of_a_url_is_left_in_a_text(password, user, scheme):
    secret = f"<<{password}>>"
    text = redact(f"cannot reach {scheme}{user}:{secret}@host:6379/0 (refused)")
    assert secret not in text
    assert text.endswith("@host:6379/0 (refused)")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://u:p@a:1,redis://u:p@b:1", "redis://***@a:1,redis://***@b:1"),
        ("http://host/?password=p&db=1", "http://host/?password=***&db=1"),
        ("no secrets: host:1, mail me@example", "no secrets: host:1, mail me@example"),
        ("keep_alive_interval=5", "keep_alive_interval=5"),
    ],
)
def test_secrets_are_hidden_and_the_rest_is_kept(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "login",
    ["me:s3cr3t://,s3cr3t", "me:s3cr3t,x://s3cr3t", "@s3cr3t:s3cr3t@s3cr3t", "s3cr3t,s3cr3t"],
)
def test_a_login_that_looks_like_several_urls_is_hidden(login):
    assert redact(f"at http://{login}@host:1, see above") == "at http://***@host:1, see above"
    assert redact_endpoint(f"http://{login}@host:1") == "http://***@host:1"


@pytest.mark.parametrize("part", ["a", "a://", ",x://", "a:", ",a:"])
@pytest.mark.parametrize("end", [" @", "@"])
def test_a_long_text_takes_no_time_that_grows_with_its_square(part, end):
    # Where it does, a million characters take half an hour.
    assert redact(f"{part * (10**6 // len(part))}{end}").endswith(end)


@given(st.sampled_from(["http://", ""]), st.text(), st.text(), st.text("abc@/:, "))
def test_no_password_of_an_endpoint_is_left(scheme, user, rest, place):
    assert "s3cr3t" not in redact_endpoint(f"{scheme}{user}:s3cr3t{rest}@{place}")


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://u:p@a:1,https://u:p@b:1", "http://***@a:1,https://***@b:1"),
        ("http://a:1,http://u:p@b:1", "http://***@b:1"),
        (" http://u\r:p@a ", "http://***@a"),
        ("me/you:p@a:1", "***@a:1"),
        ("http://u:p@a/?password=x&db=1", "http://***@a/?password=***&db=1"),
        ("a:1,b", "a:1,b"),
    ],
)
def test_of_an_endpoint_all_but_its_logins_is_shown(endpoint, shown):
    assert redact_endpoint(endpoint) == shown


def unresolvable(*_args, **_kwargs):
    raise socket.gaierror("not found")


def resolve_to(monkeypatch, table):
    def getaddrinfo(host, port, **_kwargs):
        if host not in table:
            unresolvable()
        kind = socket.SOCK_DGRAM
        return [(socket.AF_INET, kind, 0, "", (address, port or 0)) for address in table[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def route(monkeypatch, table):
    """Let the system's routes be those of a table from destination to source."""
    monkeypatch.setattr(endpoint, "_source_address", lambda _family, address: table.get(address[0]))


def test_a_password_is_hidden_where_the_scheme_was_left_out():
    assert "secret" not in redact("cannot reach //user:secret@host:3, see above")
    assert redact("https://host/a//b") == "https://host/a//b"


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("node0:2379", "node0"),
        (" node0 ", "node0"),
        ("a:1,b:2", "a"),
        ("[::1]:2379,b", "::1"),
        ("https://a:1,https://b:2", "a"),
        ("redis://user:pass@word@a:1,b/0?ttl=5", "a"),
        ("redis+sentinel://a,b/service", "a"),
        ("unix:///run/redis.sock", None),
        ("/shared/file", None),
        ("", None),
        ("a b", None),
    ],
)
def test_the_host_of_an_endpoint_is_its_first(endpoint, host):
    assert host_of(endpoint) == host
