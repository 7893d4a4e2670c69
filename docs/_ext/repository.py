"""Brings READMEs of the repository into the site, and leads links to them there.

``[rdzv-redis](../plugins/redis/README.md)`` works on GitHub. In the site the page ``rdzv-redis``
has the text of that file; the file of that name in docs/ is no more than a signpost for GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["READMES", "in_the_site"]

ROOT = Path(__file__).parents[2]

READMES = {
    "rdzv-core": "core/README.md",
    "rdzv-c10d": "plugins/c10d/README.md",
    "rdzv-redis": "plugins/redis/README.md",
    "rdzv-etcd": "plugins/etcd/README.md",
    "elastic-training": "examples/elastic_training/README.md",
    "bench": "bench/README.md",
}
"""The pages that have their text from elsewhere."""

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def in_the_site(text: str, folder: str) -> str:
    """A page's text with its links as they are in the site.

    Args:
        text: Markdown.
        folder: The folder of its file, from the root of the repository.
    """

    def led(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link["path"]))
        if path.startswith("docs/"):
            target = path.removeprefix("docs/")
        elif path in _PAGES:
            target = f"{_PAGES[path]}.md"
        elif (ROOT / path).exists():
            # Not in the site: named, so that it can be found.
            return link["text"] if link["text"].strip("`") == path else f"{link['text']} (`{path}`)"
        else:
            return link[0]  # Sphinx says that it leads nowhere.
        return f"{link['image']}[{link['text']}]({target}{link['anchor'] or ''})"

    return _LINK.sub(led, text)


_PAGES = {path: page for page, path in READMES.items()}


def read(_app: Sphinx, name: str, source: list[str]) -> None:
    """Give a page its text, when Sphinx reads it."""
    folder = "docs"
    if name in READMES:
        path = ROOT / READMES[name]
        source[0] = path.read_text(encoding="utf-8")
        folder = path.parent.relative_to(ROOT).as_posix()
    source[0] = in_the_site(source[0], folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """Say what Sphinx has to know of this extension."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
