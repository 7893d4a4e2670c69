"""``rdzv backends``: what is installed, what is wrong with it, and what one of them offers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rdzv import __version__, plugins
from rdzv.cli.app import app


@pytest.fixture
def run():
    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["backends", *arguments], env={"COLUMNS": "300"})
        assert done.exit_code == code, done.output
        return done

    return run


def listed(run, code):
    return {one["name"]: one for one in json.loads(run("--json", code=code).stdout)}


def test_backends_are_listed_and_not_imported(fake, run):
    fake.backend("apple", "apple_plugin", version="1.5", summary="grows on trees")
    row = next(line for line in run().stdout.splitlines() if line.startswith("apple"))
    assert row.split() == ["apple", "apple", "dist-apple", "1.5", "grows", "on", "trees"]
    assert listed(run, 0)["apple"] == {
        "name": "apple",
        "torchrun": "apple",
        "distribution": "dist-apple",
        "version": "1.5",
        "summary": "grows on trees",
        "problem": None,
    }
    assert not fake.imported("apple_plugin")


def test_what_is_wrong_with_one_is_said_without_importing_it(fake, run):
    fake.backend("good", "good_plugin")
    fake.module("broken.there", "raise RuntimeError")
    fake.add("gone", entries={"gone": "no_such_package.plugin"})
    fake.add("half", entries={"half": "broken.missing"})
    fake.add("whole", entries={"whole": "broken.there:thing"})
    fake.add("old", entries={"old": "good_plugin"}, requires=(f"rdzv!={__version__}",))
    fake.add("one", entries={"twice": "good_plugin"})
    fake.add("two", entries={"twice": "good_plugin"})
    found = listed(run, 1)
    said = {name: found[name]["problem"] for name in ("good", "gone", "half", "whole", "old")}
    assert said["good"] is None
    assert said["whole"] is None, "only its import would show what is wrong with it"
    assert "no_such_package.plugin is missing" in said["gone"]
    assert "broken.missing is missing" in said["half"]
    assert "is made for rdzv" in said["old"]
    assert "another distribution" in found["twice"]["problem"]
    assert not fake.imported("good_plugin")
    assert not fake.imported("broken.there")
    assert "no_such_package.plugin is missing" in run(code=1).stdout


def test_without_any_it_says_how_to_get_one(run, monkeypatch):
    monkeypatch.setattr(plugins, "_find", lambda group: [])
    assert "pip install" in run().stdout


def test_one_of_them_tells_what_it_offers(fake, run):
    fake.backend("apple", "apple_plugin")
    text = run("apple").stdout
    for part in (
        "a test backend",
        "--rdzv-backend=apple",
        "get and set alone",
        "depth",
        "patience",
    ):
        assert part in text
    told = json.loads(run("apple", "--json").stdout)
    assert told["kind"] == "backend"
    assert told["parameters"][0] == {
        "name": "depth",
        "aliases": [],
        "of": "backend",
        "type": "int",
        "choices": [],
        "default": 3,
        "unit": "",
        "secret": False,
        "help": "",
    }
    assert {one["of"] for one in told["parameters"][1:]} == {"engine"}


def test_a_handler_has_no_settings_of_the_engine(fake, run):
    fake.module(
        "pear_plugin",
        """
        from rdzv import HandlerSpec, hookimpl

        @hookimpl
        def rdzv_handler(name):
            return HandlerSpec("pear", "a whole handler", lambda params: None)
        """,
    )
    fake.add("dist-pear", entries={"pear": "pear_plugin"})
    text = run("pear").stdout
    assert "A handler of its own" in text
    assert "patience" not in text
    assert json.loads(run("pear", "--json").stdout)["parameters"] == []


@pytest.mark.parametrize("name", ["no-such-backend", "broken"])
def test_one_that_cannot_be_had_is_a_clear_error(fake, run, name):
    fake.module("broken_plugin", "raise RuntimeError('out of order')")
    fake.add("dist-broken", entries={"broken": "broken_plugin"})
    done = run(name, code=2)
    assert name in done.stderr
    assert not done.stdout


LISTING = """
import sys
from rdzv.cli import main
sys.argv[1:] = ["backends", *{more}]
try:
    main()
except SystemExit as end:
    print(*sys.modules, file=sys.stderr)
    raise
"""


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_listing_imports_neither_a_plugin_nor_what_only_other_commands_need(more):
    done = subprocess.run(
        [sys.executable, "-c", LISTING.format(more=more)],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    imported = done.stderr.split()
    heavy = {"torch", "typer", "pydantic", "rich.markdown", "pygments", "numpy", "pytest"}
    assert not heavy & set(imported)
    assert not [name for name in imported if name.startswith(("rdzv_", "redis", "grpc"))]
    # It says what the whole command says.
    whole = CliRunner().invoke(app, ["backends", *more], env={"COLUMNS": "80"})
    assert done.stdout == whole.stdout
