"""What a user sets: how long things may take, how many nodes, how liveness is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, get_args

from .document import Admission

__all__ = ["RendezvousSettings", "RendezvousTimeout", "check"]


class RendezvousTimeout:
    """How long the parts of a rendezvous may take.

    Args:
        join: Within which a round has to complete (600 s by default).
        last_call: How long to wait for more nodes once ``min_nodes`` are here (30 s).
        close: Within which the run has to be closed (30 s).
        heartbeat: Within which a sign of life has to be taken by the store (5 s).
            Kept for torch's callers: here a beat has no deadline of its own, see
            ``patience``.

    Raises:
        ValueError: A time is not positive.
    """

    _DEFAULTS: ClassVar[dict[str, timedelta]] = {
        "join": timedelta(seconds=600),
        "last_call": timedelta(seconds=30),
        "close": timedelta(seconds=30),
        "heartbeat": timedelta(seconds=5),
    }

    def __init__(
        self,
        join: timedelta | None = None,
        last_call: timedelta | None = None,
        close: timedelta | None = None,
        heartbeat: timedelta | None = None,
    ) -> None:
        self._join = self._checked("join", join)
        self._last_call = self._checked("last_call", last_call)
        self._close = self._checked("close", close)
        self._heartbeat = self._checked("heartbeat", heartbeat)

    @classmethod
    def _checked(cls, name: str, value: timedelta | None) -> timedelta:
        if value is None:
            return cls._DEFAULTS[name]
        if value <= timedelta(0):
            raise ValueError(
                f"The {name} timeout ({name}_timeout) is {value.total_seconds():g} s; it must be "
                "positive."
            )
        return value

    @property
    def join(self) -> timedelta:
        """Within which a round has to complete."""
        return self._join

    @property
    def last_call(self) -> timedelta:
        """How long to wait for more nodes once ``min_nodes`` are here."""
        return self._last_call

    @property
    def close(self) -> timedelta:
        """Within which the run has to be closed."""
        return self._close

    @property
    def heartbeat(self) -> timedelta:
        """Within which a sign of life has to be taken by the store."""
        return self._heartbeat


@dataclass(repr=False, eq=False, frozen=True)
class RendezvousSettings:
    """What a handler was made with.

    Attributes:
        run_id: The run.
        min_nodes: The fewest nodes of a round.
        max_nodes: The most nodes of a round.
        timeout: How long the parts of a rendezvous may take.
        keep_alive_interval: The time between two signs of life.
        keep_alive_max_attempt: How many of them in a row have to be missed before
            a node counts as lost.
        admission: ``"immediate"``, or ``"deferred"``: nodes that arrive wait until workers
            have reached a checkpoint.
    """

    run_id: str
    min_nodes: int
    max_nodes: int
    timeout: RendezvousTimeout
    keep_alive_interval: timedelta
    keep_alive_max_attempt: int
    admission: Admission = "immediate"


def check(settings: RendezvousSettings, patience: float) -> None:
    """Refuse settings that are out of their range, with a ``ValueError``."""
    if not settings.run_id:
        raise ValueError("The run id must be a non-empty string.")
    if settings.min_nodes < 1:
        raise ValueError(f"min_nodes is {settings.min_nodes}; it must be 1 or more.")
    if settings.max_nodes < settings.min_nodes:
        raise ValueError(
            f"max_nodes is {settings.max_nodes}; it must be min_nodes ({settings.min_nodes}) or "
            "more."
        )
    if settings.keep_alive_interval <= timedelta(0):
        raise ValueError(
            f"keep_alive_interval is {settings.keep_alive_interval.total_seconds():g} s; it must "
            "be positive."
        )
    if settings.keep_alive_max_attempt < 2:
        raise ValueError(
            f"keep_alive_max_attempt is {settings.keep_alive_max_attempt}; it must be 2 or more, "
            "since one late beat is no death."
        )
    if settings.admission not in get_args(Admission):
        raise ValueError(
            f"admission is {settings.admission!r}; it must be one of "
            f"{', '.join(get_args(Admission))}."
        )
    if patience <= 0:
        raise ValueError(f"patience is {patience:g} s; it must be positive.")
