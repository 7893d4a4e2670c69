"""Text that came from outside, made harmless."""

from __future__ import annotations

import html

__all__ = ["plain", "visible"]


def visible(text: str) -> str:
    """Return text with what cannot be seen, or would move a cursor, spelt out."""
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in text)


def plain(text: str, most: int = 80) -> str:
    """Return text for a place in HTML: escaped, shortened, and without what cannot be seen."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    return html.escape(visible(text))
