"""Draws the plots of docs/performance.md from docs/figures.json.

Every figure there stands in bench/README.md, which says how it was measured and on what. Run as a
program it writes the pictures::

    python docs/_ext/plots.py docs
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter, ScalarFormatter

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

__all__ = ["NAMES", "value_of", "write"]

NAMES = ("rounds", "backends", "requests")
"""The plots, each of one list of figures."""

Figure: TypeAlias = "dict[str, Any]"

# Seen on white and on black; what is drawn in the first stands for the page's own colour.
_INK = "#010203"
_COLOURS = {
    "rdzv-c10d": "#2f8fce",
    "rdzv-redis": "#d9534f",
    "rdzv-etcd": "#3aa66a",
    "torch 2.13, c10d": "#d98a1f",
    "torch's etcd-v2": "#d98a1f",
    "torch's etcd": "#d98a1f",
}
_MARKS = {"rdzv-c10d": "o", "rdzv-redis": "s", "rdzv-etcd": "^", "torch 2.13, c10d": "D"}

# As in state_diagram: for where the picture is an image of its own.
_STYLE = (
    ".rdzv-figure { color: #1f2328 } "
    "@media (prefers-color-scheme: dark) { .rdzv-figure { color: #e6edf3 } }"
)


def value_of(said: str) -> float:
    """The number at the end of what was said of a figure; times in milliseconds.

    Raises:
        ValueError: There is none.
    """
    found = re.search(r"(\d+(?:\.\d+)?)(?: (ms|s))?$", said)
    if found is None:
        raise ValueError(f"'{said}' ends with no figure.")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def write(folder: Path) -> None:
    """Draw all plots into a folder; files that are the same already are left alone."""
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    for name in NAMES:
        text = _drawn(name, figures[name])
        path = folder / f"plot-{name}.svg"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _drawn(name: str, figures: list[Figure]) -> str:
    settings: dict[str, Any] = {
        "svg.hashsalt": name,  # the same ids at every build
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
        ),
    }
    with mpl.rc_context(cast("Any", settings)):
        size = (7, 2.4) if name == "backends" else (7, 3.4)
        picture, axes = plt.subplots(figsize=size, layout="constrained")
        _KINDS[name](axes, figures)
        written = io.StringIO()
        picture.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        plt.close(picture)
    text = written.getvalue().replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    start = text.index("<svg")
    head, _, rest = text[start:].partition(">")
    # Ids are the document's, and several pictures may be in one.
    rest = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", rest)
    rest = "\n".join(line.rstrip() for line in rest.splitlines())
    return f'{head} class="rdzv-figure" role="img"><style>{_STYLE}</style>{rest}\n'


def _curves(axes: Axes, figures: list[Figure]) -> None:
    for series in dict.fromkeys(each["series"] for each in figures):
        own = [each for each in figures if each["series"] == series]
        nodes = [each["nodes"] for each in own]
        values = [value_of(each["said"]) for each in own]
        axes.plot(nodes, values, marker=_MARKS[series], color=_COLOURS[series], label=series)
    every = sorted({each["nodes"] for each in figures})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(count) for count in every])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("nodes")
    axes.grid(alpha=0.25, color=_INK)
    axes.legend(frameon=False)


def _rounds(axes: Axes, figures: list[Figure]) -> None:
    _curves(axes, figures)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_yticks([1, 10, 100, 1000], ["1 ms", "10 ms", "100 ms", "1 s"])
    axes.set_ylabel("one round")


def _requests(axes: Axes, figures: list[Figure]) -> None:
    _curves(axes, figures)
    axes.set_ylim(0, 8)
    axes.set_ylabel("requests a node, in a round")
    axes.legend(frameon=False, ncols=3, loc="upper center")


def _bars(axes: Axes, figures: list[Figure]) -> None:
    names = [each["series"] for each in figures]
    values = [value_of(each["said"]) for each in figures]
    bars = axes.barh(names, values, color=[_COLOURS[name] for name in names], height=0.62)
    shown = [re.search(r"[\d.]+ \w+$", each["said"]) for each in figures]
    axes.bar_label(bars, [found[0] if found else "" for found in shown], padding=4)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10, 20_000)
    axes.set_xticks([10, 100, 1000, 10_000], ["10 ms", "100 ms", "1 s", "10 s"])
    axes.xaxis.set_minor_formatter(NullFormatter())


_KINDS: dict[str, Callable[[Axes, list[Figure]], None]] = {
    "rounds": _rounds,
    "backends": _bars,
    "requests": _requests,
}

if __name__ == "__main__":
    write(Path(sys.argv[1]))
