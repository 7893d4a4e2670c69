"""Changing a run from outside: each change is one compare-and-set of the document."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.document import SCHEMA, Document
from rdzv.dynamic_rendezvous.leader import amend
from rdzv.dynamic_rendezvous.messages import SwapDocument
from rdzv.dynamic_rendezvous.perform import forget_life, swap_document
from rdzv.dynamic_rendezvous.runtime import REAL, Runtime
from rdzv.errors import RendezvousClosedError, RendezvousConnectionError, RendezvousError

from .looking import Observer
from .status import Liveness

if TYPE_CHECKING:
    from collections.abc import Callable

    from rdzv.dynamic_rendezvous.backend import Session

    from .status import NodeStatus

__all__ = ["NodesAliveError", "close", "reset", "scale"]

_TRIES = 30
"""How often a change is tried again that others' changes were quicker than."""

_PAUSE = 0.05
"""The longest pause before that (seconds)."""

_MOST = 10**6


class NodesAliveError(RendezvousError):
    """A run cannot be reset while nodes of it live, or may live: ``nodes``."""

    def __init__(self, message: str, nodes: list[NodeStatus]) -> None:
        super().__init__(message)
        self.nodes = nodes


def close(session: Session, run_id: str, runtime: Runtime = REAL) -> bool:
    """Close a run: nobody can join it any more, and nothing undoes it but :func:`reset`.

    Workers that run go on; nodes that wait are told, and a node whose workers end or fail
    does not come back.

    Returns:
        Whether it was this call that closed it.

    Raises:
        RunNotFoundError: There is no such run.
        RendezvousConnectionError: The store cannot be reached; whether the run is closed is
            unknown.
        RendezvousStateError: The store holds what cannot be.
    """

    def closed(document: Document) -> Document | None:
        return None if document.closed else amend(document, runtime.new_id(), closed=True)

    _, now = _change(session, run_id, closed, runtime)
    return now is not None


def scale(
    session: Session,
    run_id: str,
    min_nodes: int | None = None,
    max_nodes: int | None = None,
    runtime: Runtime = REAL,
) -> tuple[Document, Document | None]:
    """Change the limits of a run; nodes take them over, whatever they were started with.

    Args:
        session: The way to it.
        run_id: The run.
        min_nodes: The fewest nodes of a round; as it is where not given.
        max_nodes: The most nodes of a round; as it is where not given.
        runtime: Clock and chance.

    Returns:
        The document as it was, and as it is now; ``None`` where nothing had to be changed.

    Raises:
        ValueError: There can be no such limits.
        RendezvousClosedError: The run is closed.
        RunNotFoundError: There is no such run.
        RendezvousConnectionError: The store cannot be reached; whether the limits were changed
            is unknown.
        RendezvousStateError: The store holds what cannot be.
    """

    def scaled(document: Document) -> Document | None:
        low, high = _limits(document, min_nodes, max_nodes)
        if document.closed:
            raise RendezvousClosedError(f"The run '{run_id}' is closed; nobody can join it.")
        if (low, high) == (document.min_nodes, document.max_nodes):
            return None
        return amend(
            document,
            runtime.new_id(),
            min_nodes=low,
            max_nodes=high,
            scaled=document.scaled + 1,
        )

    return _change(session, run_id, scaled, runtime)


def _limits(document: Document, low: int | None, high: int | None) -> tuple[int, int]:
    low = document.min_nodes if low is None else low
    high = document.max_nodes if high is None else high
    if not 1 <= low <= high <= _MOST:
        raise ValueError(
            f"min_nodes={low} and max_nodes={high} cannot be: 1 <= min_nodes <= max_nodes <= "
            f"{_MOST}. (The run has min_nodes={document.min_nodes} and "
            f"max_nodes={document.max_nodes}.)"
        )
    return low, high


def _change(
    session: Session,
    run_id: str,
    change: Callable[[Document], Document | None],
    runtime: Runtime,
) -> tuple[Document, Document | None]:
    """Replace the document until it was this that did; returns it as it was, and as it is now."""
    observer = Observer(session, run_id, runtime=runtime)
    # Asked again, since the hint at the newest one may be old.
    document, token = observer.find(observer.find()[1])
    for _ in range(_TRIES):
        new = change(document)
        if new is None:
            return document, None
        swapped = swap_document(session, SwapDocument(new, token))
        if swapped.won:
            return document, new
        document, token = swapped.document, swapped.token
        runtime.sleep(_PAUSE * runtime.random())
    raise _too_busy(run_id)


def _too_busy(run_id: str) -> RendezvousConnectionError:
    return RendezvousConnectionError(
        f"The run '{run_id}' was changed by others again and again; nothing was done. Try again."
    )


def reset(
    session: Session,
    run_id: str,
    min_nodes: int | None = None,
    max_nodes: int | None = None,
    *,
    force: bool = False,
    attempts: int = 5,
    runtime: Runtime = REAL,
) -> tuple[Document, Document]:
    """Begin another life of a run: nobody is in it, and it is open.

    A node of the life before that lives on gets a ``RendezvousStateError``. Rounds are numbered
    on from the last of the life before.

    Args:
        session: The way to it.
        run_id: The run.
        min_nodes: The fewest nodes of a round; as it was where not given.
        max_nodes: The most nodes of a round; as it was where not given.
        force: Whether to do so although nodes of it live, which it ends.
        attempts: How many beats in a row a node has to miss before it counts as lost.
        runtime: Clock and chance.

    Returns:
        The document as it was, and as it is now.

    Raises:
        NodesAliveError: Nodes of the run live, or it could not be told that they do not.
        ValueError: There can be no such limits.
        RunNotFoundError: There is no such run.
        RendezvousConnectionError: The store cannot be reached; whether the run was reset is
            unknown.
        RendezvousStateError: The store holds what cannot be.
    """
    observer = Observer(session, run_id, attempts, runtime)
    for _ in range(_TRIES):
        before = observer.read()
        low, high = _limits(before, min_nodes, max_nodes)
        if not force:
            _check_nobody_lives(observer, run_id)
        kept = min_nodes is None and max_nodes is None
        new = Document(
            schema=SCHEMA,
            epoch=runtime.new_id(),
            version=before.version + 1,
            write=runtime.new_id(),
            min_nodes=low,
            max_nodes=high,
            scaled=before.scaled if kept else 0,
            after=max(before.round, before.after),
            rank_policy=before.rank_policy,
            admission=before.admission,
        )
        if swap_document(session, SwapDocument(new, observer.token)).won:
            # It would only take room.
            with contextlib.suppress(RendezvousError):
                forget_life(session, before, observer.roster)
            return before, new
        runtime.sleep(_PAUSE * runtime.random())
    raise _too_busy(run_id)


def _check_nobody_lives(observer: Observer, run_id: str) -> None:
    observer.watch_beats(observer.enough())
    nodes = [
        node
        for node in observer.status().nodes
        if node.liveness not in (Liveness.SILENT, Liveness.GONE)
    ]
    if nodes:
        raise NodesAliveError(
            f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} of the run '{run_id}' may be alive. "
            "End them first; --force makes an end of them: each fails with a RendezvousStateError "
            "as soon as it hears of it.",
            nodes,
        )
