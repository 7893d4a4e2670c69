"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .agents import ENVIRONMENT, Job
from .served import SERVED, Served


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Make jobs; all their processes are gone after the test."""
    jobs: list[Job] = []
    numbers = itertools.count()

    def make(**how: Any) -> Job:
        jobs.append(Job(tmp_path / f"job{next(numbers)}", **how))
        return jobs[-1]

    yield make
    for job in jobs:
        job.end()


@pytest.fixture(params=SERVED, ids=lambda kind: kind.backend)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Each backend with a server of its own, which runs."""
    with request.param() as served:
        yield served


@pytest.fixture
def make(make_job: Callable[..., Job], served: Served) -> Callable[..., Job]:
    """Make jobs on that server."""

    def make(**how: Any) -> Job:
        return make_job(**{**served.how, **how})

    return make
