"""Draws the life of a node, as an SVG, from the table of transitions in the engine.

Where each phase stands is said here; which steps there are is the table's to say. Run as a program
it writes the picture of docs/protocol.md::

    python docs/_ext/state_diagram.py docs/phases.svg
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from rdzv.dynamic_rendezvous.phases import IN_ROUND, TRANSITIONS, Phase

__all__ = ["AT", "draw", "write"]

Point = tuple[float, float]

WIDTH, HEIGHT = 930, 784
_HALF_WIDTH, _HALF_HEIGHT = 108, 33
_COLUMN, _SIDE = 440, 762
_ROW = 112

AT: dict[Phase, Point] = {
    Phase.IDLE: (_COLUMN, 48),
    Phase.ATTACHING: (_COLUMN, 48 + _ROW),
    Phase.ENTERING: (_COLUMN, 48 + 2 * _ROW),
    Phase.WAITING: (_COLUMN, 48 + 3 * _ROW),
    Phase.SPARE: (_SIDE, 48 + 3 * _ROW),
    Phase.RANKING: (_COLUMN, 48 + 4 * _ROW),
    Phase.BOOTSTRAPPING: (_COLUMN, 48 + 5 * _ROW),
    Phase.MEMBER: (_COLUMN, 48 + 6 * _ROW),
    Phase.LEFT: (_SIDE, 48 + 6 * _ROW),
}
"""The middle of each phase's box."""

# Steps to one of these run together: each in a lane of its own.
_TO_IDLE, _TO_ENTERING, _TO_LEFT = 24, 300, 906
_SPARE_UP, _SPARE_TO_IDLE = 700, 770

# What an image element needs; in the site the page's own colours hold.
_STYLE = """
.rdzv-figure { color: #1f2328; --accent: #0b5c8a; --muted: #6a737d; --card: #ffffff;
  --soft: #e8f1f7; }
@media (prefers-color-scheme: dark) { .rdzv-figure { color: #e6edf3; --accent: #6cbcec;
  --muted: #8b949e; --card: #161b22; --soft: #17242f; } }
"""


def draw() -> str:
    """The picture.

    Raises:
        KeyError: A phase has no place in ``AT``.
    """
    parts = [
        (
            f'<svg class="rdzv-figure" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} '
            f'{HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="11.5" '
            'aria-labelledby="phases-title">'
        ),
        f"<style>{_STYLE}</style>",
        '<title id="phases-title">The phases of a node and every step between them</title>',
        "<defs>",
        *(_arrow_head(name, colour) for name, colour in _HEADS.items()),
        "</defs>",
        _group(),
    ]
    parts += [_step(one, other, why) for (one, other), why in TRANSITIONS.items()]
    parts += [_box(phase) for phase in Phase]
    parts += [_labels(), "</svg>"]
    return "\n".join(parts) + "\n"


def write(path: Path) -> None:
    """Draw it into a file, which is left alone where it is the same already."""
    text = draw()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


_HEADS = {"on": "currentColor", "back": "var(--accent)", "out": "var(--muted)"}


def _arrow_head(name: str, colour: str) -> str:
    return (
        f'<marker id="phases-{name}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0.5 L8 4 L0 7.5 z" fill="{colour}"/></marker>'
    )


def _group() -> str:
    """What is behind the phases in which a round has completed."""
    tops = [AT[phase][1] for phase in IN_ROUND]
    x, y = _COLUMN - _HALF_WIDTH - 12, min(tops) - _HALF_HEIGHT - 12
    height = max(tops) - min(tops) + 2 * _HALF_HEIGHT + 24
    return (
        f'<rect x="{x}" y="{y}" width="{2 * _HALF_WIDTH + 24}" height="{height}" rx="14" '
        'fill="var(--soft)"/>'
    )


def _box(phase: Phase) -> str:
    x, y = AT[phase]
    lines = textwrap.wrap(phase.value, 34)
    middle = y - 6 * len(lines)
    accent = phase is Phase.MEMBER
    texts = [
        (
            f'<text x="{x}" y="{middle + 4}" text-anchor="middle" font-weight="650" '
            f'font-size="13" fill="currentColor">{phase.name}</text>'
        )
    ]
    texts += [
        f'<text x="{x}" y="{middle + 20 + 14 * number}" text-anchor="middle" '
        f'fill="currentColor">{escape(line)}</text>'
        for number, line in enumerate(lines)
    ]
    return (
        f'<g data-phase="{phase.name}"><rect x="{x - _HALF_WIDTH}" y="{y - _HALF_HEIGHT}" '
        f'width="{2 * _HALF_WIDTH}" height="{2 * _HALF_HEIGHT}" rx="9" fill="var(--card)" '
        f'stroke="{"var(--accent)" if accent else "currentColor"}" '
        f'stroke-width="{2 if accent else 1.2}"/>{"".join(texts)}</g>'
    )


def _step(one: Phase, other: Phase, why: str) -> str:
    kind = "on"
    if other in (Phase.IDLE, Phase.LEFT):
        kind = "out"
    elif other is Phase.ENTERING and one not in (Phase.IDLE, Phase.ATTACHING):
        kind = "back"
    dashes = ' stroke-dasharray="4 3"' if kind == "out" else ""
    return (
        f'<path data-step={quoteattr(f"{one.name} {other.name}")} d="{_rounded(_way(one, other))}" '
        f'fill="none" stroke="{_HEADS[kind]}" stroke-width="1.3"{dashes} '
        f'marker-end="url(#phases-{kind})"><title>{one.name} to {other.name}: {escape(why)}</title>'
        "</path>"
    )


def _way(one: Phase, other: Phase) -> list[Point]:
    """The corners of the line from one phase to another."""
    (x, y), (to_x, to_y) = AT[one], AT[other]
    left, right, bottom = x - _HALF_WIDTH, x + _HALF_WIDTH, y + _HALF_HEIGHT
    to_left, to_right = to_x - _HALF_WIDTH, to_x + _HALF_WIDTH
    to_top = to_y - _HALF_HEIGHT
    if other is Phase.LEFT:
        return _out(one)
    if (one, other) == (Phase.IDLE, Phase.ENTERING):
        lane = right + 22
        return [(right, y + 12), (lane, y + 12), (lane, to_y - 14), (to_right, to_y - 14)]
    if one is Phase.SPARE and other in (Phase.IDLE, Phase.ENTERING):
        lane, port = (_SPARE_TO_IDLE, -12) if other is Phase.IDLE else (_SPARE_UP, 4)
        return [(lane, y - _HALF_HEIGHT), (lane, to_y + port), (to_right, to_y + port)]
    if one is Phase.SPARE and other is Phase.RANKING:
        return [(x, bottom), (x, to_y - 8), (to_right, to_y - 8)]
    if {one, other} == {Phase.WAITING, Phase.SPARE}:
        if one is Phase.WAITING:
            return [(right, y - 9), (to_left, y - 9)]
        return [(left, y + 9), (to_right, y + 9)]
    if other is Phase.IDLE:
        return [(left, y + 22), (_TO_IDLE, y + 22), (_TO_IDLE, to_y), (to_left, to_y)]
    if other is Phase.ENTERING and one is not Phase.ATTACHING:
        start = y + 6 if one is Phase.ENTERING else y - 8
        return [
            (left, start), (_TO_ENTERING, start), (_TO_ENTERING, to_y - 16), (to_left, to_y - 16),
        ]  # fmt: skip
    if (one, other) == (Phase.RANKING, Phase.WAITING):
        return [(x + 40, y - _HALF_HEIGHT), (x + 40, to_y + _HALF_HEIGHT)]
    if (one, other) == (Phase.WAITING, Phase.RANKING):
        return [(x - 40, bottom), (x - 40, to_top)]
    if x == to_x and to_y - y == _ROW:
        return [(x, bottom), (x, to_top)]
    # A step that came later than this picture: drawn all the same, straight.
    return [(x, y), (to_x, to_y)]


def _out(one: Phase) -> list[Point]:
    (x, y), (to_x, to_y) = AT[one], AT[Phase.LEFT]
    right, end = x + _HALF_WIDTH, to_y - _HALF_HEIGHT
    if one is Phase.MEMBER:
        return [(right, y), (to_x - _HALF_WIDTH, y)]
    # Into the box's top, not far from its right end.
    drop = to_x + _HALF_WIDTH - 30
    if one is Phase.WAITING:
        # Below the box beside it.
        under = y + _HALF_HEIGHT + 14
        corner = [(x + 85, y + _HALF_HEIGHT), (x + 85, under), (_TO_LEFT, under)]
    else:
        corner = [(right, y + 22), (_TO_LEFT, y + 22)]
    return [*corner, (_TO_LEFT, end - 22), (drop, end - 22), (drop, end)]


def _rounded(way: Sequence[Point], radius: float = 9) -> str:
    """A path through these points whose corners are round."""
    text = [f"M{way[0][0]:g} {way[0][1]:g}"]
    for before, here, after in zip(way, way[1:], way[2:], strict=False):
        (ax, ay), (bx, by) = (_towards(here, near, radius) for near in (before, after))
        text.append(f"L{ax:g} {ay:g}Q{here[0]:g} {here[1]:g} {bx:g} {by:g}")
    return "".join([*text, f"L{way[-1][0]:g} {way[-1][1]:g}"])


def _towards(start: Point, end: Point, most: float) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    part = min(most, length / 2) / length if length else 0
    return round(start[0] + dx * part, 1), round(start[1] + dy * part, 1)


_BESIDE: dict[tuple[Phase, Phase], tuple[float, float, str]] = {
    (Phase.IDLE, Phase.ATTACHING): (8, 52, "start"),
    (Phase.ATTACHING, Phase.ENTERING): (8, 60, "start"),
    (Phase.ENTERING, Phase.WAITING): (8, 60, "start"),
    (Phase.WAITING, Phase.RANKING): (-48, 52, "end"),
    (Phase.RANKING, Phase.WAITING): (48, -50, "start"),
    (Phase.RANKING, Phase.BOOTSTRAPPING): (8, 60, "start"),
    (Phase.BOOTSTRAPPING, Phase.MEMBER): (8, 52, "start"),
    (Phase.IDLE, Phase.ENTERING): (138, 60, "start"),
    (Phase.WAITING, Phase.SPARE): (161, -16, "middle"),
    (Phase.SPARE, Phase.WAITING): (-161, 25, "middle"),
    (Phase.SPARE, Phase.RANKING): (-8, 82, "end"),
    (Phase.ENTERING, Phase.ENTERING): (-150, 0, "end"),
    (Phase.WAITING, Phase.ENTERING): (-150, -14, "end"),
    (Phase.RANKING, Phase.ENTERING): (-150, -6, "end"),
    (Phase.BOOTSTRAPPING, Phase.ENTERING): (-150, -14, "end"),
    (Phase.MEMBER, Phase.ENTERING): (-150, -6, "end"),
}
"""Where the reason of a step stands, seen from the phase that it leaves."""


def _labels() -> str:
    texts = []
    for (one, other), (dx, dy, anchor) in _BESIDE.items():
        if (one, other) in TRANSITIONS:
            x, y = AT[one]
            # Narrow, where a line is on the other side.
            width = 40 if dx < -100 else 16 if dy == 52 else 30
            texts += _lines(x + dx, y + dy, TRANSITIONS[one, other], anchor, width)
    x, y = AT[Phase.IDLE]
    texts += _lines(x - 150, y - 8, TRANSITIONS[Phase.WAITING, Phase.IDLE], "end", 40)
    x, y = AT[Phase.LEFT]
    texts += _lines(x + 40, y - _HALF_HEIGHT - 30, TRANSITIONS[Phase.MEMBER, Phase.LEFT], "end", 30)
    return "\n".join(texts)


def _lines(x: float, y: float, text: str, anchor: str, width: int) -> list[str]:
    return [
        f'<text x="{x}" y="{y + 14 * number}" text-anchor="{anchor}" '
        f'fill="currentColor">{escape(line)}</text>'
        for number, line in enumerate(textwrap.wrap(text, width))
    ]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
