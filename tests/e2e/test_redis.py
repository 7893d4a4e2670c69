"""Jobs under real torchrun on a Redis server: elasticity, outages, passwords."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rdzv_redis import RedisServer

from .agents import GLOO_WORKER, PATIENT, QUICK, Agent, Job, Round

README = Path(__file__).parents[2] / "plugins" / "redis" / "README.md"
OUTAGE = 10.0
SECRET = "n0t-to-be-printed"
IMPATIENT = {**QUICK, "patience": 2}

MakeJob = Callable[..., Job]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def make(make_job: MakeJob, server: RedisServer) -> MakeJob:
    """Make jobs on one server."""

    def make(**how: object) -> Job:
        return make_job(**{"backend": "redis", "endpoint": server.endpoint, **how})

    return make


def test_a_job_forms_grows_loses_a_node_and_finishes(make: MakeJob) -> None:
    job = make(nnodes="2:3")
    job.start("a", "b")
    first = job.formed("a", "b")
    job.start("c")
    second = job.formed("a", "b", "c")
    assert not second.pids & first.pids
    job.agents["b"].kill()
    third = job.formed("a", "c")
    assert not third.pids & second.pids
    job.start("d")
    fourth = job.formed("a", "c", "d")
    for found in (second, third, fourth):
        assert set(found.restarts.values()) == {0}, job.report()
    job.finish("a", "c", "d")
    assert job.rounds() == 4
    # The run is over for all.
    [later] = job.start("later")
    assert later.wait() != 0
    assert "RendezvousClosedError" in later.log


def test_an_agent_that_is_ended_by_a_signal_leaves_at_once(make: MakeJob) -> None:
    job = make(nnodes="1:3", conf=PATIENT)
    job.start("a", "b", "c")
    job.formed("a", "b", "c")
    job.agents["b"].terminate()
    job.formed("a", "c")
    job.agents["c"].interrupt()
    job.formed("a")
    for name in ("b", "c"):
        assert job.agents[name].wait() != 0
    job.finish("a")


def test_a_spare_takes_a_dead_nodes_place(make: MakeJob) -> None:
    job = make(nnodes="2")
    job.start("a", "b")
    job.formed("a", "b")
    job.start("spare")
    job.waits("spare", spare=True)
    job.agents["a"].kill()
    second = job.formed("b", "spare")
    assert set(second.restarts.values()) == {0}
    job.finish("b", "spare")
    assert job.rounds() == 2


def test_a_frozen_node_is_fenced_and_comes_back(make: MakeJob) -> None:
    job = make(nnodes="2:3")
    job.start("a", "b", "c")
    job.formed("a", "b", "c")
    job.agents["b"].freeze()
    job.formed("a", "c")
    job.agents["b"].thaw()
    third = job.formed("a", "b", "c")
    assert set(third.restarts.values()) == {0}
    job.finish("a", "b", "c")


def test_process_groups_follow_one_another_while_the_job_shrinks_and_grows(make: MakeJob) -> None:
    job = make(nnodes="1:3", worker=GLOO_WORKER, options=("--max-restarts=1",))
    job.start("a", "b", "c")
    first = job.formed("a", "b", "c")
    # With its leader go the workers' store and the processes that the others work with.
    head, *others = first.agents
    job.agents[head].kill()
    second = job.formed(*others)
    assert set(second.restarts.values()) == {0}, job.report()
    job.start("d")
    third = job.formed(*others, "d")
    assert set(third.restarts.values()) == {0}, job.report()
    job.finish(*others, "d")


def test_jobs_on_one_server_do_not_see_each_other(make: MakeJob) -> None:
    jobs = [make(run_id=name) for name in ("one", "two")]
    for job in jobs:
        job.start("a", "b")
    for job in jobs:
        job.formed("a", "b")
        job.finish("a", "b")


# ---------------------------------------------------------------- outages


def goes_on(job: Job, found: Round) -> None:
    """See that the workers of a round still are at work, for the length of an outage."""

    def undisturbed() -> bool:
        alive = all(_runs(pid) for pid in found.pids)
        return alive and job.rounds() == 1 and not any(a.ended for a in job.agents.values())

    job.stays(undisturbed, "an undisturbed round", OUTAGE)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def beats_again(job: Job, server: RedisServer) -> None:
    """Wait until the server has had commands of rdzv since its outage."""
    with server.client() as client:

        def calls() -> int:
            return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))

        before = calls()
        job.until(lambda: calls() > before + 20, "the beats after the outage")


def test_no_worker_notices_that_the_server_is_frozen_for_ten_seconds(
    make: MakeJob, server: RedisServer
) -> None:
    job = make(nnodes="2:3")
    job.start("a", "b")
    first = job.formed("a", "b")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        goes_on(job, first)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    beats_again(job, server)
    assert job.rounds() == 1
    # What comes after it is noticed as before.
    job.start("c")
    second = job.formed("a", "b", "c")
    job.agents["a"].kill()
    job.formed("b", "c")
    assert set(second.restarts.values()) == {0}
    job.finish("b", "c")


def test_no_worker_notices_that_a_persistent_server_is_away_for_ten_seconds(
    make_job: MakeJob,
) -> None:
    with RedisServer(persistent=True) as server:
        job = make_job(backend="redis", endpoint=server.endpoint, nnodes="2:3")
        job.start("a", "b")
        first = job.formed("a", "b")
        server.kill()
        goes_on(job, first)
        server.restart()
        beats_again(job, server)
        assert job.rounds() == 1
        job.start("c")
        job.formed("a", "b", "c")
        job.agents["a"].kill()
        job.formed("b", "c")
        # Another server, for all that anybody knows: what came before it may have been lost.
        numbers = [event["round"] for event in job.events("rdzv Completed", "b")]
        assert numbers == [1, 1_000_001, 1_000_002]
        job.finish("b", "c")


def test_a_job_outlives_the_time_to_live_of_its_keys_which_then_go(
    make: MakeJob, server: RedisServer
) -> None:
    job = make(nnodes="2:3", conf={**QUICK, "ttl": 3})
    with server.client() as client:
        job.start("a", "b")
        first = job.formed("a", "b")
        job.until(lambda: not list(client.scan_iter("*:store:*")), "the end of the unused store")
        job.stays(lambda: job.rounds() == 1, "the round", 3)
        job.start("c")
        second = job.formed("a", "b", "c")
        assert not second.pids & first.pids
        assert set(second.restarts.values()) == {0}
        job.finish("a", "b", "c")
        job.until(lambda: not client.dbsize(), "the end of all keys")


def test_a_job_finishes_while_the_server_is_away(make: MakeJob, server: RedisServer) -> None:
    job = make(conf=IMPATIENT)
    job.start("a", "b")
    job.formed("a", "b")
    os.kill(server.pid, signal.SIGSTOP)
    job.finish("a", "b")
    assert job.rounds() == 1


def test_agents_say_that_the_server_has_gone_and_end(make: MakeJob, server: RedisServer) -> None:
    job = make(conf=IMPATIENT)
    job.start("a", "b")
    job.formed("a", "b")
    server.kill()
    for name in ("a", "b"):
        agent = job.agents[name]
        assert agent.wait() != 0
        assert "RendezvousConnectionError" in last_line(agent)
        # What is noticed first: that connecting fails, or that no answer has come for so long.
        words = f"server at {server.endpoint} has failed|has not answered for .* .patience=2."
        assert re.search(words, last_line(agent)), agent.log


def test_agents_say_that_a_server_has_come_back_without_its_data_and_end(
    make: MakeJob, server: RedisServer
) -> None:
    job = make()
    job.start("a", "b")
    job.formed("a", "b")
    server.restart()
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


@pytest.fixture
def guarded() -> Iterator[RedisServer]:
    with RedisServer(password=SECRET) as server:
        yield server


@pytest.fixture
def make_one(make_job: MakeJob, guarded: RedisServer, tmp_path: Path) -> MakeJob:
    """Make jobs of one node whose worker ends at once, which are given a password."""

    def make(how: str, password: str) -> Job:
        settings: dict[str, object] = {"endpoint": guarded.endpoint, "conf": {}, "env": LOUD}
        if how == "variable":
            settings["env"] = {**LOUD, "RDZV_REDIS_PASSWORD": password}
        elif how == "file":
            file = tmp_path / "password"
            file.write_text(password + "\n")
            settings["conf"] = {"password_file": file}
        elif how == "setting":
            settings["conf"] = {"password": password}
        else:
            settings["endpoint"] = f"redis://:{password}@{guarded.endpoint}"
        job = make_job(backend="redis", nnodes="1", **settings)
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
    # The README says so: if torch ever hides it, or shows it elsewhere, say that there.
    assert len(lines) == (how in SHOWN), lines
    assert all("rdzv_configs" in line or "rdzv_endpoint" in line for line in lines)


@pytest.mark.parametrize("how", SAFE)
def test_a_wrong_password_is_a_clear_error_without_the_password(
    make_one: MakeJob, how: str
) -> None:
    [agent] = make_one(how, f"{SECRET}-wrong").start("a")
    assert agent.wait() != 0
    for part in ("RendezvousConnectionError", "does not accept the login", "RDZV_REDIS_PASSWORD"):
        assert part in last_line(agent)
    assert SECRET not in agent.log


def test_the_user_of_the_readme_may_do_what_a_job_needs(
    make_job: MakeJob, guarded: RedisServer
) -> None:
    [rule] = re.findall(r"^ACL SETUSER rdzv .*$", README.read_text(), re.MULTILINE)
    with guarded.client() as client:
        client.execute_command(*rule.replace(">password", f">{SECRET}-2").split())
    env = {"RDZV_REDIS_USERNAME": "rdzv", "RDZV_REDIS_PASSWORD": f"{SECRET}-2"}
    job = make_job(backend="redis", endpoint=guarded.endpoint, nnodes="2:3", env=env)
    job.start("a", "b")
    job.formed("a", "b")
    job.start("c")
    job.formed("a", "b", "c")
    job.agents["a"].kill()
    job.formed("b", "c")
    job.finish("b", "c")
