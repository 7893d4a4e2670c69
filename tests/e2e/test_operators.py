"""What an operator does to a run of real torchrun agents."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .agents import PATIENT, QUICK, Job


def rdzv(job: Job, name: str, *options: str, code: int = 0) -> str:
    """Run a command on the job's run, as its names and endpoint are given to torchrun."""
    endpoint = job.endpoint or f"127.0.0.1:{job.port}"
    where = ["--backend", job.backend, "--endpoint", endpoint]
    command = [sys.executable, "-m", "rdzv.cli", name, job.run_id, *where, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def status(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rdzv(job, "status", "--json"))
    return found


def test_a_job_is_looked_at_scaled_up_and_down_and_closed_while_it_runs(make_job):
    job = make_job(nnodes="2", options=("--max-restarts=1",))
    job.host_store()
    job.start("a", "b")
    first = job.formed("a", "b")
    job.start("c")
    job.waits("c", spare=True)
    found = status(job)
    assert [(n["role"], n["rank"]) for n in found["nodes"]] == [
        ("member", 0),
        ("member", 1),
        ("spare", None),
    ]
    job.until(
        lambda: {n["liveness"] for n in status(job)["nodes"]} <= {"beating", "lease held"},
        "a sign of life of each",
    )
    rdzv(job, "scale", "--max", "3")
    second = job.formed("a", "b", "c")
    assert second.agents[:2] == first.agents, "who stays keeps its rank"
    rdzv(job, "scale", "--max", "2")
    third = job.formed(*second.agents[:2])
    assert set(third.restarts.values()) == {0}, "it is nobody's failure"
    surplus = second.agents[2]
    rdzv(job, "close", "--yes")
    assert job.agents[surplus].wait() == 0, "a spare is not needed any more"
    assert not any(job.agents[name].ended for name in third.agents), "workers that run go on"
    job.finish(*third.agents)


def test_a_closed_run_begins_anew_after_a_reset(make):
    job = make(nnodes="2")
    job.start("a", "b")
    job.formed("a", "b")
    job.finish("a", "b")
    [late] = job.start("late")
    assert late.wait() != 0
    assert "RendezvousClosedError" in late.log
    rdzv(job, "reset", "--yes")
    job.revoke("finish")
    job.start("c", "d")
    job.formed("c", "d")
    job.until(
        lambda: {event["round"] for event in job.events("rdzv Completed", "c")} == {2},
        "the event of the round",
    )
    job.finish("c", "d")


def test_the_commands_reach_the_store_in_an_agent_and_say_so_when_it_has_ended(make_job):
    job = make_job(nnodes="2", conf={**QUICK, **PATIENT})
    job.start("host", "other")
    job.formed("host", "other")
    assert status(job)["size"] == 2
    job.finish("host", "other")
    assert rdzv(job, "status", code=3) == ""
