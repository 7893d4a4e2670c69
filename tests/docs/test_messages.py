"""Troubleshooting quotes messages as the code has them."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from .pages import DOCS, ROOT, tables

PAGE = (DOCS / "troubleshooting.md").read_text()

VARIABLE = "\0"
"""Stands for what is put into a message."""

# Others' messages, which the page says to be others'.
FOREIGN = {"The rendezvous backend '…' is not registered", "NOSCRIPT"}


@functools.cache
def texts() -> str:
    """Every text in the sources, one a line, with its parts joined as they are when it is shown."""
    found = []
    for path in (*ROOT.glob("core/src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_part(each) for each in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # As logging puts it together.
                found.append(re.sub(r"%(?:\.\d)?[sdf]", VARIABLE, node.value))
    lines = (" ".join(text.split()) for text in found)
    # The quotes may be put around by "!r".
    return "\n".join(line.replace(f"'{VARIABLE}'", VARIABLE) for line in lines)


def _part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else VARIABLE


def messages() -> list[str]:
    """What the first cell of a row quotes as the whole of a message or a part of one."""
    quoted = []
    for cells in tables(PAGE):
        quoted += re.findall(r"^`([^`]{12,})`", cells[0])
    quoted += re.findall(r"`(This process hosts [^`]+)`|`(is rank [^`]+)`", PAGE) and [
        "This process hosts the store of the run on port …",
        "is rank … of … in round …",
    ]
    return [each for each in dict.fromkeys(quoted) if each not in FOREIGN]


def occurs(message: str) -> bool:
    """Whether one text of the code has what is fixed in a message, in its order."""
    parts = [part.strip(" ") for part in message.replace("'…'", "…").split("…")]
    return any(_has(line, parts) for line in texts().splitlines())


def _has(line: str, parts: list[str]) -> bool:
    place = 0
    for part in parts:
        place = line.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_stands_in_the_code(message):
    # A long message is put together from several texts: each sentence may be of another one.
    whole = occurs(message)
    sentences = re.split(r"(?<=[.:]) (?=[A-Z'])", message)
    assert whole or all(occurs(each) for each in sentences)


def test_a_message_that_is_not_in_the_code_is_noticed():
    assert not occurs("The store has not answered for … minutes")
    assert occurs("The store has not answered for … s")


def test_the_messages_are_many():
    assert len(messages()) > 40


@pytest.mark.parametrize(
    "kind", ["RendezvousTimeoutError", "RendezvousConnectionError", "RendezvousStateError",
             "RendezvousClosedError"],
)  # fmt: skip
def test_what_a_job_waits_for_is_at_the_top_and_every_kind_of_error_has_an_answer(kind):
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert headings[0] == "My job waits forever"
    raised = {
        "RendezvousTimeoutError": "No round of the run",
        "RendezvousConnectionError": "The store has not answered for",
        "RendezvousStateError": "does not hold what rdzv writes there",
        "RendezvousClosedError": "is closed: its workers have succeeded",
    }
    assert raised[kind] in PAGE


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"])
def test_a_job_that_waits_is_one_link_away_from_the_first_screen(page):
    first = "\n".join(page.read_text().splitlines()[:20])
    assert re.search(
        r"\[My job waits forever\]\((docs/)?troubleshooting.md#my-job-waits-forever\)", first
    )
