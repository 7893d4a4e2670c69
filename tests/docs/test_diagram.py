"""The picture of a node's life, which is drawn from the engine's table."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from rdzv.dynamic_rendezvous import phases
from rdzv.dynamic_rendezvous.phases import TRANSITIONS, Phase

from .pages import DOCS, extension

state_diagram = extension("state_diagram")


def drawn() -> ET.Element:
    return ET.fromstring(state_diagram.draw())


def test_every_phase_is_drawn_with_what_it_means():
    boxes = {each.get("data-phase"): each for each in drawn().iter() if each.get("data-phase")}
    assert set(boxes) == {phase.name for phase in Phase}
    for phase in Phase:
        assert phase.value in " ".join(boxes[phase.name].itertext())


def test_every_step_is_drawn_once_and_no_other():
    steps = [each.get("data-step") for each in drawn().iter() if each.get("data-step")]
    assert sorted(map(str, steps)) == sorted(
        f"{one.name} {other.name}" for one, other in TRANSITIONS
    )


def test_the_reason_of_every_step_is_in_the_picture():
    text = " ".join(" ".join(drawn().itertext()).split())
    for (one, other), why in TRANSITIONS.items():
        assert f"{one.name} to {other.name}: {why}" in text


@pytest.mark.parametrize(("one", "other"), list(TRANSITIONS))
def test_a_line_leaves_the_box_of_its_phase_and_ends_at_that_of_the_next(one, other):
    def at_the_edge(point, phase) -> bool:
        x, y = state_diagram.AT[phase]
        dx, dy = abs(point[0] - x), abs(point[1] - y)
        beside = dx == state_diagram._HALF_WIDTH and dy <= state_diagram._HALF_HEIGHT
        above = dy == state_diagram._HALF_HEIGHT and dx <= state_diagram._HALF_WIDTH
        return bool(beside or above)

    way = state_diagram._way(one, other)
    assert at_the_edge(way[0], one)
    assert at_the_edge(way[-1], other)


def test_a_step_that_is_new_in_the_table_is_drawn(monkeypatch):
    new = {**TRANSITIONS, (Phase.LEFT, Phase.MEMBER): "comes back from the dead"}
    monkeypatch.setattr(state_diagram, "TRANSITIONS", new)
    assert 'data-step="LEFT MEMBER"' in state_diagram.draw()


def test_the_picture_in_the_repository_is_that_of_the_table():
    again = "python docs/_ext/state_diagram.py docs/phases.svg"
    assert (DOCS / "phases.svg").read_text() == state_diagram.draw(), again
    assert phases.__name__.replace(".", "/") in (DOCS / "protocol.md").read_text()
