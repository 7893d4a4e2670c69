"""``rdzv new-plugin``: what it writes works as it is, and nothing is ever overwritten."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rdzv.cli.app import app


def new_plugin(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["new-plugin", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def python(*arguments: str, site: Path, cwd: Path) -> str:
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, check=False, capture_output=True, text=True,
        timeout=200, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A new distribution, and where its wheel is installed."""
    folder = tmp_path_factory.mktemp("generated")
    project, site = folder / "work" / "rdzv-tool-box", folder / "site"
    new_plugin("tool_box", "--directory", str(project))
    python(
        *("-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"),
        *("--disable-pip-version-check", "--target", str(site), "."),
        site=site, cwd=project,
    )  # fmt: skip
    return project, site


def test_the_wheel_brings_the_backend_and_its_types(generated: tuple[Path, Path]) -> None:
    project, site = generated
    installed = {str(path.relative_to(site)) for path in site.glob("rdzv_tool_box/*.*")}
    assert {"rdzv_tool_box/backend.py", "rdzv_tool_box/py.typed"} <= installed
    command = ("-m", "rdzv.cli", "backends", "tool_box", "--json")
    told = json.loads(python(*command, site=site, cwd=project))
    assert told["torchrun"] == "tool_box"
    assert told["kind"] == "backend"


def test_a_backend_of_get_and_set_has_at_most_40_lines(generated: tuple[Path, Path]) -> None:
    text = (generated[0] / "src" / "rdzv_tool_box" / "backend.py").read_text()
    assert len(text.splitlines()) <= 40


@pytest.mark.timeout(250)
def test_its_own_tests_hold_the_conformance_kit_and_real_agents(
    generated: tuple[Path, Path],
) -> None:
    project, site = generated
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", site=site, cwd=project)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) ([a-z ]+?)(?:,| in )", said)}
    # All that needs a proxy before a server with a port, and nothing else.
    assert counts["not checked"] == 4, said
    assert counts["passed"] >= 30, said
    assert counts["xfailed"] == 1, said


@pytest.mark.timeout(250)
def test_it_is_clean_by_its_own_strict_tools(generated: tuple[Path, Path]) -> None:
    project, site = generated
    for tool in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)):
        pytest.importorskip(tool[0])
        python("-m", *tool, site=site, cwd=project)


def test_all_that_a_distribution_needs_is_there(tmp_path: Path) -> None:
    project = tmp_path / "new"
    new_plugin("cupboard", "--directory", str(project))
    files = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    for name in (".github/workflows/tests.yml", ".gitignore", "CHANGELOG.md", "LICENSE"):
        assert name in files
    for name in files - {"LICENSE", ".github/workflows/tests.yml"}:
        assert "$" not in (project / name).read_text(errors="replace"), name
    assert "${{ matrix.python }}" in (project / ".github/workflows/tests.yml").read_text()


@pytest.mark.parametrize(
    "name", ["", "Tool", "tool-box", "2tools", "_tools", "tools_", "a__b", "class", "../x", "tööl"]
)
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    assert "cannot be the name" in new_plugin(name, "--directory", str(tmp_path / "x"), code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["c10d", "etcd_v2", "static", "rdzv"])
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    new_plugin(name, "--directory", str(tmp_path / "x"), code=2)
    assert not list(tmp_path.iterdir())


def test_the_name_of_an_installed_backend_is_refused_and_its_distribution_named(
    fake, tmp_path: Path
) -> None:
    fake.backend("apple-pie", "apple_plugin", version="1.5")
    said = new_plugin("apple_pie", "--directory", str(tmp_path / "x"), code=2)
    assert "dist-apple-pie 1.5" in said
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    assert "is there already" in new_plugin("cupboard", "--directory", str(tmp_path), code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_written_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = str(tmp_path / "file" / "x")
    assert "file" in new_plugin("cupboard", "--directory", target, code=2)
