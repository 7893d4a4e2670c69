"""The errors of rdzv, and their kinship with torch's errors of the same names."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BrokenPluginError",
    "DuplicateBackendError",
    "DuplicateRankPolicyError",
    "IncompatiblePluginError",
    "PluginError",
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousStateError",
    "RendezvousTimeoutError",
    "StoreGoneError",
    "UnknownBackendError",
    "UnknownRankPolicyError",
    "known_to_torch",
    "torch_compatible",
]

_TORCH_API = "torch.distributed.elastic.rendezvous.api"

E = TypeVar("E", bound="RendezvousError")


class RendezvousError(Exception):
    """The base of every error that a rendezvous raises."""


class RendezvousClosedError(RendezvousError):
    """The run is closed: nobody can join it any more."""


class RendezvousTimeoutError(RendezvousError):
    """A call did not finish by its deadline."""


class RendezvousConnectionError(RendezvousError):
    """The backend cannot be reached, or the connection to it broke."""


class StoreGoneError(RendezvousConnectionError):
    """The store's process is gone for good, and what it held with it: waiting cannot help."""


class RendezvousStateError(RendezvousError):
    """What the backend holds is not a state of this run.

    It is damaged, was written by something else or by a newer version, or its
    store lost its memory.
    """


class RendezvousGracefulExitError(RendezvousError):
    """This node was not needed: the run ended without it.

    It unwinds the stack of a spare node and tells of no failure.
    """


class PluginError(RendezvousError, ValueError):
    """The backend asked for cannot be had.

    Also a ``ValueError``, which is what torch raises for an unknown backend.
    """


class UnknownBackendError(PluginError):
    """No installed distribution offers a backend of that name."""


class DuplicateBackendError(PluginError):
    """Two installed distributions offer a backend of one name."""


class UnknownRankPolicyError(PluginError):
    """A rank policy is neither built in nor offered by an extension that is installed here."""


class DuplicateRankPolicyError(PluginError):
    """Two extensions offer a rank policy of one name."""


class IncompatiblePluginError(PluginError):
    """The plugin was made for another range of versions of the core, or another plugin API."""


class BrokenPluginError(PluginError):
    """The plugin fails to import, or does not answer as the hooks ask."""


_relatives: dict[tuple[type[Any], type[Any]], type[Any]] = {}
_relatives_lock = threading.Lock()


def torch_compatible(cls: type[E]) -> type[E]:
    """Return a class to raise that callers who catch torch's errors catch too.

    Args:
        cls: ``RendezvousError`` or a class derived from it.

    Returns:
        Where torch's rendezvous is imported in this process, a class derived
        from ``cls`` and from torch's class of the same name, or of the name of
        the nearest base of ``cls`` that torch has as well; else ``cls``. It has
        the name of ``cls``, is the same object at every call, and is pickled as
        ``cls``. torch is never imported: a caller that has not imported it
        cannot be waiting for its errors.
    """
    api = sys.modules.get(_TORCH_API)
    if api is None:
        return cls
    for base in cls.__mro__:
        if not issubclass(base, RendezvousError):
            continue
        # A module that is still being imported may not have the name yet.
        theirs = getattr(api, base.__name__, None)
        if isinstance(theirs, type) and issubclass(theirs, Exception):
            return cls if issubclass(cls, theirs) else _derive(cls, theirs)
    return cls


@contextlib.contextmanager
def known_to_torch() -> Iterator[None]:
    """Whatever of our errors leaves the block is one of torch's as well, where torch is there.

    A program that was written for torch, and torch's own agent, catch those.
    """
    try:
        yield
    except RendezvousError as exc:
        kind = torch_compatible(type(exc))
        if isinstance(exc, kind):
            raise
        raise kind(*exc.args).with_traceback(exc.__traceback__) from exc.__cause__


def _derive(cls: type[E], theirs: type[Exception]) -> type[E]:
    def reduce(self: RendezvousError) -> tuple[Any, ...]:
        # The derived class cannot be found by its name, and the process that
        # unpickles it need not have imported torch.
        return (cls, self.args, self.__dict__ or None)

    with _relatives_lock:
        derived = _relatives.get((cls, theirs))
        if derived is None:
            derived = type(
                cls.__name__,
                (cls, theirs),
                {
                    "__module__": cls.__module__,
                    "__qualname__": cls.__qualname__,
                    "__doc__": cls.__doc__,
                    "__reduce__": reduce,
                },
            )
            _relatives[cls, theirs] = derived
        return derived
