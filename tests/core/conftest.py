"""Fixtures of the core's tests: distributions that exist as metadata, and clean registries."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rdzv import api, plugins


@dataclass
class FakeDistributions:
    """Writes dist-info folders and modules below one folder of ``sys.path``."""

    root: Path
    modules: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        *,
        version: str = "1.0",
        entries: dict[str, str] | None = None,
        group: str = plugins.BACKENDS,
        requires: tuple[str, ...] = (),
        summary: str = "a test",
        root: Path | None = None,
    ) -> Path:
        """Add the metadata of a distribution, and return its folder."""
        folder = (root or self.root) / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Summary: {summary}", *(f"Requires-Dist: {text}" for text in requires)]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        rows = [f"[{group}]", *(f"{key} = {value}" for key, value in (entries or {}).items())]
        (folder / "entry_points.txt").write_text("\n".join(rows) + "\n")
        return folder

    def module(self, name: str, source: str) -> None:
        """Add a module; a dotted name makes a package around it."""
        *packages, last = name.split(".")
        folder = self.root
        for package in packages:
            folder /= package
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / f"{last}.py").write_text(textwrap.dedent(source))
        self.modules.append(name)

    def backend(self, name: str, module: str, **metadata) -> None:
        """Add a distribution with one working backend plugin."""
        self.module(
            module,
            f"""
            from rdzv import BackendSpec, Parameter, hookimpl

            def create(params):
                raise NotImplementedError

            @hookimpl
            def rdzv_backend(name):
                if name == "{name}":
                    parameters = (Parameter("depth", "int", 3),)
                    return BackendSpec("{name}", "a test backend", create, parameters)
            """,
        )
        self.add(f"dist-{name}", entries={name: module}, **metadata)

    def imported(self, name: str) -> bool:
        """Tell whether a module of this test has been imported."""
        return name in sys.modules


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder for fake distributions; nothing that was loaded from it outlives the test."""
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(plugins, "_extensions", None)
    before = set(sys.modules)
    yield FakeDistributions(root)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(root)):
            del sys.modules[name]


@pytest.fixture
def registry(monkeypatch):
    """The registry of the process, as it was at the start."""
    monkeypatch.setattr(api.rendezvous_handler_registry, "_registry", {})
    return api.rendezvous_handler_registry
