"""The records with which a plugin describes what it offers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import Store

    from rdzv.api import RendezvousHandler, RendezvousParameters
    from rdzv.diagnosis import Diagnosis
    from rdzv.dynamic_rendezvous.backend import RendezvousBackend

__all__ = [
    "ENGINE_PARAMETERS",
    "BackendSpec",
    "HandlerSpec",
    "Parameter",
    "ParameterType",
]

ParameterType = Literal["bool", "int", "float", "str", "seconds"]

_BACKEND_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Parameter:
    """One setting that a user may give in ``--rdzv-conf`` or as a keyword argument.

    Attributes:
        name: A Python identifier, as it stands in front of the ``=``.
        type: What a value must be. ``"seconds"`` is a time in seconds, zero or
            more; fractions are accepted, units such as ``30s`` are not.
        default: The value that holds when none is given; ``None`` where the
            plugin finds one out or where the setting must be given (say which
            in ``help``). For people and the reference: the plugin applies it.
        unit: The unit of a number, ``"s"`` for seconds if left out there.
        help: One sentence on what it does.
        secret: Whether the value must not be shown.
        aliases: Other names of the same setting.
        choices: The values that are accepted, where they can be listed.

    Raises:
        ValueError: A field is not as described.
    """

    name: str
    type: ParameterType
    default: bool | int | float | str | None = None
    unit: str = ""
    help: str = ""
    secret: bool = False
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases):
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(
                    f"The parameter name {name!r} is no Python identifier; users give parameters "
                    "as keyword arguments."
                )
        if self.type not in get_args(ParameterType):
            raise ValueError(
                f"The parameter '{self.name}' has the type {self.type!r}; it must be one of "
                f"{', '.join(get_args(ParameterType))}."
            )
        if self.choices and self.type != "str":
            raise ValueError(f"The parameter '{self.name}' has choices and is no 'str'.")
        if self.default is not None and not self._fits(self.default):
            shown = "***" if self.secret else repr(self.default)
            raise ValueError(
                f"The default {shown} of the parameter '{self.name}' is no '{self.type}'"
                + (f" out of {', '.join(self.choices)}." if self.choices else ".")
            )
        if self.type == "seconds" and not self.unit:
            object.__setattr__(self, "unit", "s")

    def _fits(self, value: object) -> bool:
        if self.type == "bool":
            return isinstance(value, bool)
        if self.type == "str":
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if isinstance(value, bool):
            return False
        if self.type == "int":
            return isinstance(value, int)
        return isinstance(value, (int, float)) and (self.type != "seconds" or value >= 0)


@dataclass(frozen=True)
class BackendSpec:
    """A backend for the dynamic handler, as ``rdzv_backend`` returns it.

    Attributes:
        name: The name that users choose it by.
        summary: One line on what it is.
        create: Connects: takes the ``RendezvousParameters`` of a run and returns
            the backend and the ``torch.distributed.Store`` that the run's agents
            share. It imports the client library; nothing before it does.
        parameters: The settings that it reads. Those of the engine
            (``ENGINE_PARAMETERS``) are known without being listed.
        capabilities: What the backend offers beyond get and set.
        guarantees: What a user can rely on, a sentence each.
        diagnose: Tells ``rdzv doctor`` where and how to look, given the parameters of a run. It
            connects to nothing itself, and raises ``ValueError`` where they are malformed.
            Without it the doctor knows no more than the endpoint.

    Raises:
        ValueError: A field is not as described.
    """

    name: str
    summary: str
    create: Callable[[RendezvousParameters], tuple[RendezvousBackend, Store]]
    parameters: tuple[Parameter, ...] = ()
    capabilities: frozenset[str] = field(default_factory=frozenset)
    guarantees: tuple[str, ...] = ()
    diagnose: Callable[[RendezvousParameters], Diagnosis] | None = None

    def __post_init__(self) -> None:
        _check_spec(self.name, self.summary, self.create, self.parameters, ENGINE_PARAMETERS)


@dataclass(frozen=True)
class HandlerSpec:
    """A whole handler that does without the engine, as ``rdzv_handler`` returns it.

    Attributes:
        name: The name that users choose it by.
        summary: One line on what it is.
        create: Takes the ``RendezvousParameters`` of a run and returns a
            ``RendezvousHandler`` whose ``get_backend()`` is ``params.backend``.
        parameters: The settings that it reads, all of them.

    Raises:
        ValueError: A field is not as described.
    """

    name: str
    summary: str
    create: Callable[[RendezvousParameters], RendezvousHandler]
    parameters: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        _check_spec(self.name, self.summary, self.create, self.parameters, ())


def _check_spec(
    name: str,
    summary: str,
    create: object,
    parameters: tuple[Parameter, ...],
    reserved: tuple[Parameter, ...],
) -> None:
    if not isinstance(name, str) or not _BACKEND_NAME.fullmatch(name):
        raise ValueError(
            f"The backend name {name!r} must consist of letters, digits, '.', '_' and '-'."
        )
    if not isinstance(summary, str) or not summary or "\n" in summary:
        raise ValueError(f"The summary of the backend '{name}' must be one line of text.")
    if not callable(create):
        raise ValueError(f"'create' of the backend '{name}' cannot be called.")
    if not isinstance(parameters, tuple) or not all(isinstance(p, Parameter) for p in parameters):
        raise ValueError(f"The parameters of the backend '{name}' must be a tuple of Parameter.")
    seen: set[str] = {alias for p in reserved for alias in (p.name, *p.aliases)}
    for known in (alias for p in parameters for alias in (p.name, *p.aliases)):
        if known in seen:
            raise ValueError(
                f"The backend '{name}' declares the parameter '{known}' twice, or the engine has "
                "it already."
            )
        seen.add(known)


ENGINE_PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "join_timeout",
        "seconds",
        600.0,
        help="How long a node waits for a round to complete.",
    ),
    Parameter(
        "last_call_timeout",
        "seconds",
        30.0,
        help="How much longer a round stays open for more nodes once the minimum is there.",
    ),
    Parameter(
        "close_timeout",
        "seconds",
        30.0,
        help="How long closing the run or leaving it may take.",
    ),
    Parameter(
        "heartbeat_timeout",
        "seconds",
        5.0,
        help="How long the first is_closed() or num_nodes_waiting() may take; beats have none.",
        aliases=("heartbeat",),
    ),
    Parameter(
        "keep_alive_interval",
        "seconds",
        1.0,
        help="The time between two signs of life of a node.",
    ),
    Parameter(
        "keep_alive_max_attempt",
        "int",
        5,
        help="How many signs of life in a row must be missing before a node counts as lost.",
    ),
    Parameter(
        "patience",
        "seconds",
        60.0,
        help="How long an outage of the backend may last before a healthy node gives up.",
    ),
    Parameter(
        "rank_policy",
        "str",
        "sticky",
        help="How ranks are given out, the same on all nodes: sticky, topology, scheduler, or the "
        "name of one that an extension offers.",
    ),
    Parameter(
        "labels",
        "str",
        help="Where this node stands, outermost first, such as rack:r1/nvlink:d3; "
        "the environment variable RDZV_LABELS if left out.",
    ),
    Parameter(
        "node_number",
        "int",
        help="This node's number for rank_policy=scheduler; what Slurm or Kubernetes say if left "
        "out.",
    ),
    Parameter(
        "admission",
        "str",
        "immediate",
        help="Whether nodes that arrive are let in at once, or when workers have reached a "
        "checkpoint.",
        choices=("immediate", "deferred"),
    ),
)
"""The settings that the engine reads, whatever the backend."""
