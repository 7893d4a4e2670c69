"""The conformance kit: subclass :class:`BackendContract`, say where the backend is, run pytest.

::

    import pytest
    from rdzv.testing.contract import BackendContract, Deployment


    class TestCupboard(BackendContract):
        @pytest.fixture
        def deployment(self):
            return Deployment("cupboard", "127.0.0.1:7000")
"""

from __future__ import annotations

from .base import BrokenPromiseError, Promise
from .capabilities import CapabilityContract, WatchContract
from .deployment import Deployment, NotCheckedError, NotOfferedError
from .roster import RosterContract
from .rounds import RoundsContract
from .runs import RunsContract
from .state import StateContract
from .trouble import TroubleContract

__all__ = [
    "BackendContract",
    "BrokenPromiseError",
    "Deployment",
    "NotCheckedError",
    "NotOfferedError",
    "Promise",
]


class BackendContract(
    StateContract,
    CapabilityContract,
    WatchContract,
    RosterContract,
    RoundsContract,
    TroubleContract,
    RunsContract,
):
    """All that rdzv relies on in a backend, a test a promise.

    A subclass defines the fixture ``deployment``. A contract test that it overrides
    fails, unless the override is marked ``xfail`` with a reason.
    """
