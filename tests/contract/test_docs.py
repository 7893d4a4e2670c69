"""That the backends that docs/conformance.md has an author write pass the kit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def code() -> dict[str, str]:
    """The files that the page shows; each block names its own in the first line."""
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return dict(blocks)


def changes() -> list[list[tuple[str, str]]]:
    """What the page has an author change in plugin.py: for each backend, lines and new lines."""
    blocks = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    pairs = re.compile(r"((?:^-.*\n)+)((?:^\+.*\n)+)", re.MULTILINE)
    lines = re.compile(r"^[-+]", re.MULTILINE)
    return [[(lines.sub("", old), lines.sub("", new)) for old, new in pairs.findall(block)]
            for block in blocks]  # fmt: skip


@pytest.fixture
def project(tmp_path):
    """What the page shows, as files and as the metadata of an installed distribution."""
    for name, text in code().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    metadata = tmp_path / "src" / "rdzv_sqlite-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rdzv-sqlite\nVersion: 0.1.0\n")
    (entry,) = re.findall(r"^sqlite = \"(\S+)\"$", code()["pyproject.toml"], re.MULTILINE)
    (metadata / "entry_points.txt").write_text(f"[rdzv.backends]\nsqlite = {entry}\n")
    return tmp_path


# The whole contract on all three takes two minutes.
FIRST = "nodes_form or no_state or nothing_is_left or token or bytes or written"
WATCHING = "declared or a_change_by or already_ends"
ROSTER = (
    "declared or nodes_form or no_state or similar or ticket or record or beats or piece or"
    " document or forgotten or epoch"
)


@pytest.mark.parametrize(
    ("change", "tests"),
    [(None, FIRST), (0, WATCHING), (1, ROSTER)],
    ids=["get and set", "watch", "roster"],
)
def test_the_backends_of_the_page_keep_what_they_promise(project, change, tests):
    plugin = project / "src" / "rdzv_sqlite" / "plugin.py"
    for old, new in [] if change is None else changes()[change]:
        assert plugin.read_text().count(old) == 1
        plugin.write_text(plugin.read_text().replace(old, new))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
         "--rootdir", str(project), "-k", tests, str(project / "test_sqlite.py")],
        check=False, capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": str(project / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "not checked" not in done.stdout


def test_the_distribution_of_the_page_says_which_folder_it_packs():
    (folder,) = re.findall(r"^packages = \[\"(\S+)\"\]$", code()["pyproject.toml"], re.MULTILINE)
    assert f"{folder}/plugin.py" in code()


def test_the_first_backend_of_the_page_is_small():
    assert len(code()["src/rdzv_sqlite/backend.py"].splitlines()) <= 42
