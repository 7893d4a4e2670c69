"""The hooks that a plugin may implement: pluggy's markers and the specifications.

A backend plugin is a module that implements ``rdzv_backend`` or ``rdzv_handler``
and is named by an entry point of the group ``rdzv.backends``, one entry for each
name that it offers::

    [project.entry-points."rdzv.backends"]
    redis = "rdzv_redis.plugin"

An extension implements ``rdzv_event``, ``rdzv_observer`` or ``rdzv_rank_policies`` and
stands in the group ``rdzv.extensions``, under a name of its choice.

A plugin says with ``rdzv_api = 1`` in its module for which version of the plugin
API (``rdzv.API_VERSION``) it was made; docs/plugin-api.md has the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rdzv.events import Event
    from rdzv.ranks import RankPolicy
    from rdzv.specs import BackendSpec, HandlerSpec

__all__ = [
    "PROJECT",
    "hookimpl",
    "hookspec",
    "rdzv_backend",
    "rdzv_event",
    "rdzv_handler",
    "rdzv_observer",
    "rdzv_rank_policies",
]

PROJECT = "rdzv"
"""The name by which pluggy tells this project's hooks from those of others."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def rdzv_backend(name: str) -> BackendSpec | None:
    """Describe the backend ``name`` of this plugin, one that runs under the engine.

    It is asked of the chosen plugin only, once a process and name, in the thread
    that first makes a handler with this backend or asks for its description. It
    must not connect to anything nor import a client library: ``create`` of the
    spec does that. Added in 0.1.

    Args:
        name: The name of the entry point that was chosen; more than one may
            lead to one module.

    Returns:
        A spec whose ``name`` is ``name``, or ``None`` where the plugin has no
        backend of that name.

    Example::

        from rdzv import BackendSpec, Parameter, RendezvousParameters, hookimpl


        def create(params: RendezvousParameters):
            from rdzv_cupboard.backend import connect  # imports the client library

            return connect(params.endpoint, params.run_id, params.get_as_seconds("wait", 5.0))


        @hookimpl
        def rdzv_backend(name):
            if name == "cupboard":
                return BackendSpec(
                    name="cupboard",
                    summary="a rendezvous on a cupboard server",
                    create=create,
                    parameters=(
                        Parameter("wait", "seconds", 5.0, help="How long a door may be locked."),
                    ),
                )
            return None
    """


@hookspec(firstresult=True)
def rdzv_handler(name: str) -> HandlerSpec | None:
    """Describe the handler ``name`` of this plugin, one that does without the engine.

    It is asked when ``rdzv_backend`` has answered ``None``, otherwise like it.
    Added in 0.1.

    Args:
        name: The name of the entry point that was chosen.

    Returns:
        A spec whose ``name`` is ``name``, or ``None`` where the plugin has no
        handler of that name.

    Example::

        from rdzv import HandlerSpec, Parameter, RendezvousParameters, hookimpl


        def create(params: RendezvousParameters):
            from rdzv_fixed.handler import FixedHandler

            return FixedHandler(params.run_id, rank=params.get_as_int("rank"))


        @hookimpl
        def rdzv_handler(name):
            if name == "fixed":
                return HandlerSpec(
                    name="fixed",
                    summary="ranks that the user gives",
                    create=create,
                    parameters=(Parameter("rank", "int", help="This node's rank, from 0."),),
                )
            return None
    """


@hookspec
def rdzv_event(event: Event) -> None:
    """Observe what happens in the runs of this process.

    It is called for every event, in order, in a thread that serves this
    observer alone: it may be slow, and it may raise (which is logged once). One
    that falls far behind misses events (which is logged once). Added in 0.1.

    Args:
        event: One of the records of ``rdzv.events``, such as ``Completed``.

    Example::

        from rdzv import hookimpl
        from rdzv.events import Completed, Lost


        @hookimpl
        def rdzv_event(event):
            if isinstance(event, Completed):
                gauge("nodes", event.world_size, run=event.run_id)
            elif isinstance(event, Lost):
                page(f"{event.run_id}: lost {', '.join(event.lost)} in round {event.round}")
    """


@hookspec
def rdzv_rank_policies() -> Sequence[RankPolicy]:  # type: ignore[empty-body]
    """Offer ways to give out ranks, to be chosen by name with the setting ``rank_policy``.

    It is asked of every extension whenever a handler is made with a policy that is
    not built in, in the thread that makes it. A policy's ``rank`` is called on the
    leader alone, in a thread of the engine, and has to be pure and quick. The
    built-in names ``sticky``, ``topology`` and ``scheduler`` are taken. Added in 0.1.

    Returns:
        The policies of this extension.

    Example::

        from rdzv import RankPolicy, hookimpl


        def by_address(nodes, leader):
            return sorted(nodes, key=lambda node: (node.address, node.seniority(leader)))


        @hookimpl
        def rdzv_rank_policies():
            return [RankPolicy("by-address", "ranks in the order of addresses", by_address)]
    """


@hookspec
def rdzv_observer() -> Callable[[Event], object] | None:
    """Make an observer for one handler, or none where there is nothing to observe.

    For extensions that are switched on by a setting, or keep something open: it
    is asked once a handler, in the thread that makes it, and must not block. What it
    returns is called as ``rdzv_event`` is. Where it returns ``None`` nothing
    runs and no event is made for it. Added in 0.1.

    Returns:
        What is to be called with each event, or ``None``.

    Example::

        import os

        from rdzv import hookimpl


        @hookimpl
        def rdzv_observer():
            path = os.environ.get("JOURNAL")
            if not path:
                return None
            journal = open(path, "a", buffering=1)
            return lambda event: print(event, file=journal)
    """
