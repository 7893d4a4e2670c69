"""``rdzv close``, ``rdzv reset`` and ``rdzv scale`` on stores of every kind."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from rdzv import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousStateError,
    operating,
)
from rdzv.dynamic_rendezvous.backend import Session, Swap, Token

from ..groups import joining, places, refuses
from ..local_servers import LIMIT, eventually
from .conftest import roles

# ---------------------------------------------------------------- close


def test_a_closed_run_lets_nobody_in_and_sends_those_home_who_wait(run):
    handlers = run.group.formed(2, 2, 2)
    [spare] = joining(*run.group.add(1, 2, 2))
    eventually(lambda: len(run.status("--observe", "0")["nodes"]) == 3)
    assert "is closed now" in run.command("close", "--yes").stdout
    with pytest.raises(RendezvousGracefulExitError):
        spare.result(LIMIT)
    with pytest.raises(RendezvousClosedError):
        joining(*run.group.add(1, 2, 2))[0].result(LIMIT)
    eventually(handlers[0].is_closed)
    assert handlers[0].num_nodes_waiting() == 0, "workers that run go on"
    with pytest.raises(RendezvousClosedError):
        joining(handlers[0])[0].result(LIMIT)
    assert "was closed already" in run.command("close", "--yes").stdout
    found = run.status("--observe", "0")
    assert (found["closed"], found["reason"]["code"]) == (True, "CLOSED")


def test_close_asks_first(tcp):
    tcp.group.formed(1, 1, 1)
    done = tcp.command("close", code=1)
    assert "for good? [y/N]" in done.stdout
    assert not tcp.status("--observe", "0")["closed"]


# ---------------------------------------------------------------- scale


def test_a_run_that_is_scaled_up_lets_its_spares_in(run):
    handlers = run.group.formed(2, 2, 2)
    [spare] = joining(*run.group.add(1, 2, 2))
    eventually(lambda: len(run.status("--observe", "0")["nodes"]) == 3)
    said = run.command("scale", "--max", "3").stdout
    assert "has 2 to 3 nodes now; it had 2 to 2 nodes." in said
    for handler in handlers:
        eventually(handler.num_nodes_waiting)
    assert sorted(places([*joining(*handlers), spare])) == [(2, 0, 3), (2, 1, 3), (2, 2, 3)]
    assert "has 2 to 3 nodes already" in run.command("scale", "--min", "2", "--max", "3").stdout
    found = run.status("--observe", "0")
    assert (found["min_nodes"], found["max_nodes"], found["scaled"]) == (2, 3, 1)


def test_a_run_that_is_scaled_down_keeps_its_first_ranks_and_the_rest_are_spares(run):
    handlers = run.group.formed(3, 1, 3)
    by_rank = {node["rank"]: node["name"] for node in run.status("--observe", "0")["nodes"]}
    run.command("scale", "--max", "2")
    for handler in handlers:
        eventually(handler.num_nodes_waiting)
    # In whatever order they come back.
    handlers.sort(key=lambda handler: handler.node == by_rank[0])
    futures = dict(zip([h.node for h in handlers], joining(*handlers), strict=True))
    assert futures[by_rank[0]].result(LIMIT) == (2, 0, 2)
    assert futures[by_rank[1]].result(LIMIT) == (2, 1, 2)
    eventually(
        lambda: (
            roles(run.status("--observe", "0")) == [("member", 0), ("member", 1), ("spare", None)]
        )
    )
    # It is missed as any spare would be, and has its place again when there is room.
    assert not futures[by_rank[2]].done()
    run.command("scale", "--max", "3")
    members = [h for h in handlers if h.node != by_rank[2]]
    for handler in members:
        eventually(handler.num_nodes_waiting)
    assert {place[2] for place in places(joining(*members))} == {3}
    assert futures[by_rank[2]].result(LIMIT) == (3, 2, 3)


def test_who_was_started_with_the_old_numbers_takes_the_new_ones_over(tcp):
    handlers = tcp.group.formed(2, 2, 2)
    tcp.command("scale", "--max", "3")
    [late] = tcp.group.add(1, 2, 2)
    future = joining(late)[0]
    for handler in handlers:
        eventually(handler.num_nodes_waiting)
    assert {place[2] for place in places([*joining(*handlers), future])} == {3}


def test_who_comes_with_other_numbers_is_refused_where_nobody_has_scaled(tcp):
    tcp.group.formed(2, 2, 2)
    with pytest.raises(RendezvousStateError, match="Start every node of a run with the same"):
        joining(*tcp.group.add(1, 2, 3))[0].result(LIMIT)


def test_a_higher_minimum_disturbs_no_round_that_stands(tcp):
    handlers = tcp.group.formed(2, 1, 2)
    tcp.command("scale", "--min", "3", "--max", "4")
    said = tcp.command("status").stdout
    assert "Round 1 stands with 2 nodes; the next one needs 1 more." in said
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0]
    # An error names the limits that hold, not those that the node was started with.
    [late] = tcp.group.add(1, 1, 2, join_timeout=2)
    handlers[0].leave()
    eventually(handlers[1].num_nodes_waiting)
    with pytest.raises(Exception, match="needed for min_nodes=3"):
        joining(late)[0].result(LIMIT)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give --min, --max or both"),
        (["--min", "3"], "min_nodes=3 and max_nodes=2 cannot be"),
        (["--max", "0"], "min_nodes=2 and max_nodes=0 cannot be"),
        (["--min", "0"], "min_nodes=0 and max_nodes=2 cannot be"),
        (["--max", "1000001"], "cannot be"),
    ],
)
def test_limits_that_cannot_be_are_refused(tcp, options, said):
    tcp.group.formed(2, 2, 2)
    assert said in tcp.command("scale", *options, code=2).stderr
    assert tcp.status("--observe", "0")["scaled"] == 0


def test_a_closed_run_is_not_scaled(tcp):
    tcp.group.formed(1, 1, 1)
    tcp.command("close", "--yes")
    assert "is closed" in tcp.command("scale", "--max", "3", code=1).stderr


# ---------------------------------------------------------------- reset


def test_a_run_that_has_ended_begins_anew(run):
    first = run.group.formed(2, 2, 2)
    old = run.status("--observe", "0")["epoch"]
    for handler in first:
        handler.shutdown()
    assert run.status("--observe", "0")["closed"]
    said = run.command("reset", "--yes").stdout
    assert "begins anew with 2 to 2 nodes; it had ended after round 1." in said
    found = run.status()
    assert (found["round"], found["closed"], found["nodes"]) == (0, False, [])
    assert found["epoch"] != old
    # Rounds go on from those of the life before, so that none is taken for another.
    second = run.group.add(2, 2, 2)
    assert sorted(places(joining(*second))) == [(2, 0, 2), (2, 1, 2)]
    second[1].leave()
    eventually(second[0].num_nodes_waiting)
    [third] = run.group.add(1, 2, 2)
    assert sorted(places(joining(second[0], third))) == [(3, 0, 2), (3, 1, 2)]


def test_a_run_whose_nodes_live_is_not_reset_without_force(run):
    handlers = run.group.formed(2, 2, 2)

    def refused() -> bool:
        said = run.command("reset", "--yes", code=1).stderr
        return "2 nodes" in said and all(handler.node in said for handler in handlers)

    # One that is held up as it is looked at counts as silent.
    eventually(refused)
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0]
    run.command("reset", "--yes", "--force")
    # Each learns that its run is no more, and none is in the new life.
    eventually(lambda: all(refuses(handler, RendezvousStateError) for handler in handlers))
    with pytest.raises(RendezvousStateError, match="the run was reset"):
        handlers[0].num_nodes_waiting()
    assert sorted(places(joining(*run.group.add(2, 2, 2)))) == [(2, 0, 2), (2, 1, 2)]


def test_a_run_whose_nodes_were_killed_is_reset(run):
    for handler in run.group.formed(2, 2, 2):
        handler._driver.stop()
    eventually(lambda: not [n for n in run.status()["nodes"] if n["liveness"] != "silent"])
    run.command("reset", "--yes")
    assert run.status()["nodes"] == []


def test_a_new_life_may_have_other_limits(tcp):
    for handler in tcp.group.formed(2, 2, 2):
        handler.shutdown()
    tcp.command("reset", "--yes", "--min", "1", "--max", "1")
    with pytest.raises(RendezvousStateError, match="min_nodes=1 and max_nodes=1"):
        joining(*tcp.group.add(1, 2, 2))[0].result(LIMIT)
    assert places(joining(*tcp.group.add(1, 1, 1))) == [(2, 0, 1)]


def test_a_run_that_is_not_there_is_not_made_by_any_command(run):
    for command in (("close", "--yes"), ("scale", "--max", "3"), ("reset", "--yes", "--force")):
        assert "There is no run" in run.command(*command, code=1).stderr
    with contextlib.closing(run.access().reader()) as session:
        assert session.read(None) is None


# ---------------------------------------------------------------- other writers


class Losing:
    """A session whose first compare-and-sets somebody else is quicker than."""

    def __init__(self, session: Session, other: Session, often: int) -> None:
        self._session = session
        self._other = other
        self.often = often

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def swap(self, document: bytes, token: Token) -> Swap:
        if self.often:
            self.often -= 1
            found = self._other.read(None)
            assert found is not None
            newer = found[0].replace(b'"write":"', b'"write":"a')
            assert self._other.swap(newer, found[1]).won
        return self._session.swap(document, token)


def losing(run, often: int) -> Any:
    return Losing(run.access().writer(), run.access().writer(), often)


@pytest.mark.parametrize("kind", ["get and set", "sessions"])
def test_a_change_is_tried_again_where_others_are_quicker(make, kind):
    run = make(kind)
    run.group.formed(1, 1, 1)
    session = losing(run, 3)
    assert operating.close(session, run.name)
    assert session.often == 0


def test_a_change_that_others_are_always_quicker_than_is_given_up(make):
    run = make("sessions")
    run.group.formed(1, 1, 1)
    with pytest.raises(RendezvousConnectionError, match="nothing was done"):
        operating.scale(losing(run, 10**6), run.name, 1, 5)
