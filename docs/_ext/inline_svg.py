"""Puts our own pictures into the page itself, so that they take its colours, light or dark.

On GitHub the same pages show the files, which bring colours of their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARK = 'class="rdzv-figure"'
"""What a picture says that takes the colours of the page."""

_OWN_COLOURS = re.compile(r"<style>.*?</style>", re.DOTALL)
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)


class InlineSvg(SphinxPostTransform):
    """Replaces an image by what is in its file."""

    default_priority = 5
    formats = ("html",)

    def run(self, **_: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            uri = image["uri"]
            if not uri.endswith(".svg") or "://" in uri:
                continue
            text = Path(self.env.srcdir, uri.lstrip("/")).read_text(encoding="utf-8")
            if MARK not in text:
                continue
            drawing = _OWN_COLOURS.sub("", _HEAD.sub("", text), count=1)
            alt = nodes.fully_normalize_name(image.get("alt", "")) and image["alt"]
            html = f'<figure class="rdzv-drawing" aria-label="{_quoted(alt)}">{drawing}</figure>'
            image.replace_self(nodes.raw("", html, format="html"))


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def setup(app: Sphinx) -> dict[str, bool]:
    """Say what Sphinx has to know of this extension."""
    app.add_post_transform(InlineSvg)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
