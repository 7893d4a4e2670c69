"""Hypothesis as the source of a target's choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.source import Source
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EXAMPLES", "fuzzed"]

EXAMPLES = 1000


class FromHypothesis(Source):
    """Draws the choices, and so shrinks them where a target fails."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def blob(self, most: int) -> bytes:
        return self._data.draw(st.binary(max_size=most))

    def text(self, most: int) -> str:
        return self._data.draw(st.text(st.characters(), max_size=most))


def fuzzed(target: Callable[[Source], None], *, examples: int = EXAMPLES) -> None:
    """Run a target on examples, the same ones while the same modules are loaded.

    Hypothesis draws some of its numbers and texts from the constants of all of them.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        # A target may take many choices, or few.
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        target(FromHypothesis(data))

    run()
