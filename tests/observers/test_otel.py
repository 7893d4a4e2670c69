"""The metrics, as a real SDK reads them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from rdzv.events import (
    Closed,
    Completed,
    Event,
    Failed,
    Joined,
    LastCall,
    LeaderChanged,
    Left,
    Lost,
    Ranked,
    Reopened,
    Waiting,
)
from rdzv_observers import otel
from rdzv_observers.otel import Metrics

ABOUT = {"rdzv.run_id": "run", "rdzv.backend": "c10d"}


def measured(*events: Event) -> dict[str, list[tuple[dict[str, object], object]]]:
    """What is read after these events: attributes and values, by name."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics = Metrics(provider)
    for event in events:
        metrics(event)
    data = reader.get_metrics_data()
    found: dict[str, list[tuple[dict[str, object], object]]] = {}
    for resource in data.resource_metrics if data else []:
        for scope in resource.scope_metrics:
            assert scope.scope.name == "rdzv"
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    value = point.sum if hasattr(point, "sum") else point.value
                    found.setdefault(metric.name, []).append((dict(point.attributes or {}), value))
    provider.shutdown()
    return found


def common(at: float, number: int = 1) -> dict[str, object]:
    return {"run_id": "run", "node": "n0", "round": number, "at": at, "backend": "c10d"}


def test_a_round_is_counted_and_timed():
    found = measured(
        Joined(**common(1.0, 0)),  # type: ignore[arg-type]
        LastCall(**common(1.5, 0), nodes=2, seconds=1.0),  # type: ignore[arg-type]
        Ranked(**common(2.4), rank=1, world_size=3),  # type: ignore[arg-type]
        Completed(**common(2.5), rank=1, world_size=3, seconds=1.5),  # type: ignore[arg-type]
    )
    assert found == {
        "rdzv.rounds": [(ABOUT, 1)],
        "rdzv.round": [(ABOUT, 1)],
        "rdzv.nodes": [(ABOUT, 3)],
        "rdzv.join.duration": [(ABOUT, 1.5)],
    }


@pytest.mark.parametrize(
    ("counts", "cause"),
    [
        ({"lost": 1, "arrived": 1}, "lost"),
        ({"left": 1, "arrived": 1}, "left"),
        ({"returned": 1}, "returned"),
        ({"arrived": 1}, "arrived"),
        ({}, "superseded"),
    ],
)
def test_a_re_forming_is_timed_from_the_news_to_the_next_round_with_its_cause(counts, cause):
    found = measured(
        Reopened(**common(10.0), reason="", **counts),  # type: ignore[arg-type]
        Joined(**common(11.0)),  # type: ignore[arg-type]
        Completed(**common(13.5, 2), rank=0, world_size=2, seconds=2.5),  # type: ignore[arg-type]
        # Not again by a round that this node itself has asked for.
        Completed(**common(20.0, 3), rank=0, world_size=2, seconds=2.5),  # type: ignore[arg-type]
    )
    assert found["rdzv.reopenings"] == [({**ABOUT, "rdzv.cause": cause}, 1)]
    assert found["rdzv.reform.duration"] == [({**ABOUT, "rdzv.cause": cause}, 3.5)]
    assert found["rdzv.rounds"] == [(ABOUT, 2)]


def test_losses_failures_waits_leadership_and_the_closing_are_counted():
    found = measured(
        Lost(**common(1.0), lost=("n1",), silent=5.0),  # type: ignore[arg-type]
        LeaderChanged(**common(1.0), leader="n0"),  # type: ignore[arg-type]
        Waiting(**common(2.0), spare=True),  # type: ignore[arg-type]
        Failed(**common(3.0), error="RendezvousTimeoutError: No round"),  # type: ignore[arg-type]
        Closed(**common(4.0)),  # type: ignore[arg-type]
        Left(**common(4.0)),  # type: ignore[arg-type]
    )
    assert found == {
        "rdzv.losses": [(ABOUT, 1)],
        "rdzv.detection.duration": [(ABOUT, 5.0)],
        "rdzv.leader.changes": [(ABOUT, 1)],
        "rdzv.waits": [({**ABOUT, "rdzv.spare": True}, 1)],
        "rdzv.failures": [({**ABOUT, "error.type": "RendezvousTimeoutError"}, 1)],
        "rdzv.closings": [(ABOUT, 1)],
    }


def test_it_is_on_where_the_api_is_there_and_not_switched_off(monkeypatch):
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    assert isinstance(otel.rdzv_observer(), Metrics)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert otel.rdzv_observer() is None


def test_without_the_api_it_is_idle_and_nothing_is_said():
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from rdzv_observers.otel import rdzv_observer\nassert rdzv_observer() is None"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
