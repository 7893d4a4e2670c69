"""Real torchrun agents that log their events, and the timeline that is made of the logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rdzv.timeline.logs import read_logs
from rdzv.timeline.story import runs_of

from .agents import QUICK, Job

pytestmark = pytest.mark.skipif(
    not entry_points(group="rdzv.extensions", name="jsonlog"),
    reason="needs rdzv-observers to be installed",
)


def test_the_timeline_of_a_job_that_loses_a_node_and_grows_agrees_with_what_happened(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    job = make_job(nnodes="2:3", env={"RDZV_EVENTS": f"{logs}/"})
    job.host_store()
    job.start("a", "b", "c")
    rounds = [job.formed("a", "b", "c")]
    killed = time.time()
    job.agents["b"].kill()
    rounds.append(job.formed("a", "c"))
    formed = time.time()
    job.start("d")
    rounds.append(job.formed("a", "c", "d"))
    job.finish("a", "c", "d")

    read = read_logs([logs])
    assert not read.problems
    assert read.files == 4
    [run] = runs_of(read.lines)
    # It is one clock; a node may hear of a round late.
    assert all(abs(seconds) < 5 for seconds in run.clocks.corrected.values())

    # Before the kill two agents may have been a round without the third.
    formings = run.formings[-3:]
    assert [forming.size for forming in formings] == [3, 2, 3]
    assert [forming.cause for forming in formings[1:]] == ["1 node lost", "1 node waiting to join"]
    pids = {str(agent._process.pid): name for name, agent in job.agents.items()}
    nodes = {pids[node.name.rsplit("_", 2)[1]]: node for node in run.nodes}
    for forming, seen in zip(formings, rounds, strict=True):
        ranks = {
            name: span.rank
            for name, node in nodes.items()
            for span in node.spans
            if span.kind == "member" and span.round == forming.number
        }
        assert ranks == {name: rank for rank, name in enumerate(seen.agents)}

    loss = formings[1]
    [lost] = job.events("rdzv Lost")
    assert loss.stages[0] == pytest.approx(lost["silent"], abs=0.001)
    assert loss.stages[0] >= QUICK["keep_alive_interval"] * (QUICK["keep_alive_max_attempt"] - 1)
    known = loss.began + loss.stages[0]
    # Clocks are corrected by when nodes heard of rounds, which may be late.
    assert killed - 5 <= known <= loss.complete <= formed + 5
    assert nodes["b"].ended == "lost"
    assert {nodes[name].ended for name in "acd"} == {"it left"}
    assert run.closed is not None
