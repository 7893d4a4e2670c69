"""The errors, and how callers who catch torch's errors catch ours."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from rdzv import errors
from rdzv.errors import (
    BrokenPluginError,
    RendezvousClosedError,
    RendezvousError,
    RendezvousTimeoutError,
    torch_compatible,
)

FAMILY = ["Closed", "Timeout", "Connection", "State", "GracefulExit"]


@pytest.fixture
def theirs():
    return pytest.importorskip("torch.distributed.elastic.rendezvous.api")


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_is_a_rendezvous_error(kind):
    assert issubclass(getattr(errors, f"Rendezvous{kind}Error"), RendezvousError)


def test_plugin_errors_are_value_errors_too_as_in_torch():
    for name in errors.__all__:
        error = getattr(errors, name)
        if "Plugin" in name or "Backend" in name:
            assert issubclass(error, RendezvousError)
            assert issubclass(error, ValueError)


@pytest.mark.parametrize("kind", ["", *FAMILY])
def test_an_error_raised_for_torch_is_caught_by_its_name_and_base_on_both_sides(kind, theirs):
    name = f"Rendezvous{kind}Error"
    ours = getattr(errors, name)
    error = torch_compatible(ours)("gone")
    assert isinstance(error, ours)
    assert isinstance(error, RendezvousError)
    assert isinstance(error, getattr(theirs, name))
    assert isinstance(error, theirs.RendezvousError)
    assert type(error).__name__ == type(error).__qualname__ == name
    assert str(error) == "gone"


def test_an_error_that_torch_does_not_have_takes_the_nearest_one_that_it_has(theirs):
    error = torch_compatible(BrokenPluginError)
    assert issubclass(error, BrokenPluginError)
    assert issubclass(error, theirs.RendezvousError)
    assert issubclass(error, ValueError)


@pytest.mark.usefixtures("theirs")
def test_the_class_is_the_same_at_every_call_and_for_itself():
    first = torch_compatible(RendezvousClosedError)
    assert torch_compatible(RendezvousClosedError) is first
    assert torch_compatible(first) is first


@pytest.mark.usefixtures("theirs")
def test_an_error_raised_for_torch_travels_between_processes():
    error = torch_compatible(RendezvousTimeoutError)("too", "late")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is RendezvousTimeoutError
    assert copy.args == ("too", "late")


def test_without_torch_imported_the_class_is_our_own_and_torch_stays_out():
    code = """
import sys
from rdzv.errors import RendezvousClosedError, torch_compatible
assert torch_compatible(RendezvousClosedError) is RendezvousClosedError
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
