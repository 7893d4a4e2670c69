"""What the timeline makes of the logs: clocks, rounds, and where the seconds went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rdzv.timeline.clocks import TOLERANCE
from rdzv.timeline.logs import Logs, read_logs
from rdzv.timeline.story import Run, runs_of

from .made import Made, names, story


def told(made: Made, tmp_path: Path) -> Run:
    logs = read_logs([made.write(tmp_path)])
    assert not logs.problems
    [run] = runs_of(logs.lines)
    return run


def stages(run: Run, number: int) -> list[float]:
    return [round(seconds, 3) for seconds in run.formings[number - 1].stages]


# ---------------------------------------------------------------- where the seconds went


def test_the_seconds_of_a_loss_are_detection_join_last_call_and_ranks(tmp_path):
    run = told(story(3), tmp_path)
    assert [(f.number, f.size, f.cause) for f in run.formings] == [
        (1, 3, "the first round"),
        (2, 2, "1 node lost"),
        (3, 3, "1 node waiting to join"),
    ]
    assert stages(run, 2) == pytest.approx([5.5, 2.0, 2.0, 0.004], abs=0.01)
    assert run.formings[1].began - run.start == pytest.approx(60.0, abs=0.01)
    node, seconds = run.formings[1].slowest or ("", 0.0)
    assert (node, round(seconds, 2)) == (names(3)[1], 2.0)
    assert run.lost == 1


def test_an_arrival_is_detected_when_the_first_participant_is_told(tmp_path):
    run = told(story(3), tmp_path)
    assert stages(run, 3) == pytest.approx([0.1, 1.5, 0.0, 0.004], abs=0.01)


def test_the_time_for_which_an_arrival_was_held_up_is_no_detection(tmp_path):
    made = Made()
    for node in "ab":
        made.tell(0.0, node, "Joined")
    made.complete(1.0, 1, "ab")
    made.tell(10.0, "c", "Joined")
    made.tell(10.1, "a", "Deferred", 1, waiting=1)
    made.tell(50.2, "a", "Reopened", 1, reason="1 node waiting to join", arrived=1)
    made.tell(51.2, "a", "Joined", 1)
    made.complete(51.2, 2, "abc")
    made.tell(51.2, "a", "Admitted", 2, arrived=1, why="workers have reached a checkpoint")
    assert stages(told(made, tmp_path), 2) == pytest.approx([0.0, 1.0, 0.0, 0.004], abs=0.01)


def test_the_first_round_begins_with_the_first_node_that_joins(tmp_path):
    run = told(story(3), tmp_path)
    assert stages(run, 1) == pytest.approx([0.0, 2.0, 0.0, 0.004], abs=0.01)


@pytest.mark.parametrize(
    ("event", "fields", "detection"),
    [
        ("Left", {}, 0.2),
        ("Joined", {}, 0.2),  # its workers have failed
    ],
)
def test_who_leaves_or_comes_back_is_what_the_next_round_begins_with(
    tmp_path, event, fields, detection
):
    made = Made()
    for node in "abc":
        made.tell(0.0, node, "Joined")
    made.complete(1.0, 1, "abc")
    made.tell(10.0, "c", event, 1, **fields)
    counts = {"left": 1} if event == "Left" else {"returned": 1}
    for node in "ab":
        made.tell(10.2, node, "Reopened", 1, reason="1 node did", **counts)
        made.tell(11.0, node, "Joined", 1)
    made.complete(12.0, 2, "ab" if event == "Left" else "abc")
    assert stages(told(made, tmp_path), 2) == pytest.approx([detection, 1.8, 0, 0.004], abs=0.01)


def test_a_loss_that_leaves_too_few_counts_as_detected_when_it_was_seen(tmp_path):
    made = Made()
    for node in "ab":
        made.tell(0.0, node, "Joined")
    made.complete(1.0, 1, "ab")
    made.tell(15.0, "a", "Lost", 1, lost=["b"], silent=5.0)
    made.tell(60.0, "c", "Joined")
    made.tell(60.1, "a", "Reopened", 1, reason="1 node lost, 1 node waiting", lost=1, arrived=1)
    made.tell(61.0, "a", "Joined", 1)
    made.complete(61.0, 2, "ac")
    assert stages(told(made, tmp_path), 2) == pytest.approx([5.0, 46.0, 0, 0.004], abs=0.01)


def test_a_loss_that_workers_notice_first_is_a_loss_all_the_same(tmp_path):
    made = Made()
    for node in "abc":
        made.tell(0.0, node, "Joined")
    made.complete(1.0, 1, "abc")
    made.tell(20.3, "b", "Joined", 1)
    made.tell(20.4, "a", "Reopened", 1, reason="1 node came back", returned=1)
    made.tell(20.5, "a", "Joined", 1)
    made.tell(21.5, "a", "Lost", 1, lost=["c"], silent=1.5)
    made.complete(22.5, 2, "ab")
    run = told(made, tmp_path)
    assert run.formings[1].cause == "1 node lost, 1 node came back"
    assert stages(run, 2) == pytest.approx([1.5, 1.0, 0.0, 0.004], abs=0.01)


def test_nodes_that_die_together_are_detected_when_the_last_of_them_is(tmp_path):
    made = Made()
    made.complete(1.0, 1, "abcd")
    made.tell(25.0, "a", "Lost", 1, lost=["b"], silent=5.0)
    made.tell(25.0, "a", "Reopened", 1, reason="1 node lost", lost=1)
    made.tell(26.0, "a", "Lost", 1, lost=["c"], silent=5.0)
    made.tell(36.0, "a", "Lost", 1, lost=["d"], silent=5.0)  # another matter
    made.complete(37.0, 2, "a")
    assert stages(told(made, tmp_path), 2) == pytest.approx([6.0, 11.0, 0.0, 0.004], abs=0.01)


# ---------------------------------------------------------------- nodes


def test_a_node_that_was_lost_is_drawn_silent_until_it_was_counted_as_lost(tmp_path):
    run = told(story(3), tmp_path)
    [victim] = [node for node in run.nodes if node.ended == "lost"]
    member, silent = victim.spans[-2:]
    assert (member.kind, silent.kind) == ("member", "silent")
    assert member.end == silent.start
    assert silent.end - silent.start == pytest.approx(5.5, abs=0.01)
    assert silent.end - run.start == pytest.approx(65.5, abs=0.01)


def test_a_node_that_was_taken_for_dead_and_came_back_goes_on(tmp_path):
    made = Made()
    for node in "ab":
        made.tell(0.0, node, "Joined")
    made.complete(1.0, 1, "ab")
    made.tell(10.0, "a", "Lost", 1, lost=["b"], silent=5.0)
    made.tell(20.0, "b", "Reopened", 1, reason="round 2 was completed without this node")
    made.tell(21.0, "b", "Joined", 1)
    run = told(made, tmp_path)
    [back] = [node for node in run.nodes if node.name == "b"]
    assert "silent" not in [span.kind for span in back.spans]
    assert "lost" in [mark.kind for mark in back.marks]


def test_a_lost_node_without_a_log_is_named(tmp_path):
    made = story(3)
    del made.lines[names(3)[2]]
    run = told(made, tmp_path)
    [node] = [node for node in run.nodes if node.name == names(3)[2]]
    assert node.ended == "lost; it has left no log"
    assert run.formings[0].missing == 1


def test_nodes_stand_in_the_order_of_their_ranks_and_who_came_later_below_them(tmp_path):
    run = told(story(3), tmp_path)
    assert [node.name for node in run.nodes] == names(5)


def test_the_lead_passes_from_one_node_to_the_next(tmp_path):
    made = Made()
    made.tell(0.0, "a", "LeaderChanged", leader="a")
    made.tell(10.0, "b", "Lost", lost=["a"], silent=4.0)
    made.tell(10.0, "b", "LeaderChanged", leader="b")
    made.tell(30.0, "b", "Closed")
    run = told(made, tmp_path)
    leads = {
        node.name: [(a - run.start, b - run.start) for a, b in node.leads] for node in run.nodes
    }
    assert leads == {
        "a": [pytest.approx((0.0, 10.0), abs=0.01)],
        "b": [pytest.approx((10.0, 30.0), abs=0.01)],
    }


def test_an_event_that_is_not_known_is_a_mark_of_its_node(tmp_path):
    made = Made()
    made.tell(0.0, "a", "Joined")
    made.tell(1.0, "a", "Admitted", step=100)
    run = told(made, tmp_path)
    assert [(mark.kind, mark.text) for mark in run.nodes[0].marks] == [("other", "Admitted")]


def test_runs_of_several_names_are_told_apart(tmp_path):
    for name, node in (("one", "a"), ("two", "b")):
        made = Made(name)
        made.tell(0.0, node, "Joined")
        made.write(tmp_path)
    assert [run.run_id for run in runs_of(read_logs([tmp_path]).lines)] == ["one", "two"]


# ---------------------------------------------------------------- clocks


def test_clocks_that_differ_are_brought_together_by_the_rounds_that_nodes_share(tmp_path):
    nodes = names(5)
    skew = {nodes[0]: -7200.0, nodes[1]: 3.7, nodes[4]: 0.03}
    run = told(story(5, skew), tmp_path)
    corrected = run.clocks.corrected
    assert corrected == {
        nodes[0]: pytest.approx(7200.0, abs=0.01),
        nodes[1]: pytest.approx(-3.7, abs=0.01),
    }
    assert stages(run, 2) == pytest.approx([5.5, 2.0, 2.0, 0.004], abs=0.05)


def test_a_clock_is_known_by_way_of_nodes_that_share_rounds_with_both(tmp_path):
    made = Made(skew={"c": 100.0})
    for number, pair in enumerate(("ab", "bc", "cd"), start=1):
        made.complete(10.0 * number, number, pair)
    run = told(made, tmp_path)
    assert run.clocks.corrected == {"c": pytest.approx(-100.0, abs=0.01)}
    assert run.clocks.alone == frozenset()


def test_differences_below_the_tolerance_are_left_as_they_are(tmp_path):
    made = Made(skew={"b": TOLERANCE / 2})
    made.complete(1.0, 1, "abc")
    assert told(made, tmp_path).clocks.corrected == {}


def test_nodes_that_wait_long_for_the_workers_store_have_no_other_clock_for_that(tmp_path):
    made = Made()
    for number in (1, 2, 3):
        for rank, node in enumerate("abc"):
            where = {"rank": rank, "world_size": 3}
            made.tell(10.0 * number + 0.001 * rank, node, "Ranked", number, **where)
            made.tell(10.0 * number + 1.0 * rank, node, "Completed", number, **where)
    assert told(made, tmp_path).clocks.corrected == {}


def test_who_shares_no_round_stands_by_its_own_clock_and_is_named(tmp_path):
    made = story(3, {names(5)[4]: 50.0})
    run = told(made, tmp_path)
    assert run.clocks.alone == {names(5)[4]}
    assert run.clocks.corrected == {}


def test_a_time_of_day_that_jumps_does_not_move_what_came_before(tmp_path):
    made = Made()
    for second in range(10):
        made.tell(float(second), "a", "Waiting", spare=True)
    made.skew["a"] = 3600.0
    made.tell(10.0, "a", "Left")
    run = told(made, tmp_path)
    assert run.end - run.start == pytest.approx(10.0)


def test_a_round_with_a_rank_twice_tells_of_two_runs_of_one_name_and_moves_no_clock(tmp_path):
    first, second = Made(), Made(skew={"c": 5.0, "d": 5.0})
    first.complete(1.0, 1, "ab")
    second.complete(1000.0, 1, "cd")
    first.lines |= second.lines
    run = told(first, tmp_path)
    assert run.clocks.ambiguous == (1,)
    assert run.clocks.corrected == {}


# ---------------------------------------------------------------- reading


def read(tmp_path: Path, data: bytes) -> Logs:
    (tmp_path / "log.jsonl").write_bytes(data)
    return read_logs([tmp_path])


def line(**changes: object) -> bytes:
    made = Made()
    made.tell(0.0, "a", "Joined")
    return (json.dumps({**json.loads(made.lines["a"][0]), **changes}) + "\n").encode()


def test_what_is_no_event_is_told_with_its_file_and_line_and_the_rest_is_read(tmp_path):
    logs = read(tmp_path, line() + b"no JSON\n" + line(at="soon") + b"\n" + line() + line()[:30])
    assert len(logs.lines) == 2
    assert logs.refused == 3
    assert [problem.line for problem in logs.problems] == [2, 3, 6]
    assert {Path(problem.file).name for problem in logs.problems} == {"log.jsonl"}
    assert all(problem.why for problem in logs.problems)


def test_a_line_without_an_end_is_not_kept_in_memory(tmp_path):
    logs = read(tmp_path, b"x" * (20 * 2**20) + b"\n" + line())
    assert len(logs.lines) == 1
    assert [problem.line for problem in logs.problems] == [1]
    assert len(logs.problems[0].why) < 100


def test_of_very_many_problems_the_first_are_told_and_all_are_counted(tmp_path):
    logs = read(tmp_path, b"?\n" * 5000)
    assert (logs.refused, len(logs.problems)) == (5000, 50)


def test_a_file_that_is_given_twice_is_read_once(tmp_path):
    read(tmp_path, line())
    logs = read_logs([tmp_path, tmp_path / "log.jsonl"])
    assert (logs.files, len(logs.lines)) == (1, 1)


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        read_logs([tmp_path / "nothing"])


@pytest.mark.parametrize("at", [0.0, 1e9])
def test_hostile_times_give_a_story_all_the_same(tmp_path, at):
    data = line(at=at, time="0001-01-01T00:00:00Z") + line(node="b", time="9999-12-31T23:59:59Z")
    data += line(event="Completed", rank=2**53, world_size=2**53, at=at)
    data += line(event="Lost", lost=["a", "<b>"], silent=1e9, at=at)
    [run] = runs_of(read(tmp_path, data).lines)
    assert run.start <= run.end
