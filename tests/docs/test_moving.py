"""The table of torch's names: all of them are in it, and what it says of ours is there."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from rdzv.plugins import load
from rdzv.specs import ENGINE_PARAMETERS

from .pages import DOCS, tables

PAGE = (DOCS / "moving.md").read_text()
TORCH = "torch.distributed.elastic.rendezvous"

# What torch's page on rendezvous documents, by module; "static" and the endpoints' parser besides.
DOCUMENTED = {
    "api": [
        "RendezvousParameters",
        "RendezvousHandlerRegistry",
        "RendezvousHandler",
        "RendezvousInfo",
        "RendezvousStoreInfo",
        "RendezvousError",
        "RendezvousClosedError",
        "RendezvousTimeoutError",
        "RendezvousConnectionError",
        "RendezvousStateError",
        "RendezvousGracefulExitError",
        "RendezvousHandlerCreator",
        "rendezvous_handler_registry",
    ],
    "registry": ["get_rendezvous_handler"],
    "utils": ["parse_rendezvous_endpoint"],
    "dynamic_rendezvous": [
        "create_handler",
        "DynamicRendezvousHandler",
        "RendezvousBackend",
        "RendezvousTimeout",
        "RendezvousSettings",
        "Token",
    ],
    "c10d_rendezvous_backend": ["create_backend", "C10dRendezvousBackend"],
    "etcd_rendezvous_backend": ["create_backend", "EtcdRendezvousBackend"],
    "etcd_rendezvous": ["create_rdzv_handler", "EtcdRendezvousHandler"],
    "etcd_store": ["EtcdStore"],
    "etcd_server": ["EtcdServer"],
    "static_tcp_rendezvous": ["create_rdzv_handler"],
}

SETTINGS = {
    "### Dynamic": (None, None),
    "### C10d": ("c10d_rendezvous_backend.create_backend", "c10d"),
    "### Etcd backend": ("etcd_rendezvous_backend.create_backend", "etcd"),
    "### Etcd rendezvous": ("etcd_rendezvous.create_rdzv_handler", "etcd-legacy"),
}


def rows() -> dict[tuple[str, str], tuple[str, list[str], str]]:
    """For torch's module and name: our module, the parameters in the row, and our name."""
    found = {}
    parts = re.split(r"^torch: `([\w.]+)`, here: `([\w.]+)`$", PAGE, flags=re.MULTILINE)
    for theirs, ours, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        # The tables of settings are others.
        for cells in tables(re.split(r"^Settings|^###", text, flags=re.MULTILINE)[0]):
            said = re.fullmatch(r"`([\w.]+)(?:\((.*)\))?`", cells[0])
            assert said is not None, cells
            parameters = [each for each in (said[2] or "").split(", ") if each]
            found[theirs.removeprefix(f"{TORCH}."), said[1]] = (
                ours,
                parameters,
                cells[1].strip("`"),
            )
    return found


ROWS = rows()


def parameters_of(thing) -> list[str]:
    try:
        given = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in given if name not in ("self", "args")]


def documented() -> list[tuple[str, str, list[str]]]:
    found = []
    for module, names in DOCUMENTED.items():
        for name in names:
            thing = getattr(importlib.import_module(f"{TORCH}.{module}"), name)
            own = inspect.isclass(thing) and "__init__" in vars(thing)
            plain = inspect.isfunction(thing)
            found.append((module, name, parameters_of(thing) if own or plain else []))
            if not inspect.isclass(thing) or issubclass(thing, Exception):
                continue
            for member, value in vars(thing).items():
                # A field of a dataclass is a parameter as well.
                if member.startswith("_") or member in getattr(thing, "__dataclass_fields__", ()):
                    continue
                bound = getattr(thing, member)
                function = callable(bound) and not isinstance(value, property)
                found.append((module, f"{name}.{member}", parameters_of(bound) if function else []))
    return found


# Made by from_backend or create_handler, as its docstring says: its arguments are private types.
PRIVATE = {"DynamicRendezvousHandler"}


@pytest.mark.parametrize(("module", "name", "parameters"), documented())
def test_every_documented_name_and_parameter_of_torch_has_a_row(module, name, parameters):
    assert (module, name) in ROWS
    if name not in PRIVATE:
        assert ROWS[module, name][1] == parameters


@pytest.mark.parametrize(("module", "name"), ROWS)
def test_every_name_in_the_table_exists_in_torch_and_here(module, name):
    theirs = importlib.import_module(f"{TORCH}.{module}")
    for part in name.split("."):
        theirs = _attribute(theirs, part)
    where, _, ours = ROWS[module, name]
    thing = importlib.import_module(where)
    for part in ours.split("."):
        thing = _attribute(thing, part)


def _attribute(thing, name):
    # A field of a dataclass without a default is no attribute of the class.
    if name in getattr(thing, "__dataclass_fields__", ()):
        return None
    return getattr(thing, name)


def test_what_is_called_the_same_takes_the_same_arguments():
    for (module, name), (where, parameters, ours) in ROWS.items():
        cells = next(cells for cells in tables(PAGE) if cells[0].startswith(f"`{name}(")
                     or cells[0] == f"`{name}`")  # fmt: skip
        if cells[2] != "same" or not parameters:
            continue
        thing = importlib.import_module(where)
        for part in ours.split("."):
            thing = getattr(thing, part)
        assert parameters_of(thing)[: len(parameters)] == parameters, (module, name)


def settings_rows(section: str) -> dict[str, str]:
    text = PAGE.split(section)[1].split("\n### ")[0]
    table = text[text.index("| torch's setting |") :]
    return {cells[0].strip("`"): cells[1].strip("`") for cells in tables(table)}


@pytest.mark.parametrize("section", SETTINGS)
def test_every_setting_that_torch_documents_has_a_row_and_is_accepted_here(section):
    theirs, backend = SETTINGS[section]
    listed = settings_rows(section)
    known = {name for each in ENGINE_PARAMETERS for name in (each.name, *each.aliases)}
    if backend is not None:
        spec = load(backend)
        known = {name for each in spec.parameters for name in (each.name, *each.aliases)}
    assert set(listed.values()) <= known
    assert set(listed) <= known
    if theirs is not None:
        module, _, function = theirs.rpartition(".")
        text = getattr(importlib.import_module(f"{TORCH}.{module}"), function).__doc__
        named = re.findall(r"^ *\| (\w+) +\|", text, re.MULTILINE)
        named += re.findall(r"^ +(\w+) - ", text, re.MULTILINE)
        arguments = {"Parameter", "run_id", "min_nodes", "max_nodes"}
        assert set(named) - arguments == set(listed)
