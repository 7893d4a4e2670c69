"""Describes a command of typer's and all below it, in Markdown."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["reference"]


def reference(command: Any, name: str) -> str:
    """A command and those below it, in Markdown."""
    return "\n".join(_described(command, name))


def _described(command: Any, name: str) -> Iterator[str]:
    below = getattr(command, "commands", {})
    if not below:
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        usage = " ".join([name, "[OPTIONS]", *map(_place, arguments)])
        yield f"## {name}\n"
        yield f"```\n{usage}\n```\n"
        yield inspect.cleandoc(command.help or "") + "\n"
        rows = [row for row in map(_row, command.params) if row]
        if rows:
            yield "| | what it is |\n| --- | --- |"
            yield "\n".join(rows) + "\n"
    for child, found in below.items():
        if not found.hidden:
            yield from _described(found, f"{name} {child}")


def _place(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    text = getattr(parameter, "help", None) or ""
    default = parameter.default
    if isinstance(default, int | float) and not isinstance(default, bool):
        text += f" Default: {default:g}."
    return f"| {names} | {_cell(text)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
