"""What fuzzing has found, each as small as it can be."""

from __future__ import annotations

from base64 import b64encode
from datetime import timedelta
from typing import Any

import importlib_metadata
import msgspec
import pytest
from torch.distributed import HashStore

from rdzv import (
    RendezvousParameters,
    RendezvousStateError,
    parse_rendezvous_endpoint,
    plugins,
)
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv.errors import BrokenPluginError
from rdzv_c10d import C10dRendezvousBackend
from rdzv_c10d import backend as c10d_backend
from rdzv_c10d.session import StoreSession


def put(store, key: str, value: Any) -> None:
    """Write bytes, which torch takes although its stubs say text."""
    store.set(key, value)


def session(store) -> StoreSession:
    opened = StoreSession(store, "run", "the store", pushes=False)
    opened.attach("epoch")
    return opened


@pytest.mark.parametrize("value", ["9" * 30, "-" + "9" * 30, "abc", "--5"])
def test_a_counter_that_is_none_is_a_state_error(value):
    store = HashStore()
    store.set("rdzv/run/epoch/tickets", value)
    with pytest.raises(RendezvousStateError, match="no counter"):
        session(store).records(0)


@pytest.mark.parametrize("value", ["--5", "-", "9" * 30, "\u0663", "", "0x10"])
def test_a_beat_among_many_that_is_no_counter_is_a_state_error(value):
    store = HashStore()
    opened = session(store)
    opened.beats([1, 10, 20])
    store.set("rdzv/run/epoch/beat/1", value)
    with pytest.raises(RendezvousStateError, match="no counter"):
        opened.beats([1, 10, 20])


@pytest.mark.parametrize("value", ["1e10", 1e300, timedelta.max, 10**400])
def test_a_time_beyond_all_clocks_is_refused_by_the_setting_s_name(value):
    params = RendezvousParameters("c10d", "", "run", 1, 1, join_timeout=value)
    with pytest.raises(ValueError, match="'join_timeout'.*seconds"):
        params.get_as_seconds("join_timeout")


def test_years_are_a_time():
    params = RendezvousParameters("c10d", "", "run", 1, 1, join_timeout="1e8")
    assert timedelta(seconds=params.get_as_seconds("join_timeout", 0.0)).days == 1157


@pytest.mark.parametrize("marker", ["python_version ~= 'a'", "'1' ~= 'x'", "os_name > 'a'"])
def test_a_requirement_whose_marker_cannot_be_evaluated_breaks_no_choice(fake_metadata, marker):
    fake_metadata(f"Name: dist\nRequires-Dist: rdzv>=0; {marker}\n")
    with pytest.raises(BrokenPluginError, match="cannot be imported"):
        plugins.load("name")


@pytest.fixture
def fake_metadata(monkeypatch):
    class Fake(importlib_metadata.Distribution):
        def __init__(self, text: str) -> None:
            self.text = text

        def read_text(self, filename):
            entries = "[rdzv.backends]\nname = fuzz_no_such_module\n"
            return {"METADATA": self.text, "entry_points.txt": entries}.get(str(filename))

        def locate_file(self, path):
            raise FileNotFoundError(path)

    def put(text: str) -> None:
        monkeypatch.setattr(importlib_metadata, "distributions", lambda: iter([Fake(text)]))

    return put


def test_a_state_of_a_store_that_is_too_large_is_refused_before_it_is_parsed(monkeypatch):
    store = HashStore()
    backend = C10dRendezvousBackend(store, "run")
    mark = b"0123456789abcdef:"
    fits = b64encode(b"x" * MAX_STATE_BYTES)
    put(store, "rdzv/run/state/1", mark + fits)
    store.set("rdzv/run/state/hint", "1")
    assert backend.get_state() == (b"x" * MAX_STATE_BYTES, 1)
    put(store, "rdzv/run/state/1", mark + b64encode(b"x" * (MAX_STATE_BYTES + 3)))
    monkeypatch.setattr(c10d_backend, "b64decode", None)
    with pytest.raises(RendezvousStateError, match="bytes"):
        backend.get_state()


def test_a_document_that_is_too_large_is_refused_before_it_is_parsed(monkeypatch):
    store = HashStore()
    put(store, "rdzv/run/document/1", b"\xff" * (2 * MAX_STATE_BYTES))
    store.set("rdzv/run/document/hint", "1")
    monkeypatch.setattr(msgspec.json, "decode", None)
    with pytest.raises(RendezvousStateError, match="2097152 bytes"):
        session(store).read(None)


@pytest.mark.parametrize("text", ["fe80::1%eth0]", "[fe80::1%a'b]:1", "fe80::1%", "fe80::1%\x7f"])
def test_a_zone_that_is_no_name_of_a_network_card_is_refused(text):
    with pytest.raises(ValueError, match="cannot be used"):
        parse_rendezvous_endpoint(text, 1)


def test_a_zone_may_be_that_of_an_alias():
    assert parse_rendezvous_endpoint("[fe80::1%br-a.1:2]:5", 1) == ("fe80::1%br-a.1:2", 5)


def test_a_session_that_moves_to_another_epoch_takes_nothing_along():
    store = HashStore()
    store.set_timeout(timedelta(seconds=2))
    opened = session(store)
    assert opened.beats([1, 10, 20]) == {1: 0, 10: 0, 20: 0}
    for _ in range(100):
        opened.beat(0)
    opened.attach("another")
    assert opened.beats([1, 10, 20]) == {1: 0, 10: 0, 20: 0}
    assert opened.beat(0)[0] == 1
    assert opened.beats([0, 1, 10, 20]) == {0: 1, 1: 0, 10: 0, 20: 0}
