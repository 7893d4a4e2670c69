"""``rdzv backends``: what is installed, and what one of them offers."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rdzv import plugins
from rdzv.errors import RendezvousError
from rdzv.specs import ENGINE_PARAMETERS, BackendSpec
from rdzv.torchrun import torchrun_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rdzv.specs import HandlerSpec, Parameter

__all__ = ["describe", "show"]

_NO_TORCHRUN = "-"


def show(*, as_json: bool) -> int:
    """List all; returns the exit code. Imports no plugin."""
    found = plugins.problems()
    if as_json:
        _print_json([{**_row(entry), "problem": problem or None} for entry, problem in found])
    elif not found:
        sys.stdout.write('No backend is installed. Get one with: pip install "rdzv[c10d]"\n')
    else:
        table = _table("name", "torchrun", "distribution", "version", "summary")
        for entry, problem in found:
            table.add_row(
                Text(entry.name, style="bold red" if problem else "bold"),
                torchrun_name(entry.name) or _NO_TORCHRUN,
                entry.distribution,
                entry.version,
                Text(problem, style="red") if problem else entry.summary,
            )
        Console().print(table)
    return 1 if any(problem for _, problem in found) else 0


def _row(entry: plugins.InstalledBackend) -> dict[str, Any]:
    return {
        "name": entry.name,
        "torchrun": torchrun_name(entry.name),
        "distribution": entry.distribution,
        "version": entry.version,
        "summary": entry.summary,
    }


def describe(name: str, *, as_json: bool) -> int:
    """Tell about one, by its own words; returns the exit code."""
    try:
        spec = plugins.load(name)
    except RendezvousError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    backend = spec if isinstance(spec, BackendSpec) else None
    if as_json:
        _print_json(_as_data(spec))
        return 0
    console = Console()
    known = torchrun_name(name)
    under = f"--rdzv-backend={known}" if known else "not offered under torchrun"
    console.print(Text.assemble((name, "bold"), f": {spec.summary} ({under})"))
    if backend is None:
        console.print("\nA handler of its own: it does without rdzv's engine.")
    else:
        offers = ", ".join(sorted(backend.capabilities)) or "get and set alone"
        console.print(Text(f"\nCapabilities: {offers}"))
    if backend is not None and backend.guarantees:
        console.print("\nGuarantees:")
        for guarantee in backend.guarantees:
            console.print(Text(f"  - {guarantee}"))
    _print_parameters(console, "Settings", spec.parameters)
    if backend is not None:
        _print_parameters(
            console, "Settings of the engine, which every backend has", ENGINE_PARAMETERS
        )
    return 0


def _print_parameters(console: Console, title: str, parameters: Iterable[Parameter]) -> None:
    table = _table("name", "type", "default", "what it is")
    for each in parameters:
        names = ", ".join((each.name, *each.aliases))
        kind = "|".join(each.choices) or ("secret" if each.secret else each.type)
        default = "" if each.default is None else _written(each)
        table.add_row(Text(names, style="bold"), kind, default, each.help)
    console.print()
    console.print(Text(f"{title} (--rdzv-conf=name=value,…):"))
    console.print(table if table.row_count else "  none")


def _written(parameter: Parameter) -> str:
    value = parameter.default
    if isinstance(value, bool):
        return str(value).lower()
    unit = f" {parameter.unit}" if parameter.unit else ""
    return f"{value:g}{unit}" if isinstance(value, int | float) else str(value)


def _as_data(spec: BackendSpec | HandlerSpec) -> dict[str, Any]:
    backend = spec if isinstance(spec, BackendSpec) else None
    own = [_parameter(each, "backend") for each in spec.parameters]
    engine = [_parameter(each, "engine") for each in ENGINE_PARAMETERS] if backend else []
    return {
        "name": spec.name,
        "torchrun": torchrun_name(spec.name),
        "summary": spec.summary,
        "kind": "backend" if backend else "handler",
        "capabilities": sorted(backend.capabilities) if backend else [],
        "guarantees": list(backend.guarantees) if backend else [],
        "parameters": own + engine,
    }


def _parameter(parameter: Parameter, whose: str) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "aliases": list(parameter.aliases),
        "of": whose,
        "type": parameter.type,
        "choices": list(parameter.choices),
        "default": parameter.default,
        "unit": parameter.unit,
        "secret": parameter.secret,
        "help": parameter.help,
    }


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("name", "torchrun", "version"))
    return table


def _print_json(data: object) -> None:
    sys.stdout.write(json.dumps(data, indent=1) + "\n")
