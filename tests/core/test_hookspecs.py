"""The hook specifications, and that their examples work."""

from __future__ import annotations

import inspect
import re
import textwrap

import pytest

from rdzv import hookspecs
from rdzv.events import Completed, Lost
from rdzv.specs import BackendSpec, HandlerSpec

HOOKS = [name for name in hookspecs.__all__ if name.startswith("rdzv_")]


def example(name: str) -> dict[str, object]:
    """Run the example in a hook's docstring and return what it defines."""
    text = inspect.getdoc(getattr(hookspecs, name)) or ""
    found = re.search(r"Example::\n\n(?P<code>(?:    .*\n?|\n)+)", text)
    assert found is not None
    namespace: dict[str, object] = {}
    exec(textwrap.dedent(found["code"]), namespace)
    return namespace


@pytest.mark.parametrize("name", HOOKS)
def test_each_hook_says_when_and_in_which_thread_it_is_called(name):
    text = inspect.getdoc(getattr(hookspecs, name)) or ""
    assert "thread" in text or "otherwise like it" in text
    assert "Added in" in text


@pytest.mark.parametrize(
    ("hook", "name", "kind"),
    [("rdzv_backend", "cupboard", BackendSpec), ("rdzv_handler", "fixed", HandlerSpec)],
)
def test_the_examples_of_the_plugin_hooks_return_specs(hook, name, kind):
    implementation = example(hook)[hook]
    assert callable(implementation)
    assert isinstance(implementation(name), kind)
    assert implementation("other") is None


def test_the_example_of_the_observer_hook_understands_events():
    namespace = example("rdzv_event")
    told: list[str] = []
    namespace["gauge"] = lambda name, value, run: told.append(f"{name} {value} {run}")
    namespace["page"] = told.append
    implementation = namespace["rdzv_event"]
    assert callable(implementation)
    common = {"run_id": "run", "node": "n0", "round": 3, "at": 0.0}
    implementation(Completed(**common, rank=0, world_size=2))  # type: ignore[arg-type]
    implementation(Lost(**common, lost=("n1",)))  # type: ignore[arg-type]
    assert told == ["nodes 2 run", "run: lost n1 in round 3"]
