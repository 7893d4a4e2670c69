"""A table of contents of the pages that exist: ``{pages}``, used as ``{toctree}`` is.

Sphinx complains of a page that is not there. Here it is left out: a branch may lack it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils.statemachine import StringList
from sphinx.directives.other import TocTree

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx


class Pages(TocTree):
    """A toctree without the pages that do not exist."""

    def run(self) -> list[nodes.Node]:
        lines = [str(line) for line in self.content]  # type: ignore[has-type]
        there = [line for line in lines if _page(line) in self.env.found_docs]
        self.content = StringList(there, source=self.env.docname)
        return super().run()


def _page(line: str) -> str:
    """The page of a line: its name, or a title and the name in angle brackets."""
    return line.strip().removesuffix(">").rpartition("<")[2]


def setup(app: Sphinx) -> dict[str, bool]:
    """Say what Sphinx has to know of this extension."""
    app.add_directive("pages", Pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
