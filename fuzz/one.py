"""Runs one target under atheris: ``python -m fuzz.one TARGET [libFuzzer's arguments]``.

Nothing that is fuzzed may be imported before atheris looks at imports.
"""

from __future__ import annotations

import importlib
import sys

import atheris  # type: ignore[import-untyped]

from fuzz.source import FromBytes

__all__ = ["TARGETS", "main"]

TARGETS = {
    "decoding": "stored",
    "document_session": "stored",
    "hash_store": "sessions",
    "get_and_set": "sessions",
    "machine": "nodes",
    "over_get_and_set": "nodes",
    "node_on_a_store": "sessions",
    "endpoint": "texts",
    "secrets_hidden": "texts",
    "settings": "texts",
    "metadata": "texts",
}
"""Each target, and the module it is in."""


def main(argv: list[str]) -> None:
    """Fuzz until libFuzzer's limits, or a failure, end the process."""
    name = argv.pop(1)
    # The targets too: a choice that leads elsewhere is worth keeping.
    with atheris.instrument_imports(include=["rdzv", "rdzv_c10d", "fuzz"]):
        target = getattr(importlib.import_module(f"fuzz.{TARGETS[name]}"), name)

    def test(data: bytes) -> None:
        target(FromBytes(atheris.FuzzedDataProvider(data)))

    atheris.Setup(argv, test)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
