"""That what docs/writing-a-backend.md has an author do works, word by word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rdzv.cli.app import app
from rdzv_redis import RedisServer

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-backend.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def code() -> dict[str, str]:
    """The files that the page shows; each block names its own in the first line."""
    found = [block.partition("\n") for block in blocks("python")]
    return {first.removeprefix("# "): rest for first, _, rest in found}


def changes() -> list[list[tuple[str, str]]]:
    """What the page has an author change in plugin.py: for each backend, lines and new lines."""
    pairs = re.compile(r"((?:^-.*\n)+)((?:^\+.*\n)+)", re.MULTILINE)
    lines = re.compile(r"^[-+]", re.MULTILINE)
    return [[(lines.sub("", old), lines.sub("", new)) for old, new in pairs.findall(block)]
            for block in blocks("diff")]  # fmt: skip


def commands(program: str) -> list[list[str]]:
    """The page's command lines that begin with a program."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(program)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """What the page has an author generate, and the metadata of an installed distribution."""
    monkeypatch.chdir(tmp_path)
    [(_, *arguments)] = commands("rdzv new-plugin")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "rdzv-cupboard"
    metadata = folder / "src" / "rdzv_cupboard-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rdzv-cupboard\nVersion: 1\n")
    [entry] = blocks("toml")
    # What is shown of it is there.
    assert entry in (folder / "pyproject.toml").read_text()
    line = entry.splitlines()[1].replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[rdzv.backends]\n{line}\n")
    return folder


def write_page(project: Path, change: int | None = None) -> None:
    """Put the page's files into the project, and one of its changes into plugin.py."""
    for name, text in code().items():
        assert (project / name).parent.is_dir()
        (project / name).write_text(text)
    plugin = project / "src" / "rdzv_cupboard" / "plugin.py"
    for old, new in [] if change is None else changes()[change]:
        assert plugin.read_text().count(old) == 1
        plugin.write_text(plugin.read_text().replace(old, new))


def environment(project: Path) -> dict[str, str]:
    path = [str(project / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


# The whole contract on all three takes two minutes.
FIRST = "nodes_form or no_state or nothing_is_left or token or bytes or written or whatever_breaks"
WATCHING = "declared or a_change_by or already_ends or with_its_time or else_up"
ROSTER = (
    "declared or nodes_form or no_state or similar or ticket or record or beats or piece or"
    " document or forgotten or epoch or any_time"
)


@pytest.mark.parametrize(
    ("change", "tests"),
    [(None, FIRST), (0, WATCHING), (1, ROSTER)],
    ids=["get and set", "watch", "roster"],
)
def test_the_backends_of_the_page_keep_what_they_promise(project, change, tests):
    write_page(project, change)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
         "--rootdir", str(project), "-k", tests, str(project / "tests" / "test_conformance.py")],
        check=False, capture_output=True, text=True, timeout=110, env=environment(project),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "not checked" not in done.stdout


@pytest.mark.parametrize("number", [0, 1], ids=["in a folder", "on a server"])
def test_the_command_of_the_page_forms_a_job(project, tmp_path, number):
    _, *arguments = commands("torchrun")[number]
    (tmp_path / "train.py").write_text(
        "import os; open('rank' + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    )
    (tmp_path / "shared").mkdir()
    if number:
        write_page(project)
    with RedisServer() as server:
        places = {"/tmp/cupboard": str(tmp_path / "shared"), "127.0.0.1:6379": server.endpoint}
        old = next(place for place in places if any(place in each for each in arguments))
        arguments = [each.replace(old, places[old]) for each in arguments]
        agents = [
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *arguments],
                cwd=tmp_path, env=environment(project),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        try:
            said = [agent.communicate(timeout=100)[0] for agent in agents]
        finally:
            for agent in agents:
                agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert {path.name: path.read_text() for path in tmp_path.glob("rank*")} == {
        "rank0": "2",
        "rank1": "2",
    }


def test_the_first_backend_of_the_page_is_small():
    assert len(code()["src/rdzv_cupboard/backend.py"].splitlines()) <= 44
