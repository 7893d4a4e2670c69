"""Jobs under real torchrun, on every backend: they form, shrink, grow and finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .agents import GLOO_WORKER, PATIENT, QUICK, SAVING_WORKER, Job
from .served import SERVED

MakeJob = Callable[..., Job]

OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""torch's: each group of workers has its leader host a store for it, and not the agent."""


@pytest.fixture(params=[None, *SERVED], ids=lambda kind: kind.backend if kind else "rdzv-c10d")
def make(request: pytest.FixtureRequest, make_job: MakeJob) -> Iterator[MakeJob]:
    """Make jobs on each backend, any of whose agents may end."""
    if request.param is None:

        def make(**how: object) -> Job:
            job = make_job(**how)
            job.host_store()
            return job

        yield make
    else:
        with request.param() as served:
            yield lambda **how: make_job(**{**served.how, **how})


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
    for found in (first, second, third, fourth):
        assert set(found.restarts.values()) == {0}, job.report()
    job.finish("a", "c", "d")
    assert job.rounds() == 4
    assert not job.events("rdzv Failed")
    # The workers have succeeded: the run is over for all.
    [later] = job.start("later")
    assert later.wait() != 0
    assert "RendezvousClosedError" in later.log


def test_a_spare_takes_a_dead_nodes_place_and_goes_unnoticed_otherwise(make: MakeJob) -> None:
    job = make(nnodes="2")
    job.start("a", "b")
    job.formed("a", "b")
    job.start("late", "spare")
    for name in ("late", "spare"):
        job.waits(name, spare=True)
    job.agents["late"].terminate()
    assert job.agents["late"].wait() != 0
    assert job.rounds() == 1
    job.agents["b"].kill()
    second = job.formed("a", "spare")
    assert set(second.restarts.values()) == {0}, job.report()
    job.start("unneeded")
    job.waits("unneeded", spare=True)
    job.finish("a", "spare", "unneeded")
    assert job.rounds() == 2


def test_a_node_that_was_taken_for_dead_is_fenced_and_comes_back(make: MakeJob) -> None:
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
    # With its leader go the workers' store and the processes that the others work with. They
    # fail, twice, and that uses no restart up.
    head, *others = first.agents
    job.agents[head].kill()
    second = job.formed(*others)
    assert set(second.restarts.values()) == {0}, job.report()
    head, last = second.agents
    job.agents[head].kill()
    third = job.formed(last)
    assert third.restarts == {last: 0}, job.report()
    job.start("d")
    fourth = job.formed(last, "d")
    assert set(fourth.restarts.values()) == {0}, job.report()
    job.finish(last, "d")


DEFERRED = {**QUICK, "admission": "deferred"}


def test_newcomers_are_let_in_at_a_checkpoint_and_at_once_where_a_node_is_lost(
    make: MakeJob,
) -> None:
    job = make(nnodes="2:4", worker=SAVING_WORKER, options=("--max-restarts=1",))
    job.conf = {**job.conf, "admission": "deferred"}
    job.start("a", "b")
    first = job.formed("a", "b")
    job.saves(first, opens=False)
    job.revoke(f"save in round {first.name}")
    job.start("c")
    job.waits_for_checkpoint("c")
    job.works_on(first)
    assert job.rounds() == 1
    job.saves(first, opens=True)
    second = job.formed("a", "b", "c")
    job.start("d")
    job.waits_for_checkpoint("d")
    job.works_on(second)
    assert job.rounds() == 2
    job.agents["b"].kill()
    third = job.formed("a", "c", "d")
    for found in (second, third):
        assert set(found.restarts.values()) == {0}, job.report()
    waiting = [event["waiting"] for event in job.events("rdzv Deferred")]
    assert waiting == [1, 1], job.report()
    reasons = [event["why"] for event in job.events("rdzv Admitted")]
    assert reasons == ["workers have reached a checkpoint", "1 node lost"]
    job.start("unneeded")
    job.waits_for_checkpoint("unneeded")
    job.finish("a", "c", "d", "unneeded")
    assert job.rounds() == 3


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


# ---------------------------------------------------------------- where an agent hosts the store


def test_agents_of_which_one_hosts_the_store_form_at_the_addresses_that_they_were_given(
    make_job: MakeJob,
) -> None:
    job = make_job()
    addresses = {"a": "127.0.0.2", "b": "127.0.0.3"}
    for name, address in addresses.items():
        job.start(name, options=(f"--local-addr={address}",))
    first = job.formed("a", "b")
    assert {worker["master"] for worker in first.workers} == {addresses[first.agents[0]]}
    job.finish("a", "b")
    assert job.rounds() == 1
    assert not job.events("rdzv Failed")


def test_ranks_with_several_workers_a_node_and_two_roles(make_job: MakeJob) -> None:
    job = make_job(nnodes="2:4")
    workers = {"a": ("train", 2), "b": ("train", 2), "c": ("judge", 1)}

    def start(name: str, role: str, count: int) -> None:
        job.start(name, options=(f"--role={role}", f"--nproc-per-node={count}"))

    def check(found) -> None:
        assert len(found.workers) == sum(workers[name][1] for name in found.agents)
        for role in ("train", "judge"):
            same = [worker for worker in found.workers if worker["role"] == role]
            assert [worker["role_rank"] for worker in same] == list(range(len(same)))
            assert {worker["role_world"] for worker in same} <= {len(same)}
        for name in found.agents:
            mine = found.of(name)
            assert {worker["role"] for worker in mine} == {workers[name][0]}
            assert [worker["local_rank"] for worker in mine] == list(range(workers[name][1]))
            ranks = [worker["rank"] for worker in mine]
            assert ranks == list(range(ranks[0], ranks[0] + len(ranks)))

    for name, (role, count) in workers.items():
        start(name, role, count)
    check(job.formed("a", "b", "c"))
    job.agents["b"].kill()
    check(job.formed("a", "c"))
    workers["d"] = ("judge", 2)
    start("d", "judge", 2)
    check(job.formed("a", "c", "d"))
    job.finish("a", "c", "d")


def test_process_groups_whose_workers_host_a_store_themselves(make_job: MakeJob) -> None:
    job = make_job(nnodes="1:3", worker=GLOO_WORKER, env=OWN_STORE, options=("--max-restarts=1",))
    job.host_store()
    job.start("a", "b", "c")
    first = job.formed("a", "b", "c")
    head, *others = first.agents
    job.agents[head].kill()
    second = job.formed(*others)
    assert set(second.restarts.values()) == {0}, job.report()
    job.start("d")
    third = job.formed(*others, "d")
    assert set(third.restarts.values()) == {0}
    job.finish(*others, "d")


def test_a_checkpoint_is_heard_of_where_workers_host_a_store_themselves(make_job: MakeJob) -> None:
    job = make_job(nnodes="1:2", conf=DEFERRED, worker=SAVING_WORKER, env=OWN_STORE)
    job.start("a")
    first = job.formed("a")
    job.start("b")
    job.waits_for_checkpoint("b")
    job.works_on(first)
    assert job.rounds() == 1
    job.saves(first, opens=True)
    job.formed("a", "b")
    job.finish("a", "b")


def test_an_agent_with_another_admission_is_refused(make_job: MakeJob) -> None:
    job = make_job(nnodes="1:2", conf=DEFERRED)
    job.start("a")
    job.formed("a")
    [other] = job.start("other", admission="immediate")
    assert other.wait() != 0
    assert "admission=immediate, but the run has admission=deferred" in other.log
    job.finish("a")
    assert job.rounds() == 1
