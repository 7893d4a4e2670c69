"""Jobs under real torchrun on the plugins of examples/plugins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..local_servers import missing, postgres_server
from .agents import QUICK, Job
from .served import SECRET

# The case is the same, on the fixture below.
from .test_elastic import test_a_job_forms_grows_loses_a_node_and_finishes  # noqa: F401

MakeJob = Callable[..., Job]


@pytest.fixture(params=["sqlite", "postgres"])
def make(request: pytest.FixtureRequest, make_job: MakeJob, tmp_path: Path) -> Iterator[MakeJob]:
    """Make jobs on a database file, or on a server that lets nobody in without a password."""
    if request.param == "sqlite":
        try:
            import rdzv_sqlite  # noqa: F401 - whether it is there
        except ImportError:
            missing("rdzv-sqlite", "pip install ./examples/plugins/sqlite")
        how = {"backend": "sqlite", "endpoint": str(tmp_path / "rdzv.db")}
        # All beats of all nodes are writes of one file.
        conf = {**QUICK, "keep_alive_interval": 0.5, "keep_alive_max_attempt": 4}
        yield lambda **more: make_job(**{**how, "conf": conf, **more})
        return
    with postgres_server(password=SECRET) as server:
        how = {"backend": "postgres", "endpoint": server.url}
        env = {"RDZV_POSTGRES_PASSWORD": SECRET}
        jobs: list[Job] = []

        def make(**more: object) -> Job:
            jobs.append(make_job(**{**how, "env": env, **more}))
            return jobs[-1]

        yield make
        said = [agent.log for job in jobs for agent in job.agents.values()]
        assert said
        assert not any(SECRET in log for log in said)
