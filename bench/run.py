"""Measures rdzv against torch's own rendezvous, and against what it is to reach.

python bench/run.py [--only NAME,...] [--quick] [--repeat N] [--json FILE] [--markdown]

What the figures mean is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.admission_figures import ADMISSION_FIGURES
from bench.etcd_figures import ETCD_FIGURES
from bench.figures import FIGURES, Options, Row
from bench.observer_figures import OBSERVER_FIGURES
from bench.redis_figures import REDIS_FIGURES

_FIGURES = {**FIGURES, **ETCD_FIGURES, **REDIS_FIGURES, **OBSERVER_FIGURES, **ADMISSION_FIGURES}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cores": str(cores),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "rdzv": metadata.version("rdzv"),
        "rdzv-c10d": metadata.version("rdzv-c10d"),
        "rdzv-etcd": metadata.version("rdzv-etcd"),
        "rdzv-redis": metadata.version("rdzv-redis"),
    }


def measure(names: list[str], options: Options) -> list[Row]:
    """Take the figures one after the other; each is told as soon as it is known."""
    rows = []
    for name in names:
        started = time.monotonic()
        try:
            for row in _FIGURES[name](options):
                rows.append(row)
                print(f"{name:9} {row.figure}: {row.measured} {_verdict(row)}", flush=True)
        except Exception as exc:  # noqa: BLE001  # One figure must not cost the others.
            row = Row(name, f"failed: {type(exc).__name__}: {exc}", "to be measured", False)
            rows.append(row)
            print(f"{name:9} {row.measured}", flush=True)
        print(f"{name:9} took {time.monotonic() - started:.1f} s", flush=True)
    return rows


def _verdict(row: Row) -> str:
    return "" if row.met is None else "met" if row.met else "not met"


def table(rows: list[Row]) -> str:
    """The rows for a terminal."""
    lines = [("figure", "measured", "target", "")]
    lines += [(row.figure, row.measured, row.target, _verdict(row)) for row in rows]
    widths = [max(len(line[n]) for line in lines) for n in range(3)]
    return "\n".join(
        "  ".join([line[n].ljust(widths[n]) for n in range(3)] + [line[3]]) for line in lines
    )


def markdown(rows: list[Row]) -> str:
    """The rows for README.md."""
    about = machine()
    where = (
        f"Measured on {about['date']} on {about['cores']} cores ({about['system']}), Python "
        f"{about['python']}, torch {about['torch']}, rdzv {about['rdzv']}, rdzv-c10d "
        f"{about['rdzv-c10d']}, rdzv-redis {about['rdzv-redis']}:"
    )
    lines = ["| figure | measured | target | |", "| --- | --- | --- | --- |"]
    lines += [f"| {r.figure} | {r.measured} | {r.target} | {_verdict(r)} |" for r in rows]
    return "\n".join([where, "", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", metavar="NAME,...", help="of " + ", ".join(_FIGURES))
    parser.add_argument("--quick", action="store_true", help="less of everything, for a look")
    parser.add_argument("--repeat", type=int, metavar="N", help="repetitions (9; 3 if quick)")
    parser.add_argument("--torch-256", action="store_true", help="let torch try 256 nodes, 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement here")
    parser.add_argument("--markdown", action="store_true", help="print the table for README.md")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    names = list(_FIGURES) if arguments.only is None else arguments.only.split(",")
    unknown = [name for name in names if name not in _FIGURES]
    if unknown:
        parser.error(f"no figure is called {unknown[0]!r}; there are {', '.join(_FIGURES)}")
    repeat = arguments.repeat or (3 if arguments.quick else 9)
    if repeat < 1:
        parser.error(f"--repeat is {repeat}; it must be 1 or more")
    rows = measure(names, Options(repeat, arguments.quick, arguments.torch_256))
    print()
    print(markdown(rows) if arguments.markdown else table(rows))
    if arguments.json is not None:
        found = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    missed = any(row.met is False for row in rows)
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
