"""Checks the protocol's model with spin, in every configuration and with every mutant.

``python spin/check.py`` runs everything and prints one table; it fails where the
model breaks a promise, where a mutant does not, and where a search was not
exhaustive. ``python spin/check.py NAME --trail`` runs one of them and tells the
counterexample, if there is one. See docs/model.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("rendezvous.pml")

_COMPILE = ("gcc", "-Werror=int-conversion", "-DNOREDUCE", "-DMEMLIM=4000")
"""No partial-order reduction: every step reads or writes what is shared. Memory is in MB."""

_DEPTH = 1_000_000
"""Steps of the longest run that pan can follow; it says so where that was too few."""

_LONGEST = 1200.0
"""Seconds for one search."""


@dataclass(frozen=True)
class Case:
    """One search: the model in a configuration, or a mutant of it.

    ``breaks`` is the promise that the mutant is to break, none for the model itself.
    """

    name: str
    about: str
    flags: str = ""
    breaks: str = ""
    fair: bool = False

    @property
    def part(self) -> str:
        """What it is."""
        if self.breaks == "witness":
            return "witness"
        return "mutant" if self.breaks else "configuration"

    @property
    def defines(self) -> list[str]:
        """The flags for spin."""
        mutant = [f"-D{self.name}"] if self.breaks else []
        return mutant + [f"-D{flag}" for flag in self.flags.split()]


CONFIGURATIONS = (
    Case(
        "handover",
        "2 to 3 nodes; one leaves, a living one is taken for dead",
        "SUSPECTS=1 LEAVES=1 CRASHES=0",
    ),
    Case(
        "spare",
        "2 of 3 and a spare; a crash, one leaves, a living one is taken for dead",
        "MAX=2 SUSPECTS=1 LEAVES=1",
    ),
    Case("suspicion", "2 to 3 nodes; a crash, a living one is taken for dead", "SUSPECTS=1"),
    Case(
        "shutdown",
        "2 to 3 nodes; a close, a living one is taken for dead",
        "CLOSES=1 SUSPECTS=1 CRASHES=0",
    ),
    Case("leaving", "2 to 3 nodes; a crash, one leaves, one restarts", "LEAVES=1 RETURNS=1"),
    Case("closing", "2 to 3 nodes; a crash, a close, one restarts", "CLOSES=1 RETURNS=1"),
    Case("returning", "2 to 3 nodes; a crash, two restart", "RETURNS=2"),
    Case("all or none", "3 of 3 nodes; a crash, two restart", "MIN=3 RETURNS=2"),
    Case("fair", "2 to 3 nodes; a crash: L as an ltl property, weakly fair", "LIVENESS", fair=True),
)

MUTANTS = (
    Case("NO_TOKEN", "a commit does not ask for the token: no fencing", "SUSPECTS=1", "S7"),
    Case("USURP_BLINDLY", "a takeover does not ask for the token", "SUSPECTS=1", "S6"),
    Case(
        "EQUAL_BYTES", "a lost commit counts as won where the round looks right", "SUSPECTS=1", "S2"
    ),
    Case(
        "NONCE_REUSED",
        "an assignment is published under its round, not under a nonce",
        "SUSPECTS=1",
        "S2",
    ),
    Case("PUBLISH_LATE", "an assignment is published after the commit", "", "S2"),
    Case("STALE_MASTER", "a commit keeps the address of the round before", "", "S2"),
    Case("OLD_RANK", "who stays keeps its old rank, room or not", "", "S3"),
    Case("EARLY", "a round completes below min_nodes", "", "S4"),
    Case("NO_LIMIT", "a round completes above max_nodes", "MAX=2", "S4"),
    Case("NO_LAST_LOOK", "a commit without the last look at the log", "LEAVES=1", "S5"),
    Case("OLD_ROSTER", "a takeover with the roster of an earlier term", "SUSPECTS=1", "L"),
    Case(
        "TERM_KEPT",
        "a term goes on over a round that another leader completed",
        "SUSPECTS=1 LEAVES=1 CRASHES=0",
        "S5",
    ),
    Case("CLOSE_FORGOTTEN", "a takeover does not carry the close along", "CLOSES=1", "S8"),
    Case("SPARE_CLOSES", "a spare that is shut down closes the run", "MAX=2 LEAVES=1", "S11"),
    Case(
        "EVICTED_CLOSES",
        "an evicted node's shutdown closes a later round",
        "CLOSES=1 SUSPECTS=1 CRASHES=0",
        "S11",
    ),
    Case("SPARE_COUNTS", "a spare counts as a participant", "MAX=2", "L"),
    Case("NO_REOPEN", "a lost participant reopens nothing", "", "L"),
    Case("LATCH_MISSED", "a participant does not heed a round without it", "SUSPECTS=1", "L"),
    Case("HOLE_STAYS", "a dead node's hole is never buried", "", "L"),
    Case("HOLE_PASSED", "a hole is summed up as if it had been buried", "", "L"),
    Case(
        "GRAVE_TRUSTED",
        "a late writer does not look whether its ticket was buried",
        "SUSPECTS=1",
        "L",
    ),
    Case(
        "LOST_UNSEEN",
        "a usurper loses the old leader although it has come back since",
        "SUSPECTS=1",
        "L",
    ),
)

WITNESSES = (
    Case("THIRD_ROUND", "a third round completes", "", "witness"),
    Case("ZOMBIE", "a leader that was replaced tries to commit", "SUSPECTS=1", "witness"),
    Case("PLACE_TAKEN", "a spare takes a lost participant's place", "MAX=2", "witness"),
)
"""What has to happen in the model, or its promises would hold for nothing."""


@dataclass(frozen=True)
class Result:
    """What a search has found."""

    case: Case
    broken: str
    states: int
    seconds: float
    trouble: str = ""
    trail: str = ""

    @property
    def good(self) -> bool:
        """Whether it found what it was to find."""
        return not self.trouble and self.broken == self.case.breaks

    @property
    def verdict(self) -> str:
        """It in a word or two."""
        if self.trouble:
            return self.trouble
        if not self.case.breaks:
            return f"BREAKS {self.broken}" if self.broken else "holds"
        if self.case.part == "witness":
            return "reached" if self.good else "NOT REACHED"
        if not self.broken:
            return "SURVIVES"
        wrong = "" if self.good else f", not {self.case.breaks}"
        return f"breaks {self.broken}{wrong}"


def search(case: Case, *, tell: bool = False) -> Result:
    """Make pan for one case, run it, and read what it says."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rdzv-spin-") as folder:
        model = shutil.copy(MODEL, folder)
        name = Path(model).name
        kind = ["-DNFAIR=3"] if case.fair else ["-DSAFETY"]
        # A mutant is caught sooner than its search is optimised.
        kind += ["-O0"] if case.breaks else ["-O2"]
        _run(["spin", "-a", *case.defines, name], folder)
        _run([*_COMPILE, *kind, "-o", "pan", "pan.c"], folder)
        how = ["-a", "-f"] if case.fair else []
        how += [] if case.breaks else ["-w26"]
        said = _run(["./pan", f"-m{_DEPTH}", *how], folder, seconds=_LONGEST)
        trail = ""
        if tell and Path(model + ".trail").exists():
            trail = _run(["spin", "-T", "-t", *case.defines, name], folder)
    return _judge(case, said, time.monotonic() - began, trail)


def _judge(case: Case, said: str, seconds: float, trail: str) -> Result:
    states = re.search(r"^ *(\d\S*) states, stored", said, re.MULTILINE)
    errors = re.search(r"errors: (\d+)", said)
    violated = re.search(r"assertion violated \((\w+)\|\|", said)
    broken = violated[1] if violated else ""
    if "acceptance cycle" in said:
        broken = "L"
    trouble = ""
    if states is None or errors is None:
        trouble = "NO ANSWER: " + " ".join(said.split())[-200:]
    elif int(errors[1]) and not broken:
        trouble = "ERROR: " + said.strip().splitlines()[0]
    elif not int(errors[1]) and re.search(r"too small|truncat|not completed|out of memory", said):
        trouble = "NOT EXHAUSTIVE"
    return Result(case, broken, int(float(states[1])) if states else 0, seconds, trouble, trail)


def _run(command: list[str], folder: str, seconds: float = 120.0) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, timeout=seconds, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} took more than {seconds:.0f} s."
    # pan ends with a code of its own where it found something.
    if done.returncode and command[0] != "./pan":
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def provide_spin() -> None:
    """Install spin from the package manager where it is missing and that is possible."""
    if shutil.which("spin") and shutil.which("gcc"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        packages = ("spin", "gcc", "libc6-dev")
        for arguments in (("update",), ("install", "-y", "--no-install-recommends", *packages)):
            _say(f"apt-get {' '.join(arguments)}")
            subprocess.run(
                ["apt-get", "-qq", *arguments],
                env=environment,
                stdout=sys.stderr,
                check=False,  # The lists may be fresh enough without an update.
            )
    if not (shutil.which("spin") and shutil.which("gcc")):
        raise SystemExit(
            "The model needs spin and gcc, and they could not be installed from here. On Debian "
            "and Ubuntu: sudo apt-get install spin gcc libc6-dev. Elsewhere: https://spinroot.com."
        )


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def table(results: list[Result]) -> str:
    """The results as text."""
    rows = [
        (r.case.name, r.case.about, r.verdict, f"{r.states:,}", f"{r.seconds:.1f}") for r in results
    ]
    titles = ("configuration", "what happens in it", "found")
    wide = [max(len(row[column]) for row in [titles, *rows]) for column in range(3)]
    lines = []
    for part in ("configuration", "mutant", "witness"):
        chosen = [row for row, r in zip(rows, results, strict=True) if r.case.part == part]
        if not chosen:
            continue
        head = (part, *titles[1:], "states", "seconds")
        for row in (head, None, *chosen, None):
            if row is None:
                lines.append("-" * (sum(wide) + 31))
                continue
            left = "  ".join(text.ljust(w) for text, w in zip(row[:3], wide, strict=True))
            lines.append(f"{left}  {row[3]:>14}  {row[4]:>9}".rstrip())
        lines.pop()
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run what was asked for; returns 0 where all of it is as it should be."""
    parser = argparse.ArgumentParser(description="Check the protocol's model with spin.")
    parser.add_argument("names", nargs="*", help="configurations or mutants (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="searches at a time, each up to 4 GB")
    parser.add_argument("--trail", action="store_true", help="tell the counterexamples")
    options = parser.parse_args(arguments)
    cases = {case.name: case for case in CONFIGURATIONS + MUTANTS + WITNESSES}
    unknown = set(options.names) - cases.keys()
    if unknown:
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    chosen = [case for case in cases.values() if not options.names or case.name in options.names]
    provide_spin()
    began = time.monotonic()
    results = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for result in pool.map(lambda case: search(case, tell=options.trail), chosen):
            _say(f"{result.case.name}: {result.verdict}")
            results.append(result)
            if result.trail:
                sys.stdout.write(result.trail)
    sys.stdout.write("\n" + table(results))
    bad = [result.case.name for result in results if not result.good]
    _say(f"{len(results)} searches in {time.monotonic() - began:.0f} s; wrong: {bad or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
