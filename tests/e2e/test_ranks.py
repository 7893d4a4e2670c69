"""Rank policies under real torchrun: who stands side by side, and who is refused."""

from __future__ import annotations

from collections.abc import Callable

from .agents import QUICK, Job

MakeJob = Callable[..., Job]

RACKS = {"a": "r1", "b": "r2", "c": "r1", "d": "r2"}


def test_agents_of_one_rack_get_neighbouring_ranks_and_keep_them_when_one_is_replaced(
    make_job: MakeJob,
) -> None:
    # No round of three: what is left of the four waits for the fifth.
    job = make_job(nnodes="3:4", conf={**QUICK, "rank_policy": "topology", "last_call_timeout": 60})
    job.host_store()
    for name, rack in RACKS.items():
        job.start(name, labels=f"rack:{rack}/nvlink:d1")
    first = job.formed(*RACKS).agents
    assert [RACKS[name] for name in first] in (["r1", "r1", "r2", "r2"], ["r2", "r2", "r1", "r1"])
    # One of the rack in front, but not rank 0, is replaced: its successor comes into the middle.
    job.agents[first[1]].kill()
    job.start("e", labels=f"rack:{RACKS[first[0]]}/nvlink:d2")
    assert job.formed(first[0], "e", *first[2:]).agents == [first[0], "e", *first[2:]]
    # Who would give out ranks otherwise is told, and harms nobody.
    [other] = job.start("other", rank_policy=None)
    assert other.wait() != 0
    assert "rank_policy=sticky, but the run has rank_policy=topology" in other.log
    [without] = job.start("without", rank_policy="by-price")
    assert without.wait() != 0
    assert "no rank policy 'by-price' on this node (known: scheduler, sticky" in without.log
    job.finish(first[0], "e", *first[2:])
    assert job.rounds() == 2


def test_agents_stand_in_the_order_of_slurms_numbers(make_job: MakeJob) -> None:
    job = make_job(nnodes="3", conf={**QUICK, "rank_policy": "scheduler"})
    numbers = {"a": "2", "b": "0", "c": "1"}
    for name, number in numbers.items():
        job.env = {"SLURM_PROCID": number}
        job.start(name)
    assert job.formed("a", "b", "c").agents == ["b", "c", "a"]
    job.finish("a", "b", "c")
