"""The kit on backends that keep every promise, one for each combination of capabilities."""

from __future__ import annotations

import pytest

from rdzv.testing import memory
from rdzv.testing.contract import BackendContract


class TestGetAndSetAlone(BackendContract):
    @pytest.fixture
    def deployment(self):
        return memory.deployment(memory.MemoryBackend)


class TestWatch(BackendContract):
    @pytest.fixture
    def deployment(self):
        return memory.deployment(memory.WatchingMemoryBackend)


class TestRosterAndWatch(BackendContract):
    @pytest.fixture
    def deployment(self):
        return memory.deployment(memory.RosterMemoryBackend)
