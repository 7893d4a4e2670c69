"""OpenTelemetry metrics of a run, where ``opentelemetry-api`` is installed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rdzv import events, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import Meter, MeterProvider

    from rdzv.events import Event

__all__ = ["Metrics", "rdzv_observer"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Where the buckets of times end, unless a view says otherwise."""


@hookimpl
def rdzv_observer() -> Callable[[Event], object] | None:
    """Measure where the API is installed and not switched off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        import opentelemetry.metrics  # noqa: F401 - whether it is there
    except ModuleNotFoundError:
        return None
    return Metrics()


class Metrics:
    """Counts and times what one node sees. The metrics are listed in the README.

    Args:
        provider: Where the metrics go; the process's own by default.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        from opentelemetry import metrics

        from . import __version__

        meter = metrics.get_meter("rdzv", __version__, provider)
        self._make(meter)
        self._reopened: tuple[float, str] | None = None
        """When this node was told that its round is over, and why."""

    def _make(self, meter: Meter) -> None:
        def times(name: str, description: str) -> Callable[..., None]:
            return meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
            ).record

        def counts(name: str, unit: str, description: str) -> Callable[..., None]:
            return meter.create_counter(name, unit, description).add

        self._rounds = counts("rdzv.rounds", "{round}", "Rounds completed with this node.")
        self._round = meter.create_gauge(
            "rdzv.round", "1", "The number of the newest round with this node."
        ).set
        self._nodes = meter.create_gauge("rdzv.nodes", "{node}", "The nodes of that round.").set
        self._join = times("rdzv.join.duration", "From joining to a completed round.")
        self._reopenings = counts(
            "rdzv.reopenings", "{reopening}", "Rounds of this node that had to be formed anew."
        )
        self._reform = times(
            "rdzv.reform.duration", "From being told that a round is over to the next one."
        )
        self._losses = counts("rdzv.losses", "{node}", "Nodes that this node, leading, saw die.")
        self._detection = times("rdzv.detection.duration", "How long such nodes were silent.")
        self._leads = counts("rdzv.leader.changes", "{change}", "How often this node took over.")
        self._waits = counts("rdzv.waits", "{wait}", "How often this node came late or as a spare.")
        self._failures = counts("rdzv.failures", "{failure}", "Calls that ended with an error.")
        self._closings = counts("rdzv.closings", "{run}", "Runs that this node has closed.")

    def __call__(self, event: Event) -> None:
        about: dict[str, str | bool] = {
            "rdzv.run_id": event.run_id,
            "rdzv.backend": event.backend,
        }
        if isinstance(event, events.Completed):
            self._on_completed(event, about)
        elif isinstance(event, events.Reopened):
            cause = _cause(event)
            self._reopened = (event.at, cause)
            self._reopenings(1, {**about, "rdzv.cause": cause})
        elif isinstance(event, events.Lost):
            self._losses(len(event.lost), about)
            self._detection(event.silent, about)
        elif isinstance(event, events.LeaderChanged):
            self._leads(1, about)
        elif isinstance(event, events.Waiting):
            self._waits(1, {**about, "rdzv.spare": event.spare})
        elif isinstance(event, events.Failed):
            self._failures(1, {**about, "error.type": event.error.partition(":")[0]})
        elif isinstance(event, events.Closed):
            self._closings(1, about)

    def _on_completed(self, event: events.Completed, about: dict[str, str | bool]) -> None:
        self._rounds(1, about)
        self._round(event.round, about)
        self._nodes(event.world_size, about)
        self._join(event.seconds, about)
        if self._reopened is not None:
            began, cause = self._reopened
            self._reform(event.at - began, {**about, "rdzv.cause": cause})
            self._reopened = None


def _cause(event: events.Reopened) -> str:
    """The gravest of what happened to the round."""
    for name in ("lost", "left", "returned", "arrived"):
        if getattr(event, name):
            return name
    return "superseded"
