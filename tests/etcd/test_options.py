"""Where etcd is and how to log in: every form of endpoint, every place of a secret, every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv import RendezvousParameters
from rdzv_etcd.backend import EtcdRendezvousBackend
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.options import Options, read_options


def options(endpoint: str = "", environ: dict[str, str] | None = None, **settings) -> Options:
    params = RendezvousParameters("etcd", endpoint, "run", 1, 1, **settings)
    return read_options(params, environ or {})


# ---------------------------------------------------------------- endpoints


@pytest.mark.parametrize(
    ("endpoint", "endpoints"),
    [
        ("", ("localhost:2379",)),
        ("node0", ("node0:2379",)),
        ("node0:7000", ("node0:7000",)),
        ("10.0.0.1", ("10.0.0.1:2379",)),
        ("::1", ("[::1]:2379",)),
        ("[fe80::1]:7000", ("[fe80::1]:7000",)),
        ("a:2379,b:2380, c", ("a:2379", "b:2380", "c:2379")),
        ("http://node0", ("node0:2379",)),
        ("http://node0:7000/", ("node0:7000",)),
        ("HTTP://[::1]:7000", ("[::1]:7000",)),
        ("http://a:1,b:2", ("a:1", "b:2")),
        ("http://a:1,http://b:2/", ("a:1", "b:2")),
        ("me:pw@a:1,b:2", ("a:1", "b:2")),
    ],
)
def test_every_form_of_endpoint_names_its_members(endpoint, endpoints):
    login = {"RDZV_ETCD_PASSWORD": "pw", "RDZV_ETCD_USERNAME": "me"} if "@" in endpoint else {}
    read = options(endpoint, login)
    assert (read.endpoints, read.tls) == (endpoints, False)
    # As the client takes them.
    assert EtcdClient(read.endpoints).where == ", ".join(endpoints)


@pytest.mark.parametrize(
    ("endpoint", "settings", "tls"),
    [
        ("https://a,b", {}, True),
        ("https://a,https://b", {}, True),
        ("a", {"protocol": "https"}, True),
        ("a", {"protocol": "HTTP "}, False),
        ("http://a", {"protocol": "http"}, False),
    ],
)
def test_tls_is_said_by_the_endpoint_or_the_protocol(endpoint, settings, tls):
    assert options(endpoint, **settings).tls is tls


@pytest.mark.parametrize("name", ["ca_cert", "ssl_cert"])
def test_a_file_for_tls_switches_it_on(tmp_path, name):
    (tmp_path / "file").touch()
    given = {name: str(tmp_path / "file")}
    read = options("a", None, **given)
    assert read.tls
    assert getattr(read, name) == str(tmp_path / "file")


def test_what_is_not_said_has_its_default():
    read = options("a")
    assert (read.prefix, read.ttl, read.lease_ttl) == ("/rdzv", 7200.0, None)
    assert (read.connect_timeout, read.read_timeout) == (5.0, 5.0)


def test_what_is_said_is_taken():
    read = options("a", prefix="/jobs/", ttl="60", lease_ttl="3", connect_timeout=1, read_timeout=2)
    assert (read.prefix, read.ttl, read.lease_ttl) == ("/jobs", 60.0, 3)
    assert (read.connect_timeout, read.read_timeout) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("endpoint", "settings", "why"),
    [
        ("redis://a", {}, "neither http:// nor https://"),
        ("etcd://a", {}, "neither http:// nor https://"),
        ("http://a,https://b", {}, "http:// and https://"),
        ("http://a/path", {}, "what follows the port means nothing here"),
        ("http://a?timeout=3", {}, "what follows the port means nothing here"),
        ("a,,b", {}, "nothing between two commas"),
        ("http://a,", {}, "nothing between two commas"),
        ("a:0", {}, "port 0"),
        ("a:70000", {}, "70000"),
        ("fe80::1:2379", {}, "fe80::1:2379"),
        ("http://u:p@a,http://v:q@b", {}, "two logins"),
        ("https://a", {"protocol": "http"}, "https://, and protocol is 'http'"),
        ("a", {"protocol": "ftp"}, "must be 'http' or 'https'"),
        ("a", {"ca_cert": "/nowhere"}, "no such file on this node"),
        ("a", {"ssl_cert": "/nowhere"}, "no such file on this node"),
        ("a", {"username": "me"}, "RDZV_ETCD_PASSWORD"),
        ("a", {"password": "pw"}, "RDZV_ETCD_USERNAME"),
        ("http://u:p@a", {"password": "q"}, "A password is given in the endpoint's URL and"),
        ("http://u:p@a", {"username": "v"}, "user name is in the endpoint's URL and given"),
        ("a", {"username": "me", "password_file": "/nowhere"}, "cannot be read"),
        ("a", {"prefix": "/"}, "be a path like /rdzv"),
        ("a", {"prefix": "a b"}, "must have no blanks"),
        ("a", {"ttl": 0}, "ttl is 0 s; it must be positive"),
        ("a", {"read_timeout": -1}, "'read_timeout' of the backend 'etcd' is -1"),
        ("a", {"connect_timeout": 0}, "connect_timeout is 0 s"),
        ("a", {"lease_ttl": 1}, "no leases of less than 2 s"),
        ("a", {"lease_ttl": "2.5"}, "lease_ttl"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(endpoint, settings, why):
    with pytest.raises(ValueError, match="(?s).") as caught:
        options(endpoint, **settings)
    assert why in str(caught.value)


@pytest.mark.parametrize("endpoint", ["http://a", "a"])
def test_files_for_tls_are_no_use_without_it(tmp_path, endpoint):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="use https"):
        options(endpoint, protocol="http", ca_cert=str(tmp_path / "file"))


def test_a_key_needs_its_certificate(tmp_path):
    (tmp_path / "key").touch()
    with pytest.raises(ValueError, match="without ssl_cert"):
        options("a", ssl_cert_key=str(tmp_path / "key"))


# ---------------------------------------------------------------- secrets

SECRET = "p@ss:w/o, rd"


def test_a_password_comes_from_the_url_a_setting_a_file_or_the_environment(tmp_path):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\nsomething else\n")
    environ = {"RDZV_ETCD_USERNAME": "me", "RDZV_ETCD_PASSWORD": SECRET}
    for read in (
        options("http://me:p%40ss:w%2Fo%2C%20rd@a"),
        options("http://me:p@ss:w/o%2C%20rd@a,b"),
        options("a", username="me", password=SECRET),
        options("a", username="me", password_file=str(file)),
        options("a", environ),
        options("a", {**environ, "RDZV_ETCD_USERNAME": "all"}, username="me"),
    ):
        assert (read.login.username, read.login.password) == ("me", SECRET)
        assert SECRET not in repr(read)


def test_one_login_may_stand_before_each_member():
    assert options("http://me:pw@a,http://me:pw@b").login.password == "pw"


def test_what_is_given_for_the_job_counts_before_the_environment():
    environ = {"RDZV_ETCD_USERNAME": "all", "RDZV_ETCD_PASSWORD": "theirs"}
    read = options("http://me:mine@a", environ)
    assert (read.login.username, read.login.password) == ("me", "mine")


def test_an_empty_file_is_no_password(tmp_path):
    (tmp_path / "secret").write_text("\nsecond\n")
    with pytest.raises(ValueError, match="first line is empty"):
        options("a", username="me", password_file=str(tmp_path / "secret"))


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("http://me:first,second@node0:2379", "%2C"),
        ("http://me:first://,second@node0", "cannot be used"),
        ("http://me:1,second://x@node0", "cannot be used"),
        ("http://\r@\x1b:second@node0:\r@\x1b", "cannot be used"),
    ],
)
def test_a_password_that_makes_the_endpoint_unreadable_is_not_shown(endpoint, why):
    with pytest.raises(ValueError, match=why) as caught:
        options(endpoint)
    assert "first" not in str(caught.value)
    assert "second" not in str(caught.value)


HIDDEN = "s3cr3t"


@given(
    st.text(max_size=60).map(lambda t: f"http://me:{HIDDEN}@{t}")
    | st.text(max_size=30).map(lambda t: f"http://{t}:{HIDDEN}@node0:{t}")
    | st.text(alphabet=",:@/x", max_size=9).map(lambda t: f"http://me:{HIDDEN}{t}{HIDDEN}@node0")
)
def test_no_error_shows_the_password(endpoint):
    try:
        options(endpoint)
    except ValueError as exc:
        assert HIDDEN not in str(exc)


@given(st.text(max_size=80) | st.from_regex(r"https?://[\w.:@/?&=,\[\]%#]*", fullmatch=True))
def test_any_text_is_an_endpoint_or_a_value_error(endpoint):
    try:
        read = options(endpoint, {"RDZV_ETCD_USERNAME": "me", "RDZV_ETCD_PASSWORD": "pw"})
    except ValueError:
        return
    assert read.endpoints
    EtcdClient(read.endpoints).close()


# ---------------------------------------------------------------- the backend's own arguments


def backend(run_id: str = "run", prefix: str | None = None, ttl: float | None = None, **more):
    return EtcdRendezvousBackend(EtcdClient("localhost:1"), run_id, prefix, ttl, **more)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"run_id": ""}, "run id must be a non-empty"),
        ({"prefix": ""}, "be a path like /rdzv"),
        ({"prefix": "//"}, "be a path like /rdzv"),
        ({"ttl": 0}, "must be positive"),
        ({"ttl": -1.0}, "must be positive"),
        ({"ttl": float("nan")}, "must be positive"),
        ({"lease_ttl": 1}, "no leases of less than 2 s"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(arguments, why):
    with pytest.raises(ValueError, match="(?s).") as caught:
        backend(**arguments)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("interval", "attempts", "lease_ttl"), [(1.0, 5, 5), (0.5, 4, 2), (0.7, 3, 3), (0.1, 21, 3)]
)
def test_a_lease_lives_as_long_as_a_node_may_be_silent(interval, attempts, lease_ttl):
    made = backend()
    made.set_liveness(interval, attempts)
    session = made.open_session()
    assert session._lease_ttl == lease_ttl


@pytest.mark.parametrize(("interval", "attempts"), [(0.5, 3), (0.99, 2)])
def test_a_silence_shorter_than_any_lease_is_refused_with_what_to_do(interval, attempts):
    with pytest.raises(ValueError, match=r"keep_alive_interval x keep_alive_max_attempt.*2 s") as e:
        backend().set_liveness(interval, attempts)
    assert "Raise" in str(e.value)


def test_a_lease_of_ones_own_must_bear_a_late_beat():
    made = backend(lease_ttl=3)
    made.set_liveness(1.5, 2)
    with pytest.raises(ValueError, match=r"keep_alive_interval.*lease_ttl.*at least 4") as caught:
        made.set_liveness(1.6, 2)
    assert "Raise" in str(caught.value)
