"""That the tests run against the installed wheels, where they are meant to."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    "RDZV_TEST_WHEELS" not in os.environ, reason="not run by nox: nothing needs to be installed"
)

DISTRIBUTIONS = [
    ("rdzv", "rdzv"),
    ("rdzv-c10d", "rdzv_c10d"),
    ("rdzv-observers", "rdzv_observers"),
]


@pytest.mark.parametrize(("distribution", "module"), DISTRIBUTIONS)
def test_what_is_imported_is_the_installed_wheel(distribution, module):
    imported = importlib.import_module(module)
    site = Path(sysconfig.get_path("purelib"))
    assert Path(imported.__file__ or "").is_relative_to(site)
    assert importlib.metadata.version(distribution) == imported.__version__


@pytest.mark.parametrize(("distribution", "module"), DISTRIBUTIONS)
def test_a_wheel_brings_its_license_and_the_marker_of_a_typed_package(distribution, module):
    files = {str(path) for path in importlib.metadata.files(distribution) or ()}
    assert f"{module}/py.typed" in files
    assert any(path.endswith("licenses/LICENSE") for path in files)
    assert not any(path.startswith(("tests/", "src/")) for path in files)


def test_torchs_launcher_finds_the_bridge():
    (entry,) = importlib.metadata.entry_points(group="torchrun.handlers", name="rdzv")
    assert entry.value == "rdzv.torchrun:register"
