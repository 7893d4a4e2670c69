"""Jobs under real torchrun on servers: outages and passwords, for each backend that has one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .agents import Agent, Job
from .outages import beats_again, goes_on
from .served import SECRET, SERVED, Served

MakeJob = Callable[..., Job]


@pytest.fixture(params=SERVED, ids=lambda kind: kind.backend)
def lasting(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server that has its data when it comes back."""
    with request.param(lasting=True) as served:
        yield served


@pytest.fixture
def impatient(served: Served) -> dict[str, object]:
    return {**served.quick, "patience": 2}


def test_jobs_on_one_server_do_not_see_each_other(make: MakeJob) -> None:
    jobs = [make(run_id=name) for name in ("one", "two")]
    for job in jobs:
        job.start("a", "b")
    for job in jobs:
        job.formed("a", "b")
        job.finish("a", "b")


# ---------------------------------------------------------------- outages


def test_no_worker_notices_that_the_server_is_frozen_for_ten_seconds(
    make: MakeJob, served: Served
) -> None:
    job = make(nnodes="2:3")
    job.start("a", "b")
    first = job.formed("a", "b")
    served.server.pause()
    try:
        goes_on(job, first)
    finally:
        served.server.resume()
    beats_again(job, served.asked)
    assert job.rounds() == 1
    # What comes after it is noticed as before.
    job.start("c")
    second = job.formed("a", "b", "c")
    job.agents["a"].kill()
    job.formed("b", "c")
    assert set(second.restarts.values()) == {0}
    job.finish("b", "c")


def test_no_worker_notices_that_a_server_that_keeps_its_data_is_away_for_ten_seconds(
    make_job: MakeJob, lasting: Served
) -> None:
    job = make_job(**lasting.how, nnodes="2:3")
    job.start("a", "b")
    first = job.formed("a", "b")
    lasting.server.kill()
    goes_on(job, first)
    lasting.server.restart()
    beats_again(job, lasting.asked)
    assert job.rounds() == 1
    job.start("c")
    job.formed("a", "b", "c")
    job.agents["a"].kill()
    job.formed("b", "c")
    later = max(lasting.after_restart, 1)
    job.until(
        lambda: (
            [event["round"] for event in job.events("rdzv Completed", "b")]
            == [1, later + 1, later + 2]
        ),
        "the rounds' numbers",
    )
    job.finish("b", "c")


def test_a_job_outlives_the_time_to_live_of_its_keys_which_then_go(
    make: MakeJob, served: Served
) -> None:
    job = make(nnodes="2:3", conf={**served.quick, "ttl": 3})
    job.start("a", "b")
    first = job.formed("a", "b")
    job.until(lambda: not served.keys(":store:"), "the end of the unused store")
    job.stays(lambda: job.rounds() == 1, "the round", 4)
    job.start("c")
    second = job.formed("a", "b", "c")
    assert not second.pids & first.pids
    assert set(second.restarts.values()) == {0}
    assert served.keys()
    job.finish("a", "b", "c")
    job.until(lambda: not served.keys(), "the end of all keys")


def test_a_job_finishes_while_the_server_is_away(
    make: MakeJob, served: Served, impatient: dict[str, object]
) -> None:
    job = make(conf=impatient)
    job.start("a", "b")
    job.formed("a", "b")
    served.server.pause()
    job.finish("a", "b")
    assert job.rounds() == 1


def test_agents_say_that_the_server_has_gone_and_end(
    make: MakeJob, served: Served, impatient: dict[str, object]
) -> None:
    job = make(conf=impatient)
    job.start("a", "b")
    job.formed("a", "b")
    served.server.kill()
    for name in ("a", "b"):
        agent = job.agents[name]
        assert agent.wait() != 0
        assert "RendezvousConnectionError" in last_line(agent)
        # What is noticed first: that connecting fails, or that no answer has come for so long.
        words = f"at {served.endpoint} (has failed|cannot be reached)"
        words += "|has not answered for .* .patience=2."
        assert re.search(words, last_line(agent)), agent.log


def test_agents_say_that_a_server_has_come_back_without_its_data_and_end(
    make: MakeJob, served: Served
) -> None:
    job = make()
    job.start("a", "b")
    job.formed("a", "b")
    served.forget()
    for name in ("a", "b"):
        agent = job.agents[name]
        assert agent.wait() != 0
        assert "RendezvousStateError" in last_line(agent)
        assert "without its data" in last_line(agent)


def last_line(agent: Agent) -> str:
    return agent.log.rstrip().splitlines()[-1]


# ---------------------------------------------------------------- passwords


LOUD = {"LOGLEVEL": "DEBUG"}
"""torchrun logs what it was given, which it does at this level."""


@pytest.fixture(scope="module", params=SERVED, ids=lambda kind: kind.backend)
def guarded(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A server that lets nobody in without the password."""
    with request.param(guarded=True) as served:
        yield served


@pytest.fixture
def make_one(make_job: MakeJob, guarded: Served, tmp_path: Path) -> MakeJob:
    """Make jobs of one node whose worker ends at once, which are given a password."""

    def make(how: str, password: str) -> Job:
        conf: dict[str, object] = {}
        env, endpoint = dict(LOUD), guarded.endpoint
        if how == "variable":
            env[f"{guarded.variables}_PASSWORD"] = password
            env[f"{guarded.variables}_USERNAME"] = guarded.user
        elif how == "url":
            endpoint = f"{guarded.scheme}://{guarded.user}:{password}@{guarded.endpoint}"
        else:
            if guarded.user:
                conf["username"] = guarded.user
            if how == "file":
                conf["password_file"] = tmp_path / "password"
                (tmp_path / "password").write_text(password + "\n")
            else:
                conf["password"] = password
        told = {"backend": guarded.backend, "endpoint": endpoint, "conf": conf, "env": env}
        job = make_job(nnodes="1", run_id=how, **told)
        job.order("finish")
        return job

    return make


SAFE, SHOWN = ("variable", "file"), ("setting", "url")


@pytest.mark.parametrize("how", SAFE + SHOWN)
def test_a_right_password_logs_in_and_is_printed_only_by_torchs_line_of_settings(
    make_one: MakeJob, how: str
) -> None:
    job = make_one(how, SECRET)
    [agent] = job.start("a")
    assert agent.wait() == 0, job.report()
    lines = [line for line in agent.log.splitlines() if SECRET in line]
    assert "rdzv_configs" in agent.log
    # The READMEs say so: if torch ever hides it, or shows it elsewhere, say that there.
    assert len(lines) == (how in SHOWN), lines
    assert all("rdzv_configs" in line or "rdzv_endpoint" in line for line in lines)


@pytest.mark.parametrize("how", SAFE)
def test_a_wrong_password_is_a_clear_error_without_the_password(
    make_one: MakeJob, guarded: Served, how: str
) -> None:
    [agent] = make_one(how, f"{SECRET}-wrong").start("a")
    assert agent.wait() != 0
    for part in ("RendezvousConnectionError", guarded.refusal, f"{guarded.variables}_PASSWORD"):
        assert part in last_line(agent)
    assert SECRET not in agent.log
