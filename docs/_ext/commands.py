"""``{commands}``: the reference of the ``rdzv`` command, from the command itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from command_reference import reference
from sphinx.util.docutils import SphinxDirective

from rdzv.cli.app import app as rdzv

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx


class Commands(SphinxDirective):
    """Describes each command, in the order in which ``rdzv --help`` has them."""

    def run(self) -> list[nodes.Node]:
        root = typer.main.get_command(rdzv)
        return self.parse_text_to_nodes(reference(root, "rdzv"), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Say what Sphinx has to know of this extension."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
