"""Many runs on one server, and what is left of one that is over."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .base import Contract, require
from .harness import Run, each, eventually
from .nodes import node
from .rounds import complete
from .state import first_of, written

if TYPE_CHECKING:
    from .nodes import LocalNode

__all__ = ["RunsContract"]

_SUFFIXES = ("", "-2", "/", "/document", "/state", "/state/1", ".", " ", "%2F", ":", "*", "ü", "\n")
"""Names that a backend might take for one another, or for parts of each other."""


class RunsContract(Contract):
    """Runs do not see each other, and leave nothing behind."""

    group = "runs"

    def test_runs_with_similar_names_are_apart(self, run: Run) -> None:
        """Runs with whatever similar names do not see each other's state or roster."""
        with ExitStack() as stack:
            names = [run.id + suffix for suffix in (*_SUFFIXES, "-" * 200)]
            names += [run.id.upper(), f"x/{run.id}"]
            runs = [stack.enter_context(Run(run.deployment, name)) for name in names]
            clients = [one.client() for one in runs]
            tokens = []
            for one, client in zip(runs, clients, strict=True):
                require(client.get_state() is None, f"the new run {one.id!r} has a state")
                tokens.append(written(client, one.id.encode()))
            for one, client, token in zip(runs, clients, tokens, strict=True):
                state = first_of(client)[0]
                require(state == one.id.encode(), f"the run {one.id!r} has the state {state!r}")
                written(client, b"again", token)
            if "roster" in run.deployment.spec.capabilities:
                for one, client in zip(runs, clients, strict=True):
                    session = one.session(backend=client)
                    # A backend may keep both in one place: the engine uses the one or the other.
                    found = session.read(None) or (b"again", None)
                    require(found[0] == b"again", f"the new run {one.id!r} has another's document")
                    swap = session.swap(one.id.encode(), found[1])
                    require(swap.won, f"the first document of {one.id!r} lost: {swap}")
                    ticket = session.enter(b"x")
                    require(ticket == 1, f"the first ticket of {one.id!r} is {ticket}")

    def test_rounds_of_many_runs_are_apart(self, run: Run) -> None:
        """Rounds of many runs at once form with their own nodes, and one that ends ends alone."""
        with ExitStack() as stack:
            runs = [stack.enter_context(Run(run.deployment)) for _ in range(4)]
            nodes = [[node(one, 2, 2) for _ in range(2)] for one in runs]

            def form(number: int) -> None:
                complete(runs[number], *nodes[number])

            each(range(4), form, run.limit, "rounds of four runs")
            nodes[0][0].close()
            each(range(1, 4), form, run.limit, "rounds of the others")
            closed = [both[0].handler.is_closed() for both in nodes[1:]]
            require(not any(closed), "the close of one run has closed others")

    def test_no_connection_outlives_its_node(self, run: Run) -> None:
        """Nodes that have left and were dropped leave no connection open."""
        with run.deployment.trouble() as (deployment, faults):
            require(faults.connections == 0, "there are connections before there is a node")
            with Run(deployment) as inner:
                nodes: list[LocalNode] = [node(inner, 2, 2) for _ in range(2)]
                complete(inner, *nodes)
                nodes[0].close()
                for one in nodes:
                    one.leave()
            del one, nodes, inner

            def closed() -> bool:
                gc.collect()
                return faults.connections == 0

            eventually(closed, run.limit, "all connections of nodes that have left are closed")

    def test_nothing_is_left_of_a_run_that_is_over(self, run: Run) -> None:
        """Once a run is closed and all have left, nothing of it stays that does not expire."""
        leftovers = run.deployment.out_of_band("leftovers")
        run_id = run.id + "-over"
        with Run(run.deployment, run_id) as inner:
            nodes: list[LocalNode] = [node(inner, 2, 2) for _ in range(2)]
            complete(inner, *nodes)
            complete(inner, *nodes)
            nodes[0].close()
            for one in nodes:
                one.leave()
        del one, nodes, inner
        left: list[str] = []

        def nothing() -> bool:
            gc.collect()
            left[:] = leftovers(run_id)
            return not left

        try:
            eventually(nothing, min(run.limit, 5.0), "nothing is left")
        except AssertionError:
            require(False, f"of a run that is over the store keeps {', '.join(left[:5])}")
