"""The contract on a deployment that is handed to pytest by a program; see ``rdzv.cli``."""

from __future__ import annotations

import pytest

from rdzv.testing.contract import BackendContract, Deployment

__all__ = ["DEPLOYMENT"]

DEPLOYMENT = pytest.StashKey[Deployment]()


class TestLive(BackendContract):
    """The backend that the program chose."""

    @pytest.fixture
    def deployment(self, request: pytest.FixtureRequest) -> Deployment:
        """What the program put into the configuration."""
        return request.config.stash[DEPLOYMENT]
