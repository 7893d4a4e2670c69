"""The records with which plugins describe themselves."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from rdzv import DynamicRendezvousHandler, RendezvousTimeout
from rdzv.specs import ENGINE_PARAMETERS, BackendSpec, HandlerSpec, Parameter


def create(params):
    raise NotImplementedError


def test_a_spec_cannot_be_changed():
    spec = BackendSpec("b", "a test", create)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "c"  # type: ignore[misc]


def test_an_alias_is_a_copy_with_another_name():
    spec = BackendSpec("etcd", "a test", create, capabilities=frozenset({"watch"}))
    alias = dataclasses.replace(spec, name="etcd-v2")
    assert (alias.name, alias.capabilities) == ("etcd-v2", spec.capabilities)


@pytest.mark.parametrize("name", ["", "a b", "-x", None, "x/y"])
def test_a_backend_needs_a_name_that_can_be_typed(name):
    with pytest.raises(ValueError, match="must consist of letters"):
        BackendSpec(name, "a test", create)


@pytest.mark.parametrize("spec", [BackendSpec, HandlerSpec])
def test_a_spec_that_is_not_as_described_is_refused(spec):
    with pytest.raises(ValueError, match="one line"):
        spec("b", "two\nlines", create)
    with pytest.raises(ValueError, match="cannot be called"):
        spec("b", "a test", None)
    with pytest.raises(ValueError, match="tuple of Parameter"):
        spec("b", "a test", create, [Parameter("x", "int")])
    with pytest.raises(ValueError, match="'x' twice"):
        spec("b", "a test", create, (Parameter("x", "int"), Parameter("y", "int", aliases=("x",))))


def test_a_backend_cannot_redeclare_a_setting_of_the_engine_but_a_handler_has_no_engine():
    mine = (Parameter("join_timeout", "seconds"),)
    with pytest.raises(ValueError, match="the engine has"):
        BackendSpec("b", "a test", create, mine)
    assert HandlerSpec("b", "a test", create, mine).parameters == mine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-name", "int"), "no Python identifier"),
        (("x", "date"), "'date'; it must be one of bool, int, float, str, seconds"),
        (("x", "int", 1.5), "default 1.5 of the parameter 'x' is no 'int'"),
        (("x", "int", True), "default True"),
        (("x", "seconds", -1), "default -1"),
        (("x", "bool", "yes"), "default 'yes'"),
    ],
)
def test_a_parameter_that_is_not_as_described_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parameter(*arguments)


def test_choices_are_for_texts_and_hold_for_the_default():
    with pytest.raises(ValueError, match="no 'str'"):
        Parameter("x", "int", choices=("1",))
    with pytest.raises(ValueError, match="out of a, b"):
        Parameter("x", "str", "c", choices=("a", "b"))


def test_a_secret_default_is_not_shown():
    with pytest.raises(ValueError, match="x") as caught:
        Parameter("x", "int", "hunter2", secret=True)
    assert "hunter2" not in str(caught.value)


def test_a_time_is_in_seconds_without_saying_so():
    assert Parameter("x", "seconds").unit == "s"
    assert Parameter("x", "int", unit="nodes").unit == "nodes"


def test_the_settings_of_the_engine_are_described():
    names = [name for one in ENGINE_PARAMETERS for name in (one.name, *one.aliases)]
    assert len(names) == len(set(names))
    assert "heartbeat" in names
    assert all(one.help for one in ENGINE_PARAMETERS)


def test_the_described_defaults_of_the_engine_are_those_that_it_has():
    described = {one.name: one.default for one in ENGINE_PARAMETERS}
    signature = inspect.signature(DynamicRendezvousHandler.from_backend)
    ranks = ("rank_policy", "labels", "node_number")
    for name in ("keep_alive_interval", "keep_alive_max_attempt", "patience", "admission", *ranks):
        assert described.pop(name) == signature.parameters[name].default
    timeouts = RendezvousTimeout()
    for name, default in described.items():
        assert default == getattr(timeouts, name.removesuffix("_timeout")).total_seconds()
