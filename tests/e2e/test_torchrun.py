"""What torchrun users meet besides elasticity: options, errors, broken plugins."""

from __future__ import annotations

import pytest


@pytest.fixture
def job(make_job):
    """A job of one node whose workers end at once."""
    job = make_job(nnodes="1")
    job.order("finish")
    return job


def test_port_0_will_do_for_one_machine(make_job):
    job = make_job(nnodes="1", options=("--rdzv-endpoint=localhost:0", "--nproc-per-node=2"))
    job.start("a", is_host=None)
    found = job.formed("a")
    assert [worker["rank"] for worker in found.workers] == [0, 1]
    job.finish("a")


def test_a_broken_plugin_costs_only_those_who_choose_it(job):
    job.module("e2e_broken", "raise RuntimeError('no such library')\n")
    job.distribution("e2e-broken", "rdzv.backends", "broken", "e2e_broken")
    job.start("good")
    [bad] = job.start("bad", options=("--rdzv-backend=broken",), is_host=None)
    assert bad.wait() != 0
    for part in ("'broken'", "e2e-broken", "1.5", "no such library"):
        assert part in bad.log
    assert job.agents["good"].wait() == 0
    assert job.events("worker", "good")
    assert not job.events("worker", "bad")


def test_what_is_given_wrongly_is_named(job):
    wrong: dict[str, tuple[dict[str, object], tuple[str, ...], tuple[str, ...]]] = {
        "misspelt": ({"last_cal_timeout": 1}, (), ("'last_cal_timeout'", "'last_call_timeout'")),
        "no number": ({"keep_alive_max_attempt": "many"}, (), ("keep_alive_max_attempt", "many")),
        "no backend": ({}, ("--rdzv-backend=rdzv",), ("'rdzv' is no backend", "rdzv-c10d")),
        "range": ({}, ("--nnodes=3:2",), ("3", "2")),
    }
    for name, (conf, options, _) in wrong.items():
        job.start(name, options=options, **conf)
    for name, (_, _, parts) in wrong.items():
        agent = job.agents[name]
        assert agent.wait() != 0, name
        assert "Error" in agent.log, name
        for part in parts:
            assert part in agent.log.splitlines()[-1], agent.log
    assert not job.events("worker")


def test_torchs_own_backend_still_works_beside(make_job):
    conf = {"last_call_timeout": 1, "join_timeout": 60}
    job = make_job(nnodes="2", backend="c10d", conf=conf)
    job.start("a", "b")
    job.formed("a", "b")
    assert not job.events("rdzv Joined")
    job.finish("a", "b")
