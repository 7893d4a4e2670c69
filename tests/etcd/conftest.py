"""Fixtures of etcd's tests: the programs of both kinds, and files for TLS."""

from __future__ import annotations

import pytest

from ..local_servers import Certificates
from .servers import KINDS, program


@pytest.fixture(params=KINDS)
def binary(request) -> str:
    """The program of each kind."""
    return program(request.param)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tls"))
