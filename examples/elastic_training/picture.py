"""The demo as a picture: one bar a node, and the loss on the same axis of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import matplotlib as mpl

mpl.use("Agg")  # a file is drawn, no window: works without a display

from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from demo import Demo
    from observe import Loss, Node, Span

Colour: TypeAlias = "str | tuple[float, float, float]"

# Okabe and Ito's colours, which people with any colour vision can tell apart.
ROUND_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
LIGHT_COLOURS = ("#E69F00", "#56B4E9")
KILL_COLOUR = "#D55E00"
JOIN_COLOUR = "#000000"
IDLE_COLOUR = "#E3E3E3"
BAR_HEIGHT = 0.62
DOTS: dict[str, Any] = {"color": "#333333", "linestyle": "none", "marker": "o", "markersize": 4}


def draw(demo: Demo, path: Path) -> None:
    """Write the picture of a run that is over."""
    figure, (bars, curve) = plt.subplots(
        nrows=2,
        figsize=(11, 6.8),
        sharex=True,
        height_ratios=(1.15, 1),
        layout="constrained",
    )
    figure.suptitle(
        f"An elastic job on {demo.backend}: a node is killed, another one joins", fontsize=14
    )
    draw_nodes(bars, demo)
    draw_loss(curve, demo)
    draw_marks((bars, curve), demo)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_nodes(axes: Axes, demo: Demo) -> None:
    nodes = list(demo.nodes.values())
    for row, node in enumerate(nodes):
        draw_bar(axes, row, (seconds(demo, node.began), seconds(demo, node.ended)), IDLE_COLOUR)
        for span in node.spans:
            draw_span(axes, demo, span, row)
        if node.killed:
            draw_cross(axes, seconds(demo, node.ended), row)
    axes.set_yticks(range(len(nodes)), [label_of(node) for node in nodes])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [
        Patch(color=colour_of(each.number), label=f"round {each.number}")
        for each in demo.rounds.seen
    ]
    handles.append(Patch(color=pale(ROUND_COLOURS[0]), label="pale: worker\nis starting"))
    handles.append(Patch(color=IDLE_COLOUR, label="no worker"))
    put_legend(axes, handles)


def draw_span(axes: Axes, demo: Demo, span: Span, row: int) -> None:
    began, ended = seconds(demo, span.began), seconds(demo, span.ended)
    trained = ended if span.trained_from is None else seconds(demo, span.trained_from)
    colour = colour_of(span.round)
    draw_bar(axes, row, (began, trained), pale(colour))
    draw_bar(axes, row, (trained, ended), colour)
    if ended - trained > seconds(demo, None) / 12:  # else there is no room for it
        axes.text(
            trained + seconds(demo, None) / 100,
            row,
            f"rank {span.rank} of {span.world}",
            va="center",
            color="black" if colour in LIGHT_COLOURS else "white",
            fontsize=10,
        )


def draw_bar(axes: Axes, row: int, times: tuple[float, float], colour: Colour) -> None:
    axes.barh(row, times[1] - times[0], left=times[0], height=BAR_HEIGHT, color=colour)


def draw_cross(axes: Axes, when: float, row: int) -> None:
    axes.plot(
        when,
        row,
        marker="X",
        markersize=15,
        color=KILL_COLOUR,
        markeredgecolor="white",
        zorder=5,
    )


def draw_loss(axes: Axes, demo: Demo) -> None:
    for each in demo.rounds.seen:
        lead = [span.node for span in demo.spans_of(each) if span.rank == 0]
        for name in lead:  # all ranks log the same loss of the global batch
            points = [loss for loss in demo.nodes[name].losses if loss.round == each.number]
            axes.plot(*curve_of(demo, points), color=colour_of(each.number), linewidth=2)
    held_out = [loss for node in demo.nodes.values() for loss in node.held_out]
    axes.plot(*curve_of(demo, held_out), zorder=4, **DOTS)
    axes.set_xlim(left=0, right=seconds(demo, None) * 1.01)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("loss (nats a character)")
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    line = Line2D([], [], color=ROUND_COLOURS[0], linewidth=2, label="training")
    dots = Line2D([], [], label="held out, at\neach checkpoint", **DOTS)
    put_legend(axes, [line, dots])


def curve_of(demo: Demo, points: list[Loss]) -> tuple[list[float], list[float]]:
    return [seconds(demo, point.time) for point in points], [point.loss for point in points]


def draw_marks(panels: tuple[Axes, Axes], demo: Demo) -> None:
    for node in demo.nodes.values():
        if node.killed:
            draw_mark(panels, seconds(demo, node.ended), f"{node.name} killed", KILL_COLOUR, "-")
        if node.began == demo.joined:
            draw_mark(panels, seconds(demo, node.began), f"{node.name} started", JOIN_COLOUR, "--")


def draw_mark(
    panels: tuple[Axes, Axes], when: float, text: str, colour: str, line_style: str
) -> None:
    for axes in panels:
        axes.axvline(when, color=colour, linestyle=line_style, linewidth=1.5)
    panels[0].annotate(
        text,
        (when, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=colour,
        fontweight="bold",
        fontsize=10,
    )


def label_of(node: Node) -> str:
    return f"{node.name}\n(killed)" if node.killed else node.name


def colour_of(number: int) -> str:
    return ROUND_COLOURS[(number - 1) % len(ROUND_COLOURS)]


def pale(colour: str) -> Colour:
    """The colour mixed with white: unlike transparency it looks the same on anything."""
    red, green, blue = to_rgb(colour)
    return (0.4 * red + 0.6, 0.4 * green + 0.6, 0.4 * blue + 0.6)


def seconds(demo: Demo, when: float | None) -> float:
    """A time as seconds since the start. What has no end yet lasts until the demo's."""
    return (when or demo.ended or demo.began) - demo.began


def put_legend(axes: Axes, handles: Sequence[Artist]) -> None:
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10
    )
