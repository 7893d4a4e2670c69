"""What is made from the code: hooks, commands, and that links lead somewhere."""

from __future__ import annotations

import inspect
import re

import pytest
import typer

from rdzv import hookspecs
from rdzv.cli.app import app

from .pages import DOCS, PAGES, ROOT, blocks, extension

HOOKS = {
    name: value
    for name, value in vars(hookspecs).items()
    if inspect.isfunction(value) and hasattr(value, f"{hookspecs.PROJECT}_spec")
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_says_what_it_is_for_when_it_came_and_what_its_arguments_are(name):
    text = inspect.getdoc(HOOKS[name]) or ""
    assert text, f"{name} has no docstring"
    assert re.search(r"Added in \d+\.\d+", text)
    assert "Example" in text
    arguments = text.partition("Args:")[2]
    for argument in inspect.signature(HOOKS[name]).parameters:
        assert re.search(rf"^    {argument}: ", arguments, re.MULTILINE), argument


def test_every_hook_is_on_the_page():
    # The page takes all public names of the module.
    page = (DOCS / "hooks.md").read_text()
    assert ".. automodule:: rdzv.hookspecs" in page
    assert set(HOOKS) <= set(hookspecs.__all__)
    hidden = re.findall(r":exclude-members: (.*)", page)
    assert not set(HOOKS) & set(hidden[0].split(", "))


def test_the_reference_has_every_command_with_all_its_options_and_arguments():
    root = typer.main.get_command(app)
    text = extension("command_reference").reference(root, "rdzv")
    commands = dict(root.commands.items())  # type: ignore[attr-defined]
    assert {"backends", "conformance", "simulate"} <= set(commands)
    for name, command in commands.items():
        if hasattr(command, "commands"):
            continue
        section = text.split(f"## rdzv {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            shown = parameter.opts if parameter.param_type_name != "argument" else ()
            assert all(f"`{option}`" in section for option in shown)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere_on_github(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def test_links_out_of_docs_lead_to_the_pages_of_the_site():
    repository = extension("repository")
    lead = repository.in_the_site
    assert lead("[a](../plugins/redis/README.md#keys)", "docs") == "[a](rdzv-redis.md#keys)"
    assert lead("![a](../../docs/x.svg)", "plugins/redis") == "![a](x.svg)"
    assert lead("[a](../noxfile.py)", "docs") == "a (`noxfile.py`)"
    assert lead("[a](../nothing.md)", "docs") == "[a](../nothing.md)"
    assert lead("[a](https://x/y)", "docs") == "[a](https://x/y)"


def test_a_page_whose_text_is_elsewhere_points_there():
    for page, path in extension("repository").READMES.items():
        assert (ROOT / path).is_file()
        assert f"](../{path})" in (DOCS / f"{page}.md").read_text()


def test_every_page_is_in_the_table_of_contents_and_every_entry_that_is_missing_is_known():
    listed = []
    for block in blocks("{pages}", pages=[DOCS / "index.md"]):
        entries = [line for line in block.text.splitlines() if line and line[0] != ":"]
        listed += [re.sub(r"^.*<(.*)>$", r"\1", entry) for entry in entries]
    assert len(listed) == len(set(listed))
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} <= set(listed)
