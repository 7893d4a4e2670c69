"""``rdzv new-plugin``: a complete distribution with a backend that works, to be made one's own."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from packaging.version import Version

from rdzv import __version__, plugins

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = ["UnusableNameError", "new_plugin"]

_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")

_TAKEN = frozenset({"c10d", "etcd", "etcd_legacy", "etcd_v2", "rdzv", "redis", "static"})
"""Names of rdzv's own backends, and of torch's."""

_FOLDERS = {"src": "src/$package", "tests": "tests", "github": ".github/workflows"}
"""Where the template's folders go."""


class UnusableNameError(ValueError):
    """The name, or the folder, cannot be had; the message says why and what to do."""


def new_plugin(name: str, directory: Path | None = None) -> list[Path]:
    """Write a distribution ``rdzv-NAME`` with the backend ``NAME``.

    Args:
        name: The backend's name: lower-case letters, digits and underscores.
        directory: The folder to write it to, which must not be there yet; by default
            ``rdzv-NAME`` in the current one.

    Returns:
        The files that were written.

    Raises:
        UnusableNameError: The name is unusable or taken, or the folder is there already.
        OSError: The files cannot be written.
    """
    _check(name)
    distribution = f"rdzv-{name.replace('_', '-')}"
    package = f"rdzv_{name}"
    target = Path(distribution) if directory is None else directory
    version = Version(__version__)
    words = {
        "name": name,
        "distribution": distribution,
        "package": package,
        "class": "".join(part.capitalize() for part in name.split("_")) + "Backend",
        "core": f">={version.major}.{version.minor},<{version.major}.{version.minor + 1}",
    }
    try:
        target.mkdir(parents=True)
    except FileExistsError:
        raise UnusableNameError(
            f"'{target}' is there already, and nothing is overwritten: remove it, or name another "
            "folder with --directory."
        ) from None
    written = []
    for place, source in _template():
        path = target / Template(place).substitute(words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(source.read_text("utf-8")).substitute(words), "utf-8")
        written.append(path)
    return written


def _check(name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UnusableNameError(
            f"{name!r} cannot be the name of a new backend: it has to be a Python identifier of "
            "lower-case letters, digits and single underscores, such as 'cupboard'."
        )
    for entry in plugins.installed():
        if entry.name.replace("-", "_") == name:
            raise UnusableNameError(f"The backend '{name}' is there already, from {entry}.")
    if name in _TAKEN:
        raise UnusableNameError(
            f"'{name}' is a backend of rdzv's or of torch's: take another name."
        )
    if importlib.util.find_spec(f"rdzv_{name}") is not None:
        raise UnusableNameError(
            f"A package rdzv_{name} is installed already, which is what this one would be called."
        )


def _template() -> list[tuple[str, Traversable]]:
    """Each file's place in the new distribution, and what it is made from."""
    root = files("rdzv.cli") / "template"
    found = []
    for one in root.iterdir():
        folder = _FOLDERS[one.name] + "/" if one.is_dir() else ""
        for source in one.iterdir() if one.is_dir() else (one,):
            # Under this name no tool takes it for what it is to become.
            name = source.name.removesuffix(".txt")
            name = ".gitignore" if name == "gitignore" else name
            found.append((folder + name, source))
    return sorted(found, key=lambda pair: pair[0])
