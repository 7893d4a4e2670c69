"""Whole rounds through the real handler, on the backend under test."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rdzv import events
from rdzv.dynamic_rendezvous import SessionBackend
from rdzv.errors import RendezvousClosedError, RendezvousGracefulExitError

from .base import Contract, require
from .harness import Call, background, eventually, finished
from .nodes import node, other_node

if TYPE_CHECKING:
    from .harness import Run
    from .nodes import LocalNode, Node, Place

__all__ = ["RoundsContract", "complete", "joined", "live"]

_ATTEMPTS = 4

_GRACE = 4.0
"""Seconds by which next_rendezvous() may miss its deadline; two are promised."""


def joined(run: Run, joining: Call[Place]) -> Place:
    """The place of a node; its own ``join_timeout``, which is the limit, comes first."""
    return finished(joining, run.limit + _GRACE, "next_rendezvous()")


def settle(run: Run, *joining: Call[Place]) -> list[Place]:
    """The places of nodes that are to complete one round together."""
    places = [joined(run, each) for each in joining]
    rounds = {(place.round, place.size, place.master) for place in places}
    require(len(rounds) == 1, f"they were told of different rounds: {places}")
    ranks = sorted(place.rank for place in places)
    require(len(set(ranks)) == len(ranks), f"a rank was given twice: {places}")
    return places


def complete(run: Run, *nodes: Node, size: int | None = None) -> list[Place]:
    """Have nodes join at once, and be all of the round that completes."""
    places = settle(run, *[each.join() for each in nodes])
    wanted = len(nodes) if size is None else size
    require(places[0].size == wanted, f"a round of {wanted} nodes was due: {places}")
    return places


def live(run: Run, *nodes: Node) -> list[Place]:
    """Have nodes join round after round, as agents do, until all are in one of their number."""
    last: dict[int, Place] = {}

    def agent(number: int) -> None:
        while True:
            last[number] = nodes[number].join().result()
            nodes[number].told().result()

    agents = [background(lambda number=number: agent(number)) for number in range(len(nodes))]  # type: ignore[misc]

    def together() -> bool:
        for ended in agents:
            if ended.done():
                ended.result()
        found = {(place.round, place.size) for place in list(last.values())}
        return len(last) == len(nodes) and len(found) == 1 and found.pop()[1] == len(nodes)

    eventually(together, run.limit, f"{len(nodes)} nodes are in one round: {last}")
    return list(last.values())


def _first(run: Run, first: Node) -> Call[Place]:
    """Have a node join that is to lead: it comes before all others."""
    joining = first.join()
    client = run.client()
    if isinstance(client, SessionBackend):
        session = run.session(backend=client)
        eventually(lambda: session.read(None), run.limit, "the first node creates the document")
    else:
        eventually(client.get_state, run.limit, "the first node creates the state")
    return joining


def _led(run: Run) -> tuple[Node, list[LocalNode], list[Place]]:
    """A round of two to three that has three: who leads it, the others, and the places of all."""
    quick = {
        "keep_alive_interval": run.deployment.interval,
        "keep_alive_max_attempt": _ATTEMPTS,
    }
    # Who leads says how long a round waits for the third.
    leader = other_node(run, 2, 3, last_call_timeout=run.limit / 2, **quick)
    leads = _first(run, leader)
    others = [node(run, 2, 3, **quick) for _ in range(2)]
    places = settle(run, leads, *[each.join() for each in others])
    require(places[0].size == 3, f"a round of three was due: {places}")
    return leader, others, places


def _all_told(run: Run, *nodes: Node) -> None:
    for told in [each.told() for each in nodes]:
        finished(told, 2 * run.limit, "telling a participant that a new round is due")


class RoundsContract(Contract):
    """What a job sees of the backend."""

    group = "rounds"

    def test_nodes_form_a_round(self, run: Run) -> None:
        """Nodes form a round: ranks 0 … n-1, one size, one master, and a store they share."""
        nodes = [node(run, 3, 3) for _ in range(3)]
        places = complete(run, *nodes)
        require(sorted(place.rank for place in places) == [0, 1, 2], f"the ranks: {places}")
        stores = [each.store for each in nodes]
        if stores[0] is None or stores[1] is None:
            raise AssertionError
        stores[0].set("key", "value")
        try:
            stores[1].wait(["key"], timedelta(seconds=min(run.limit, 5.0)))
        except RuntimeError as exc:
            why = "the store that create() returns is not shared: one node does not see another's"
            raise AssertionError(why) from exc
        require(stores[1].get("key") == b"value", "the nodes' store gives another value")

    def test_the_next_round_follows(self, run: Run) -> None:
        """The same nodes form round after round, with the same ranks and growing numbers."""
        nodes = [node(run, 2, 2) for _ in range(2)]
        before = complete(run, *nodes)
        for _ in range(3):
            after = complete(run, *nodes)
            require(after[0].round > before[0].round, f"{before} was followed by {after}")
            ranks = [[place.rank for place in places] for places in (before, after)]
            require(ranks[0] == ranks[1], f"the ranks changed: {before}, then {after}")
            before = after

    def test_an_elastic_round_completes_after_the_last_call(self, run: Run) -> None:
        """With fewer than max_nodes a round completes with those who came by the last call."""
        complete(run, *(node(run, 2, 4) for _ in range(2)))

    def test_a_newcomer_waits_for_the_next_round(self, run: Run) -> None:
        """Who comes late is announced to the participants, and is in the next round."""
        early = [node(run, 2, 3) for _ in range(2)]
        complete(run, *early)
        require(not any(each.waiting() for each in early), "nodes wait before anybody came")
        late = node(run, 2, 3)
        waiting = late.join()
        _all_told(run, *early)
        places = settle(run, waiting, *[each.join() for each in early])
        require(places[0].size == 3, f"the newcomer is not in the next round: {places}")
        require(places[0].rank == 2, f"the newcomer took the rank of another: {places}")

    def test_a_spare_takes_the_place_of_one_who_leaves(self, run: Run) -> None:
        """Who comes while the round is full disturbs nobody, and replaces one who leaves."""
        nodes = [node(run, 2, 2) for _ in range(2)]
        complete(run, *nodes)
        spare = node(run, 2, 2)
        waiting = spare.join()
        _is_spare(run, spare)
        require(not any(each.waiting() for each in nodes), "a spare restarts the participants")
        nodes[1].leave()
        _all_told(run, nodes[0])
        places = settle(run, nodes[0].join(), waiting)
        require(places[0].size == 2, f"the spare is not in the next round: {places}")

    def test_a_dead_leader_is_replaced(self, run: Run) -> None:
        """The end of the leader, without a word, is noticed, and the others go on."""
        leader, others, before = _led(run)
        leader.kill()
        _all_told(run, *others)
        after = complete(run, *others)
        require(after[0].round > before[0].round, f"{before} was followed by {after}")

    def test_a_zombie_is_fenced(self, run: Run) -> None:
        """A node that slept and was replaced finds on waking that its round is over."""
        sleeper, others, before = _led(run)
        sleeper.pause()
        _all_told(run, *others)
        after = complete(run, *others)
        sleeper.wake()
        _all_told(run, sleeper)
        require(after[0].round > before[0].round, f"{before} was followed by {after}")
        places = live(run, sleeper, *others)
        require(places[0].round > after[0].round, f"{after} was followed by {places}")

    def test_a_closed_run_stays_closed(self, run: Run) -> None:
        """Once a run is closed everybody is told, and nobody can join it any more."""
        nodes = [node(run, 2, 2) for _ in range(2)]
        complete(run, *nodes)
        spare = node(run, 2, 2)
        waiting = spare.join()
        _is_spare(run, spare)
        nodes[1].close()
        _refused(run, waiting, RendezvousGracefulExitError, "a spare")
        for each in nodes:
            eventually(each.handler.is_closed, run.limit, "a participant is told of the close")
        for each in (nodes[0], node(run, 2, 2)):
            _refused(run, each.join(), RendezvousClosedError, "a node of a closed run")


def _is_spare(run: Run, spare: LocalNode) -> None:
    eventually(
        lambda: any(isinstance(e, events.Waiting) and e.spare for e in spare.heard(events.Waiting)),
        run.limit,
        "who comes while the round is full waits as a spare",
    )


def _refused(run: Run, joining: Call[Place], kind: type[Exception], who: str) -> None:
    try:
        place = joined(run, joining)
    except kind:
        return
    require(False, f"{who} has joined: {place}")
