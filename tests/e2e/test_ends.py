"""What uses restarts up, and whose end closes a run, under real torchrun."""

from __future__ import annotations

import shutil

from .agents import PATIENT, QUICK

ONE_RESTART = ("--max-restarts=1",)


def test_restarts_are_used_up_by_a_nodes_own_workers_alone(make_job):
    job = make_job(nnodes="1:3", options=ONE_RESTART)
    job.host_store()
    job.start("a", "b", "c")
    found = job.formed("a", "b", "c")
    # The workers of the others fail with those of a dead node, twice.
    for dead, others in (("c", ("a", "b")), ("b", ("a",))):
        # Nobody comes back, and has the others restart, before all have failed.
        for name in others:
            job.agents[name].freeze(workers=False)
        job.agents[dead].kill()
        job.order(f"crash round {found.name}")
        job.crashed(*(worker["pid"] for name in others for worker in found.of(name)))
        for name in others:
            job.agents[name].thaw()
        found = job.formed(*others)
        assert set(found.restarts.values()) == {0}
    # Its own failure counts.
    job.order("crash agent a restart 0")
    found = job.formed("a")
    assert found.restarts == {"a": 1}
    job.start("d")
    found = job.formed("a", "d")
    assert found.restarts == {"a": 1, "d": 0}
    # A worker that has failed for good ends the run for all.
    job.order("crash agent a restart 1")
    assert job.agents["a"].wait() != 0
    assert "ChildFailedError" in job.agents["a"].log
    [later] = job.start("later")
    assert later.wait() != 0
    assert "RendezvousClosedError" in later.log
    assert not job.agents["d"].ended, "its workers may finish"
    job.order("crash agent d restart 0")
    assert job.agents["d"].wait() != 0
    assert "RendezvousClosedError" in job.agents["d"].log


def test_workers_that_fail_because_others_restart_for_a_newcomer_use_no_restart_up(make_job):
    job = make_job(nnodes="2:3", options=ONE_RESTART)
    job.start("a")
    # So seldom that its worker has failed before it looks, however long the newcomer starts.
    job.start("slow", options=("--monitor-interval=12",))
    first = job.formed("a", "slow")
    joined = len(job.events("rdzv Joined", "a"))
    job.start("new")
    job.until(lambda: len(job.events("rdzv Joined", "a")) > joined, "the restart of a")
    job.order(f"crash round {first.name}")
    second = job.formed("a", "slow", "new")
    assert [event["agent"] for event in job.events("crash")] == ["slow"]
    assert second.restarts == {"a": 0, "slow": 0, "new": 0}
    job.finish("a", "slow", "new")


def test_an_agent_that_ends_with_an_error_of_its_own_leaves(make_job):
    job = make_job(nnodes="2:3", conf=PATIENT)
    job.start("a", "b")
    folder = job.folder / "logs"
    job.start("c", options=(*ONE_RESTART, f"--log-dir={folder}"))
    first = job.formed("a", "b", "c")
    # As the disk would be: the agent cannot start its workers again.
    shutil.rmtree(folder)
    folder.touch()
    job.order("crash agent c restart 0")
    assert job.agents["c"].wait() != 0
    assert "Error: [Errno" in job.agents["c"].log
    second = job.formed("a", "b")
    assert not second.pids & first.pids
    job.finish("a", "b")


def test_a_node_that_was_taken_for_dead_closes_nothing_when_its_workers_fail(make_job):
    job = make_job(nnodes="2:3", conf=QUICK)
    job.start("a", "b", "c")
    first = job.formed("a", "b", "c")
    [worker] = first.of("b")
    job.agents["b"].freeze(workers=False)
    second = job.formed("a", "c")
    job.order("crash agent b restart 0")
    job.crashed(worker["pid"])
    job.agents["b"].thaw()
    assert job.agents["b"].wait() != 0
    assert "ChildFailedError" in job.agents["b"].log
    job.start("d")
    third = job.formed("a", "c", "d")
    assert not third.pids & second.pids
    job.finish("a", "c", "d")


def test_a_node_that_was_cut_off_closes_nothing_that_went_on_without_it(make_job):
    job = make_job(nnodes="2:3", conf=QUICK)
    job.host_store()
    wire = job.wire()
    job.start("a", "c")
    [cut_off] = job.start("b", options=(f"--rdzv-endpoint=127.0.0.1:{wire.port}",))
    job.formed("a", "b", "c")
    wire.cut()
    second = job.formed("a", "c")
    # Its workers fail for good, and it cannot know yet that nobody counts on them.
    job.order("crash agent b restart 0")
    job.until(lambda: "failed (exitcode: 1)" in cut_off.log, "the failure of b")
    wire.mend()
    assert cut_off.wait() != 0
    job.start("d")
    third = job.formed("a", "c", "d")
    assert not third.pids & second.pids
    job.finish("a", "c", "d")
