"""What ``import rdzv`` gives, and what it costs."""

from __future__ import annotations

import importlib
import importlib.resources
import json
import subprocess
import sys

import pytest

import rdzv

# What a program can import from torch's package of this purpose.
TORCH = [
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousHandlerCreator",
    "RendezvousHandlerRegistry",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeoutError",
    "rendezvous_handler_registry",
]
TORCH_BELOW = {
    "api": TORCH,
    "registry": ["get_rendezvous_handler"],
    "utils": ["parse_rendezvous_endpoint"],
    "dynamic_rendezvous": [
        "DynamicRendezvousHandler",
        "RendezvousBackend",
        "RendezvousSettings",
        "RendezvousTimeout",
        "Token",
        "create_handler",
    ],
}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def modules_after(statement: str) -> set[str]:
    """Return the modules that a statement imports beyond those of a bare interpreter."""
    before = "import sys; before = set(sys.modules)"
    after = "names = [*sys.modules.keys() - before]; import json; print(json.dumps(names))"
    return set(json.loads(run(f"{before}; {statement}; {after}")))


def foreign(modules: set[str]) -> set[str]:
    return {
        name for name in modules if name.partition(".")[0] not in {*sys.stdlib_module_names, "rdzv"}
    }


@pytest.mark.parametrize("name", rdzv.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(rdzv, name) is not None
    assert name in dir(rdzv)


def test_every_name_of_torchs_package_is_here():
    assert set(TORCH) <= set(rdzv.__all__)


@pytest.mark.parametrize("module", TORCH_BELOW)
def test_the_modules_below_have_torchs_names(module):
    ours = importlib.import_module(f"rdzv.{module}")
    for name in TORCH_BELOW[module]:
        assert hasattr(ours, name)


def test_importing_the_package_loads_only_the_standard_library_and_little_of_it():
    loaded = modules_after("import rdzv")
    assert not foreign(loaded)
    assert {name for name in loaded if name.startswith("rdzv")} == {"rdzv"}


def test_the_interface_the_errors_and_the_specs_need_nothing_else_either():
    assert not foreign(modules_after("from rdzv import RendezvousParameters, RendezvousError"))
    assert not foreign(modules_after("from rdzv import BackendSpec, parse_rendezvous_endpoint"))


def test_choosing_and_describing_backends_does_not_import_torch():
    assert "torch" not in modules_after("from rdzv.plugins import installed; installed()")


def test_submodules_are_reached_by_attribute_as_in_torch():
    run("import rdzv; rdzv.registry.get_rendezvous_handler; rdzv.utils.parse_rendezvous_endpoint")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rdzv.nonsense  # noqa: B018


def test_the_package_is_typed():
    assert (importlib.resources.files("rdzv") / "py.typed").is_file()
