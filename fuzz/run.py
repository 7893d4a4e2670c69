"""Runs every fuzz target for a while and prints what came of it."""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SLACK = 120.0
"""Seconds beyond its time after which a target is ended: it starts torch, and may hang."""


@dataclass(frozen=True)
class Outcome:
    """What one target did.

    Attributes:
        executions: Inputs that were tried.
        rate: Inputs a second.
        features: libFuzzer's count of coverage, at the first inputs and at the end.
        corpus: Inputs that were kept because they covered something new.
        crash: The first line of a failure, empty where there was none.
    """

    target: str
    executions: int
    rate: int
    features: tuple[int, int]
    corpus: int
    crash: str


def targets() -> list[str]:
    """The names of all targets, read without importing atheris."""
    tree = ast.parse((ROOT / "fuzz" / "one.py").read_text())
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TARGETS"
    )
    return list(ast.literal_eval(table))


def run(target: str, seconds: int, folder: Path) -> Outcome:
    """Fuzz one target for ``seconds``; what it finds is kept below ``folder``."""
    corpus, crashes = folder / "corpus" / target, folder / "crashes" / target
    for path in (corpus, crashes):
        path.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "fuzz.one", target, str(corpus)),
        *(f"-artifact_prefix={crashes}/", f"-max_total_time={seconds}", "-print_final_stats=1"),
        *("-max_len=4096", "-len_control=0", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=1"),
    ]
    log = folder / f"{target}.log"
    environment = os.environ | {"TORCH_CPP_LOG_LEVEL": "FATAL", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment)
        try:
            code = process.wait(seconds + _SLACK)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    text = log.read_text(errors="replace")
    return _outcome(target, text, code, time.monotonic() - began, log)


def _outcome(target: str, text: str, code: int, took: float, log: Path) -> Outcome:
    def stat(name: str) -> int:
        found = re.findall(rf"stat::{name}:\s*(\d+)", text)
        return int(found[-1]) if found else 0

    features = [int(found) for found in re.findall(r"\bft: (\d+)", text)] or [0]
    error = re.search(r"^(?:=== Uncaught Python exception: ===\n)(.*)", text, re.MULTILINE)
    crash = ""
    if code:
        crash = f"{error[1] if error else f'exit code {code} after {took:.0f} s'} (see {log})"
    return Outcome(
        target,
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        (features[0], features[-1]),
        stat("new_units_added"),
        crash,
    )


def main() -> int:
    """Run the targets that were asked for; 1 where one has failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="names of targets (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "fuzz" / "found", help="corpora, crashes, logs"
    )
    given = parser.parse_args()
    names = given.targets or targets()
    unknown = sorted(set(names) - set(targets()))
    if unknown:
        parser.error(f"no such targets: {', '.join(unknown)}; there are {', '.join(targets())}")
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    print("| target | executions | executions/s | coverage, first → last | new inputs | crashes |")
    print("| --- | ---: | ---: | ---: | ---: | --- |", flush=True)
    failed = False
    with ThreadPoolExecutor(given.jobs) as pool:
        for one in pool.map(lambda name: run(name, given.seconds, folder), names):
            failed = failed or bool(one.crash)
            print(
                f"| {one.target} | {one.executions:,} | {one.rate:,} | {one.features[0]:,} → "
                f"{one.features[1]:,} | {one.corpus:,} | {one.crash or 'none'} |",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
