"""The public interface: parameters, registry, the bootstrap address."""

from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv.api import (
    RendezvousHandler,
    RendezvousHandlerRegistry,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from rdzv.errors import RendezvousStateError


def make(**config) -> RendezvousParameters:
    return RendezvousParameters("b", "host:1", "run", 1, 2, **config)


class Handler(RendezvousHandler):
    """A handler that does nothing."""

    def __init__(self, backend: str = "mine") -> None:
        self.backend = backend

    def get_backend(self) -> str:
        return self.backend

    def next_rendezvous(self) -> RendezvousInfo:
        raise NotImplementedError

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "run"

    def shutdown(self) -> bool:
        return True


class DictStore:
    """As much of a store as the bootstrap address needs."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def set(self, key, value):
        assert isinstance(value, bytes)
        self.content[key] = value

    def get(self, key):
        return self.content[key]


def test_parameters_hold_what_they_were_given():
    params = RendezvousParameters("b", "host:1", "run", 1, 2, "10.0.0.1", colour="red")
    assert (params.backend, params.endpoint, params.run_id) == ("b", "host:1", "run")
    assert (params.min_nodes, params.max_nodes, params.local_addr) == (1, 2, "10.0.0.1")
    assert params.config == {"colour": "red"}
    assert params.get("colour") == "red"
    assert params.get("size") is None
    assert params.get("size", 4) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": ""}, "backend must be given as a non-empty name"),
        ({"backend": None}, "backend must be given as a non-empty name"),
        ({"endpoint": 29400}, "'endpoint' must be a string, not 29400"),
        ({"run_id": 7}, "must be a string, not 7"),
        ({"local_addr": 7}, "'local_addr' must be a string"),
        ({"min_nodes": 0}, "'min_nodes' must be a whole number of at least 1, not 0"),
        ({"min_nodes": -1}, "'min_nodes' must be"),
        ({"min_nodes": "2"}, "'min_nodes' must be a whole number of at least 1, not '2'"),
        ({"min_nodes": 1.0}, "'min_nodes' must be"),
        ({"min_nodes": True}, "'min_nodes' must be"),
        ({"max_nodes": None}, "'max_nodes' must be"),
        ({"min_nodes": 3}, r"maximum number of nodes \(2\) is below the minimum \(3\)"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_name_and_value(change, message):
    good = {"backend": "b", "endpoint": "", "run_id": "run", "min_nodes": 1, "max_nodes": 2}
    with pytest.raises(ValueError, match=message):
        RendezvousParameters(**{**good, **change})


@pytest.mark.parametrize("value", ["1", "True", "tRue", "T", "t", "yEs", "Y", " y ", 1, True])
def test_what_means_true_is_true(value):
    assert make(key=value).get_as_bool("key") is True


@pytest.mark.parametrize("value", ["0", "False", "faLse", "F", "f", "nO", "N", 0, False])
def test_what_means_false_is_false(value):
    assert make(key=value).get_as_bool("key", True) is False


@pytest.mark.parametrize("value", ["01", "Flse", "on", "", 2, -1, 1.0, object()])
def test_anything_else_is_no_truth_value(value):
    with pytest.raises(ValueError, match="setting 'key' of the backend 'b' is .*true or false"):
        make(key=value).get_as_bool("key")


@pytest.mark.parametrize(
    ("value", "number"), [("0", 0), ("-10", -10), (" 5 ", 5), (7, 7), (3.0, 3), (Fraction(4), 4)]
)
def test_whole_numbers_are_read(value, number):
    assert make(key=value).get_as_int("key") == number


@pytest.mark.parametrize("value", ["a", "0a", "3.0", "", 2.5, True, math.inf, math.nan, [1]])
def test_anything_else_is_no_whole_number(value):
    with pytest.raises(ValueError, match="setting 'key' of the backend 'b' is .*a whole number"):
        make(key=value).get_as_int("key")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_number_is_read_as_such_and_as_text(number):
    assert make(key=number).get_as_float("key") == number
    assert make(key=repr(number)).get_as_float("key") == number


@pytest.mark.parametrize("value", ["fast", "", "nan", math.nan, "inf", "1e999", True, [1.0]])
def test_anything_else_is_no_number(value):
    with pytest.raises(ValueError, match="setting 'key' of the backend 'b' is .*a number"):
        make(key=value).get_as_float("key")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("30", 30.0), (0.5, 0.5), ("0.25", 0.25), (0, 0.0), (timedelta(milliseconds=1500), 1.5)],
)
def test_times_are_read_in_seconds_with_fractions(value, seconds):
    assert make(key=value).get_as_seconds("key") == seconds


@pytest.mark.parametrize("value", ["30s", "0:30", -1, "-0.5", True, "inf", "nan", timedelta(-1)])
def test_a_time_with_a_unit_or_below_zero_is_refused_with_what_to_write(value):
    with pytest.raises(
        ValueError, match="'key' .*write a number without a unit, zero or more, such as 30"
    ):
        make(key=value).get_as_seconds("key")


def test_absent_settings_give_the_default_and_none_counts_as_absent_for_numbers():
    params = make(none=None)
    assert params.get_as_bool("key") is None
    assert params.get_as_bool("key", True) is True
    assert params.get_as_int("key", 3) == 3
    assert params.get_as_int("none", 3) is None  # as in torch
    assert params.get_as_float("none", 0.5) == 0.5
    assert params.get_as_seconds("none", 0.5) == 0.5
    assert params.get_as_seconds("key") is None


def test_a_login_with_a_blank_in_it_is_not_shown_either():
    params = RendezvousParameters("etcd", "http://x@ y@z:s3cr3t@node0", "run", 1, 1)
    assert "endpoint='http://***@node0'" in repr(params)


def test_secrets_are_in_no_repr_and_in_no_error():
    params = RendezvousParameters(
        "redis", "redis://me:hunter2@host:1", "run", 1, 2, redis_password="hunter2", depth=3
    )
    shown = repr(params)
    assert "hunter2" not in shown
    assert "redis_password='***'" in shown
    assert "depth=3" in shown
    assert "run_id='run'" in shown
    with pytest.raises(ValueError, match="redis_password") as caught:
        params.get_as_int("redis_password")
    assert "hunter2" not in str(caught.value)


def test_a_registered_creator_makes_the_handler():
    registry = RendezvousHandlerRegistry()
    registry.register("mine", lambda params: Handler(params.backend))
    params = RendezvousParameters("mine", "", "run", 1, 1)
    assert registry.create_handler(params).get_backend() == "mine"


def test_registering_the_same_creator_again_does_nothing_and_another_is_refused():
    registry = RendezvousHandlerRegistry()

    def creator(params):
        return Handler()

    registry.register("mine", creator)
    registry.register("mine", creator)
    with pytest.raises(ValueError, match="'mine' is registered with .* already"):
        registry.register("mine", lambda params: Handler())
    with pytest.raises(ValueError, match="must not be empty"):
        registry.register("", creator)


def test_a_registry_of_ones_own_knows_only_what_was_registered_there():
    registry = RendezvousHandlerRegistry()
    registry.register("mine", lambda params: Handler())
    with pytest.raises(ValueError, match=r"'c10d' is not registered \(registered: mine\)"):
        registry.create_handler(RendezvousParameters("c10d", "", "run", 1, 1))


def test_a_handler_that_calls_itself_otherwise_is_refused():
    registry = RendezvousHandlerRegistry()
    registry.register("mine", lambda params: Handler("other"))
    with pytest.raises(RuntimeError, match="'mine' calls itself 'other'"):
        registry.create_handler(RendezvousParameters("mine", "", "run", 1, 1))


def test_a_handler_shares_no_store_unless_it_says_so():
    assert Handler().use_agent_store is False


@pytest.mark.parametrize("address", ["10.1.2.3", "fe80::1", "node0.example"])
def test_the_bootstrap_address_is_rank_0s_as_it_was_given(address):
    store = DictStore()
    first = RendezvousStoreInfo.build(0, store, address, server_port=29500)  # type: ignore[arg-type]
    second = RendezvousStoreInfo.build(1, store, "10.9.9.9")  # type: ignore[arg-type]
    assert first == second == RendezvousStoreInfo(address, 29500)
    assert store.content == {"MASTER_ADDR": address.encode(), "MASTER_PORT": b"29500"}


def test_rank_0_finds_an_address_and_a_port_where_none_are_given():
    info = RendezvousStoreInfo.build(0, DictStore(), None)  # type: ignore[arg-type]
    assert info.master_addr
    assert 0 < info.master_port < 65536
    assert info.master_addr not in ("0.0.0.0", "::")


@pytest.mark.parametrize("port", [b"", b"many", b"\xff"])
def test_a_store_with_something_else_in_it_is_reported_as_such(port):
    store = DictStore()
    store.content = {"MASTER_ADDR": b"host", "MASTER_PORT": port}
    with pytest.raises(RendezvousStateError, match="MASTER_PORT"):
        RendezvousStoreInfo.build(1, store, None)  # type: ignore[arg-type]


def test_the_place_in_a_round_is_read_from_its_properties():
    bootstrap = RendezvousStoreInfo("host", 1)
    info = RendezvousInfo("store", 1, 3, bootstrap)  # type: ignore[arg-type]
    assert info.store == "store"  # type: ignore[comparison-overlap]
    assert (info.rank, info.world_size) == (1, 3)
    assert info.bootstrap_store_info is bootstrap
    assert "rank=1, world_size=3" in repr(info)
