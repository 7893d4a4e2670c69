"""Where the server is and how to log in: every form of endpoint, every place of a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv import RendezvousParameters
from rdzv_redis.options import Options, read_options


def options(endpoint: str = "", environ: dict[str, str] | None = None, **settings) -> Options:
    params = RendezvousParameters("redis", endpoint, "run", 1, 1, **settings)
    return read_options(params, environ or {})


# ---------------------------------------------------------------- endpoints


@pytest.mark.parametrize(
    ("endpoint", "kind", "hosts"),
    [
        ("", "server", (("localhost", 6379),)),
        ("node0", "server", (("node0", 6379),)),
        ("node0:7000", "server", (("node0", 7000),)),
        ("10.0.0.1:7000", "server", (("10.0.0.1", 7000),)),
        ("::1", "server", (("::1", 6379),)),
        ("[fe80::1]:7000", "server", (("fe80::1", 7000),)),
        ("a:1,b:2, c", "server", (("a", 1), ("b", 2), ("c", 6379))),
        ("redis://node0", "server", (("node0", 6379),)),
        ("redis://node0:7000/3", "server", (("node0", 7000),)),
        ("redis://[::1]:7000", "server", (("::1", 7000),)),
        ("REDIS://a:1,b:2", "server", (("a", 1), ("b", 2))),
        ("redis+sentinel://a,b:2/job", "sentinel", (("a", 26379), ("b", 2))),
        ("redis+cluster://a,b:2", "cluster", (("a", 6379), ("b", 2))),
    ],
)
def test_every_form_of_endpoint_names_its_hosts(endpoint, kind, hosts):
    read = options(endpoint)
    assert (read.kind, read.hosts, read.tls) == (kind, hosts, False)


def test_a_socket_is_named_by_its_path():
    read = options("unix:///var/run/a%20b.sock?db=2")
    assert (read.kind, read.path, read.db) == ("unix", "/var/run/a b.sock", 2)


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
def test_a_scheme_with_two_s_switches_tls_on(scheme):
    assert options(f"{scheme}://node0").tls


def test_a_certificate_switches_tls_on(tmp_path):
    (tmp_path / "ca").touch()
    assert options("node0", ca_cert=str(tmp_path / "ca")).tls


def test_the_sentinels_service_and_the_database_stand_in_the_path():
    read = options("redis+sentinel://a/job%2F1/4")
    assert (read.service, read.db) == ("job/1", 4)
    assert read.where == "the master 'job/1' of the sentinels a:26379"


def test_settings_may_stand_in_the_query():
    read = options("redis://node0/?db=3&read_timeout=1.5&prefix=jobs&failover=accept")
    assert (read.db, read.read_timeout, read.prefix, read.accepts_failover) == (
        3,
        1.5,
        "jobs",
        True,
    )


@pytest.mark.parametrize(
    ("endpoint", "settings", "why"),
    [
        ("http://node0", {}, "the scheme is none of redis,"),
        ("redis://node0/x", {}, "'x' is no number of a database"),
        ("redis://node0/1?db=2", {}, "names the database twice"),
        ("redis://node0?db=1&db=2", {}, "gives a setting twice"),
        ("redis://node0?db", {}, "is not name=value"),
        ("redis://node0?retry=1", {}, "no setting 'retry'. Did you mean 'retries'"),
        ("redis://node0?db=x", {}, "'db'"),
        ("redis://node0#db", {}, "'#' and what follows"),
        ("redis://node0?db=1", {"db": 1}, "'db' is in the endpoint's URL and given beside it"),
        ("redis+sentinel://node0", {}, "the name of the master is missing"),
        ("unix://socket", {}, "must begin with '/'"),
        ("a,,b", {}, "nothing between two commas"),
        ("a:0", {}, "port 0"),
        ("a:70000", {}, "70000"),
        ("node0", {"prefix": "a{b}"}, "no braces"),
        ("node0", {"ttl": 0}, "ttl is 0 s; it must be positive"),
        ("node0", {"db": -1}, "db is -1; it must be 0 or more"),
        ("node0", {"ca_cert": "/nowhere"}, "no such file on this node"),
        ("node0", {"ssl_cert_key": "/k"}, "without ssl_cert"),
        ("redis://u:p@node0", {"password": "q"}, "A password is given in the endpoint's URL and"),
        ("redis://u:p@node0", {"username": "v"}, "user name is in the endpoint's URL and given"),
        ("node0", {"password_file": "/nowhere"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(endpoint, settings, why):
    with pytest.raises(ValueError, match="(?s).") as caught:
        options(endpoint, **settings)
    assert why in str(caught.value)


def test_a_socket_has_no_tls(tmp_path):
    (tmp_path / "ca").touch()
    with pytest.raises(ValueError, match="A unix socket has no TLS"):
        options("unix:///s", ca_cert=str(tmp_path / "ca"))


# ---------------------------------------------------------------- secrets

SECRET = "p@ss:w/o rd"


def test_a_password_comes_from_the_url_a_setting_a_file_or_the_environment(tmp_path):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\nsomething else\n")
    environ = {"RDZV_REDIS_USERNAME": "me", "RDZV_REDIS_PASSWORD": SECRET}
    for read in (
        options("redis://me:p%40ss:w/o%20rd@node0"),
        options("redis://me:p@ss:w/o%20rd@node0"),
        options("node0", username="me", password=SECRET),
        options("node0", username="me", password_file=str(file)),
        options("node0", environ),
    ):
        assert (read.login.username, read.login.password) == ("me", SECRET)
        assert SECRET not in repr(read)


def test_what_is_given_for_the_job_counts_before_the_environment():
    environ = {"RDZV_REDIS_USERNAME": "all", "RDZV_REDIS_PASSWORD": "theirs"}
    read = options("redis://me:mine@node0", environ)
    assert (read.login.username, read.login.password) == ("me", "mine")


def test_the_sentinels_have_a_login_of_their_own():
    environ = {"RDZV_REDIS_SENTINEL_PASSWORD": "theirs", "RDZV_REDIS_PASSWORD": "ours"}
    read = options("redis+sentinel://node0/job", environ, sentinel_username="watch")
    assert (read.sentinel_login.username, read.sentinel_login.password) == ("watch", "theirs")
    assert read.login.password == "ours"


def test_an_empty_file_is_no_password(tmp_path):
    (tmp_path / "secret").write_text("\nsecond\n")
    with pytest.raises(ValueError, match="first line is empty"):
        options("node0", password_file=str(tmp_path / "secret"))


@given(
    st.text(max_size=60).map(lambda t: f"redis://me:{SECRET}@{t}")
    | st.text(max_size=30).map(lambda t: f"redis://{t}:{SECRET}@node0:{t}")
)
def test_no_error_shows_the_password(endpoint):
    try:
        options(endpoint)
    except ValueError as exc:
        assert SECRET not in str(exc)


@given(
    st.text(max_size=80) | st.from_regex(r"rediss?(\+\w+)?://[\w.:@/?&=,\[\]%#]*", fullmatch=True)
)
def test_any_text_is_an_endpoint_or_a_value_error(endpoint):
    try:
        read = options(endpoint)
    except ValueError:
        return
    assert read.hosts or read.path
    assert all(0 < port <= 65535 for _, port in read.hosts)
