"""What rdzv-c10d tells the core."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rdzv_c10d
from rdzv.api import RendezvousParameters
from rdzv.registry import check_parameters
from rdzv.specs import BackendSpec, HandlerSpec
from rdzv_c10d import plugin


def make(backend: str, **config) -> RendezvousParameters:
    return RendezvousParameters(backend, "host:1", "run", 2, 2, **config)


def backend() -> BackendSpec:
    spec = plugin.rdzv_backend("c10d")
    assert spec is not None
    return spec


def handler() -> HandlerSpec:
    spec = plugin.rdzv_handler("static")
    assert spec is not None
    return spec


def test_it_offers_a_backend_and_a_handler_under_their_names_alone():
    assert backend().name == "c10d"
    assert handler().name == "static"
    for name in ("static", "tcp", ""):
        assert plugin.rdzv_backend(name) is None
    for name in ("c10d", "tcp", ""):
        assert plugin.rdzv_handler(name) is None


def test_describing_it_does_not_import_torch():
    code = """
import sys
from rdzv_c10d import plugin
assert plugin.rdzv_backend("c10d").create
assert plugin.rdzv_handler("static").create
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_settings_that_torch_has_for_c10d_are_accepted():
    settings = {"store_type": "file", "read_timeout": "1.5", "is_host": "yes", "timeout": 900}
    check_parameters(backend(), make("c10d", **settings, join_timeout=1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"store_type": "hash"}, "it must be one of tcp, file"),
        ({"read_timeout": "60s"}, "write a number without a unit"),
        ({"is_host": "perhaps"}, "write true or false"),
        ({"ishost": True}, "Did you mean 'is_host'"),
    ],
)
def test_wrong_settings_of_c10d_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(backend(), make("c10d", **config))


def test_static_knows_its_two_settings_only():
    check_parameters(handler(), make("static", rank="1", timeout=3))
    with pytest.raises(ValueError, match="has no setting 'join_timeout'"):
        check_parameters(handler(), make("static", rank=1, join_timeout=3))


def test_the_public_names_are_those_of_torchs_module():
    assert set(rdzv_c10d.__all__) == {"C10dRendezvousBackend", "__version__", "create_backend"}
    for name in rdzv_c10d.__all__:
        assert getattr(rdzv_c10d, name)
        assert name in dir(rdzv_c10d)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rdzv_c10d.nonsense  # noqa: B018
