"""That the documentation names all events, fields and metrics that there are, and no others."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider

from rdzv import events
from rdzv.events import Event
from rdzv_observers import otel

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observers.md").read_text()


def fields(kind: type[Event]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_event_and_each_of_its_fields_is_in_the_table():
    classes = {name: kind for name, kind in vars(events).items() if isinstance(kind, type)}
    kinds = {n: kind for n, kind in classes.items() if issubclass(kind, Event) and n != "Event"}
    rows = re.findall(r"^\| `([A-Z]\w+)` \| [^|]* \|([^|]*)\|$", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == list(dict.fromkeys(name for name, _ in rows))
    assert {name for name, _ in rows} == set(kinds)
    for name, told in rows:
        own = set(re.findall(r"`(\w+)`", told)) - {"min_nodes", "Joined"}
        assert own == fields(kinds[name]) - fields(Event), name
    common = re.findall(
        r"^\| `([a-z_]+)` \| [^|]* \|$", PAGE.partition("| event |")[0], re.MULTILINE
    )
    assert set(common) == fields(Event)


def test_every_metric_is_in_the_readme(monkeypatch):
    text = (ROOT / "plugins" / "observers" / "README.md").read_text()
    named = re.findall(r"^\| `(rdzv\.[\w.]+)` \| (\w+)", text, re.MULTILINE)
    made: dict[str, str] = {}

    class Meter:
        def __init__(self, meter):
            self._meter = meter

        def __getattr__(self, method):
            def make(name, *rest, **more):
                made[name] = method.removeprefix("create_")
                return getattr(self._meter, method)(name, *rest, **more)

            return make

    monkeypatch.setattr(
        "opentelemetry.metrics.get_meter",
        lambda *_: Meter(MeterProvider().get_meter("rdzv")),
    )
    otel.Metrics()
    assert dict(named) == made
