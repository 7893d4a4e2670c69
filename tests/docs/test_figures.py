"""Figures in the documentation: none that was not measured."""

from __future__ import annotations

import json
import re

import pytest

from .pages import DOCS, ROOT, tables

BENCH = (ROOT / "bench" / "README.md").read_text()
FIGURES = {
    name: figures
    for name, figures in json.loads((DOCS / "figures.json").read_text()).items()
    if isinstance(figures, list)
}
EVERY = [(name, figure) for name, figures in FIGURES.items() for figure in figures]

# Settings, limits and targets in the page's text, which are no measurements.
SETTINGS = {"60 s", "0.3 s"}


def measured(date: str, row: str) -> str:
    """What the bench's page says in a row of the tables of a date."""
    parts = re.split(r"measured on (\d{4}-\d\d-\d\d)", BENCH, flags=re.IGNORECASE)
    rows = {cells[0]: cells[1] for cells in tables(parts[parts.index(date) + 1])}
    return rows[row]


@pytest.mark.parametrize(("plot", "figure"), EVERY)
def test_every_figure_of_a_plot_stands_in_the_row_that_it_names(plot, figure):
    cell = measured(figure["date"], figure["row"])
    # As a whole: 3.7 ms is not a part of 13.7 ms.
    assert re.search(rf"(^|; |, ){re.escape(figure['said'])}(?![\d.])", cell)
    ours = figure["series"].startswith("rdzv-")
    assert ours or figure["said"].startswith("torch")


def test_the_number_of_nodes_is_that_of_the_row():
    for _, figure in EVERY:
        assert re.search(rf"\b{figure['nodes']} nodes", figure["row"])


@pytest.mark.parametrize("plot", FIGURES)
def test_every_plot_is_drawn_and_shown(plot):
    assert 'class="rdzv-figure"' in (DOCS / f"plot-{plot}.svg").read_text()
    assert f"](plot-{plot}.svg)" in (DOCS / "performance.md").read_text()


def test_every_time_on_the_page_is_one_that_was_measured():
    page = (DOCS / "performance.md").read_text()
    times = set(re.findall(r"(?<![\d.])\d+(?:\.\d+)? m?s\b", page)) - SETTINGS
    assert len(times) > 10
    assert not {each for each in times if f"{each} " not in BENCH and f"{each};" not in BENCH}


def test_every_date_on_the_page_is_one_of_the_bench():
    page = (DOCS / "performance.md").read_text()
    dates = set(re.findall(r"\d{4}-\d\d-\d\d", page))
    assert dates
    assert dates <= set(re.findall(r"measured on (\d{4}-\d\d-\d\d)", BENCH, re.IGNORECASE))
    assert "2 cores" in page
