"""The figures: each function measures one of them and says how it compares with its target."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.fleet import ROOT, Fleet, NodeResult, environment, flat
from rdzv.testing.proxy import Proxy

__all__ = [
    "FIGURES",
    "Options",
    "Row",
    "bytes_row",
    "check_ranks",
    "duration",
    "rounds_of",
    "spread",
]


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        repeat: Repetitions of the short measurements.
        quick: Fewer sizes and repetitions, for a look.
        torch_256: Whether torch is to try a round of 256 nodes.
    """

    repeat: int
    quick: bool
    torch_256: bool


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        figure: What was measured.
        measured: The outcome.
        target: What it is held against, if anything.
        met: Whether it is met; ``None`` where there is no target.
        data: The single measurements.
    """

    figure: str
    measured: str
    target: str = ""
    met: bool | None = None
    data: dict[str, Any] = field(default_factory=dict)


def duration(seconds: float) -> str:
    """A time with three digits."""
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def spread(times: list[float]) -> str:
    """The median, with the least and the most."""
    if len(times) == 1:
        return duration(times[0])
    low, high = duration(min(times)), duration(max(times))
    return f"{duration(statistics.median(times))} ({low} to {high}, {len(times)} runs)"


# ---------------------------------------------------------------- rounds


def rounds_of(fleet: Fleet, kind: str, nodes: int, repeat: int, limit: float = 60.0) -> list[float]:
    """Seconds that rounds of ``nodes`` took, each of a run of its own."""
    times = []
    for _ in range(repeat):
        fleet.make(kind, nodes, join=limit)
        seconds, found = fleet.round(limit)
        check_ranks(found)
        times.append(seconds)
        fleet.drop()
    return times


def check_ranks(found: list[NodeResult]) -> None:
    """Raise where these nodes are not those of one round."""
    ranks = sorted(node["rank"] for node in found)
    if ranks != list(range(len(found))) or {node["size"] for node in found} != {len(found)}:
        raise RuntimeError(f"the round was no round: ranks {ranks}")


def bytes_row(backend: str, found: dict[int, dict[str, float]]) -> Row:
    """What a server has counted in rounds of several sizes: bytes ``in`` and ``out``, a node."""
    totals = {nodes: each["in"] + each["out"] for nodes, each in found.items()}
    few, many = totals[min(totals)], totals[max(totals)]
    return Row(
        f"{backend}: bytes a node in a round, received and sent by the server",
        "; ".join(
            f"{nodes} nodes {totals[nodes]:.0f} ({each['in']:.0f} + {each['out']:.0f})"
            for nodes, each in found.items()
        ),
        f"no more with {max(totals)} than with {min(totals)}",
        many <= few * 1.1,
        {str(nodes): each for nodes, each in found.items()},
    )


def rounds(options: Options) -> Iterator[Row]:
    """One round of 2, 8 and 64 nodes, and torch's."""
    for nodes in (2, 64) if options.quick else (2, 8, 64):
        with Fleet() as fleet:
            ours = rounds_of(fleet, "rdzv", nodes, options.repeat)
        with Fleet() as fleet:
            theirs = rounds_of(fleet, "torch", nodes, min(options.repeat, 3))
        ratio = statistics.median(theirs) / statistics.median(ours)
        fast = nodes != 64 or statistics.median(ours) < 0.030
        yield Row(
            f"one round of {nodes} nodes",
            f"{spread(ours)}; torch {spread(theirs)}: {ratio:.0f} times",
            "50 times faster than torch" + (", under 30 ms" if nodes == 64 else ""),
            ratio >= 50 and fast,
            {"rdzv": ours, "torch": theirs},
        )


def large(options: Options) -> Iterator[Row]:
    """One round of 256 and 512 nodes."""
    for nodes, target in ((256, 0.2), (512, 0.5)):
        with Fleet() as fleet:
            ours = rounds_of(fleet, "rdzv", nodes, max(1, options.repeat // 2))
        yield Row(
            f"one round of {nodes} nodes",
            spread(ours),
            f"under {duration(target)}",
            statistics.median(ours) < target,
            {"rdzv": ours},
        )
    if options.torch_256:
        with Fleet() as fleet:
            try:
                outcome = spread(rounds_of(fleet, "torch", 256, 1))
            except (RuntimeError, TimeoutError) as exc:
                outcome = f"not finished: {exc}"
        yield Row("one round of 256 nodes, torch's", outcome)


def last(options: Options) -> Iterator[Row]:
    """From the last arrival to the last node knowing its rank."""
    times = []
    with Fleet() as fleet:
        for _ in range(options.repeat):
            times.append(_last(fleet, "rdzv"))
            fleet.drop()
    with Fleet() as fleet:
        theirs = _last(fleet, "torch")
    yield Row(
        "last arrival to the last of 64 nodes knowing",
        f"{spread(times)}; torch {duration(theirs)}",
        "under 15 ms",
        statistics.median(times) < 0.015,
        {"rdzv": times, "torch": [theirs]},
    )


def _last(fleet: Fleet, kind: str) -> float:
    fleet.make(kind, 64)
    first, second = fleet.members
    first.ask("prepare", skip=0)
    second.ask("prepare", skip=1)
    at = time.monotonic() + 0.3
    fleet.every("start", at=at)
    time.sleep(0.3)
    if kind == "torch":
        time.sleep(5)  # They poll once a second; all have written themselves by then.
    until = time.monotonic() + 30
    while sum(fleet.every("waiting")) < 63:
        if time.monotonic() > until:
            raise TimeoutError("63 nodes did not enter within 30 s")
        time.sleep(0.05)
    # The last one is of the second process; its neighbours there go on waiting.
    second.ask("late", at=time.monotonic() + 0.5)
    found = fleet.finish()
    check_ranks(found)
    started = [node["start"] for node in found]
    return float(max(node["end"] for node in found) - max(started))


# ---------------------------------------------------------------- requests


def requests(options: Options) -> Iterator[Row]:
    """What a node asks of its store in a round."""
    read: dict[int, float] = {}
    for nodes in (8, 512) if options.quick else (8, 64, 512):
        with Fleet() as fleet:
            fleet.make("counting", nodes)
            _, found = fleet.round()
        followers = [node for node in found if not node["leads"]]
        counts = [node["requests"] for node in followers]
        read[nodes] = statistics.mean(node["read"] for node in followers)
        leader = next(node for node in found if node["leads"])
        most = max(followers, key=lambda node: int(node["requests"]))
        yield Row(
            f"requests a node in a round, {nodes} nodes",
            f"mean {statistics.mean(counts):.1f}, most {max(counts)}; leader {leader['requests']}",
            "at most 8",
            max(counts) <= 8,
            {"most": most, "leader": leader, "requests": counts},
        )
    few, many = read[8], read[512]
    yield Row(
        f"bytes a node reads in a round, {', '.join(map(str, read))} nodes",
        f"{', '.join(f'{size:.0f}' for size in read.values())} "
        f"({100 * (many / few - 1):+.1f} % from the first to the last)",
        "first and last equal within 10 %",
        abs(many / few - 1) <= 0.1,
        {str(nodes): size for nodes, size in read.items()},
    )


def wire(options: Options) -> Iterator[Row]:
    """The same on the wire: what 8 nodes, all behind a proxy, exchange with the store."""
    del options
    with Fleet() as fleet, Proxy("127.0.0.1", fleet.port) as proxy:
        fleet.make("counting", 8, port=proxy.port, interval=30.0)
        time.sleep(0.5)
        before = proxy.totals()
        _, found = fleet.round()
        time.sleep(0.2)
        sent, received = (b - a for a, b in zip(before, proxy.totals(), strict=True))
        fleet.drop()
    requests = sum(node["requests in all"] for node in found) / 8
    values = sum(node["read in all"] for node in found) / 8
    yield Row(
        "on the wire, a node in a round of 8, leader and bootstrap address included",
        f"{sent / 8:.0f} bytes sent, {received / 8:.0f} received; counted as above: "
        f"{requests:.1f} requests, {values:.0f} bytes of values",
        data={"sent": sent, "received": received, "requests": requests * 8, "values": values * 8},
    )


def healthy(options: Options) -> Iterator[Row]:
    """Requests a second while nothing happens."""
    seconds = 10.0 if options.quick else 20.0
    for nodes in (8, 64):
        with Fleet() as fleet:
            fleet.make("counting", nodes, interval=1.0)
            fleet.round()
            time.sleep(1.0)
            at = time.monotonic() + 0.5
            answers = fleet.every("tally", seconds + 30, at=at, seconds=seconds, poll=0.1)
        found = flat(answers)
        rates = [node["requests"] / seconds for node in found if not node["leads"]]
        leader = next(node for node in found if node["leads"])
        rate = leader["requests"] / seconds
        mean = (sum(rates) + rate) / nodes
        yield Row(
            f"requests a node a second while healthy, {nodes} nodes",
            f"mean {mean:.2f}; without the leader mean {statistics.mean(rates):.2f}, "
            f"most {max(rates):.2f}; leader {rate:.2f}",
            "at most 1.5",
            mean <= 1.5,
            {"rates": rates, "leader": rate, "leader kinds": leader["kinds"]},
        )


# ---------------------------------------------------------------- changes


def reform(options: Options) -> Iterator[Row]:
    """The next round of 64 healthy nodes, after one of them has come back."""
    times = []
    with Fleet() as fleet:
        for _ in range(max(1, options.repeat // 2)):
            fleet.make("rdzv", 64)
            fleet.round()
            first, second = fleet.members
            first.ask("prepare", watchers=31, poll=0.01)
            second.ask("prepare", watchers=32, poll=0.01)
            at = time.monotonic() + 0.5
            fleet.every("start", at=at)
            found = fleet.finish()
            check_ranks(found)
            times.append(max(node["end"] for node in found) - at)
            fleet.drop()
    yield Row(
        "one of 64 comes back, to the next round of all (agents that poll every 10 ms)",
        spread(times),
        data={"rdzv": times},
    )


_KILL: dict[str, Any] = {"min": 2, "max": 3, "interval": 0.5, "attempts": 3, "last_call": 0.5}


def kill(options: Options) -> Iterator[Row]:
    """From a node's SIGKILL to the survivors' next_rendezvous returning."""
    victims: dict[str, Callable[[NodeResult], bool]] = {
        "a node that neither leads nor is rank 0": lambda n: not n["leads"] and n["rank"] != 0,
        "rank 0": lambda n: bool(n["rank"] == 0),
        "the leader": lambda n: bool(n["leads"]),
    }
    for name, chosen in victims.items():
        times = []
        for _ in range(max(1, options.repeat // 2)):
            with Fleet(processes=3) as fleet:
                times.append(_kill(fleet, chosen))
        yield Row(
            f"SIGKILL of {name}, to the survivors' next round",
            spread(times),
            "under 2.5 s",
            max(times) < 2.5,
            {"seconds": times},
        )


def _kill(fleet: Fleet, chosen: Callable[[NodeResult], bool]) -> float:
    fleet.make("rdzv", 3, **_KILL)
    _, found = fleet.round()
    time.sleep(1.5)
    place = next(n for n, node in enumerate(found) if chosen(node))
    victim = fleet.members.pop(place)
    fleet.every("prepare", watchers=1, poll=0.01)
    fleet.every("start", at=time.monotonic())
    time.sleep(random.uniform(0.3, 0.8))  # Anywhere between two beats.
    at = time.monotonic()
    victim.kill()
    found = fleet.finish(30.0)
    check_ranks(found)
    return float(max(node["end"] for node in found) - at)


# ---------------------------------------------------------------- torchrun


@dataclass(frozen=True)
class _Start:
    """What a worker has written: when it began (monotonic clock), and whose it is."""

    at: float
    pid: int
    agent: int
    rank: int
    size: int


class _Agents:
    """Three torchrun agents on a store that a process of its own hosts."""

    def __init__(self, port: int, folder: Path) -> None:
        self._folder = folder
        conf = "keep_alive_interval=0.5,keep_alive_max_attempt=3,last_call_timeout=0.5"
        run = uuid.uuid4().hex[:8]
        self.agents = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "torch.distributed.run", "--nnodes=2:3",
                    "--nproc-per-node=1", "--max-restarts=3", f"--rdzv-id={run}",
                    "--rdzv-backend=rdzv-c10d", f"--rdzv-endpoint=127.0.0.1:{port}",
                    f"--rdzv-conf=is_host=false,{conf}", "--local-addr=127.0.0.1",
                    str(ROOT / "bench" / "worker.py"), str(folder),
                ],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(3)
        ]  # fmt: skip

    def starts(self) -> list[_Start]:
        """All workers that began so far."""
        found = []
        for path in self._folder.iterdir():
            if path.suffix != ".new":
                at, pid, agent, rank, size = path.read_text().split()
                found.append(_Start(float(at), int(pid), int(agent), int(rank), int(size)))
        return found

    def wait(self, done: Callable[[list[_Start]], bool], seconds: float) -> list[_Start]:
        """Wait until the workers that began satisfy ``done``."""
        until = time.monotonic() + seconds
        while not done(found := self.starts()):
            if time.monotonic() > until:
                raise TimeoutError(f"the workers did not start within {seconds:g} s: {found}")
            time.sleep(0.01)
        return found

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
        for agent in self.agents:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(10)
            agent.kill()
            agent.wait(10)
        mine = {agent.pid for agent in self.agents}
        for start in self.starts():
            if start.agent in mine:
                _kill_worker(start.pid)


def _kill_worker(pid: int) -> None:
    # Only one that is still ours: a process id may be somebody else's by now.
    with contextlib.suppress(OSError):
        if b"worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def torchrun(options: Options) -> Iterator[Row]:
    """The same under torchrun, to the survivors' workers running again."""
    for victim, rank in (("rank 2", 2), ("rank 0", 0)):
        times = []
        for _ in range(max(1, options.repeat // 3)):
            with Fleet(processes=0) as fleet, tempfile.TemporaryDirectory() as folder:
                agents = _Agents(fleet.port, Path(folder))
                try:
                    times.append(_torchrun(agents, rank))
                finally:
                    agents.close()
        yield Row(
            f"torchrun: SIGKILL of {victim} with its worker, to the survivors' workers",
            spread(times),
            "under 3.5 s",
            max(times) < 3.5,
            {"seconds": times},
        )


def _torchrun(agents: _Agents, rank: int) -> float:
    def whole(found: list[_Start]) -> bool:
        newest = {start.agent: start for start in sorted(found, key=lambda start: start.at)}
        return len(newest) == 3 and all(start.size == 3 for start in newest.values())

    found = agents.wait(whole, 90.0)
    time.sleep(2.0)
    newest = {start.agent: start for start in sorted(found, key=lambda start: start.at)}
    victim = next(start for start in newest.values() if start.rank == rank)
    process = next(agent for agent in agents.agents if agent.pid == victim.agent)
    at = time.monotonic()
    process.kill()
    _kill_worker(victim.pid)
    process.wait(10)
    again = agents.wait(
        lambda found: len({s.agent for s in found if s.at > at and s.size == 2}) == 2, 30.0
    )
    return max(start.at for start in again if start.at > at) - at


# ---------------------------------------------------------------- import


def imports(options: Options) -> Iterator[Row]:
    """What ``import rdzv`` costs beyond a bare interpreter."""
    repeat = 10 if options.quick else 20
    bare, full = [], []
    for _ in range(repeat):  # In turns: what else the machine does meets both.
        bare.append(_python("pass"))
        full.append(_python("import rdzv"))
    cost = statistics.median(full) - statistics.median(bare)
    code = (
        "import sys; std = sys.stdlib_module_names; before = set(sys.modules); import rdzv; "
        "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before} - std - {'rdzv'}))"
    )
    others = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    yield Row(
        "import rdzv, over a bare interpreter",
        f"{duration(cost)} (median of {repeat}); third-party modules: "
        + (", ".join(others) or "none"),
        "under 60 ms, torch not imported",
        cost < 0.060 and "torch" not in others,
        {"bare": bare, "rdzv": full, "modules": others},
    )


def listing(options: Options) -> Iterator[Row]:
    """What ``rdzv backends`` costs, against another command that everybody has."""
    repeat = 5 if options.quick else 10
    ours, pips = [], []
    for _ in range(repeat):
        ours.append(_cpu("rdzv.cli", "backends"))
        pips.append(_cpu("pip", "--version"))
    cost = statistics.median(ours)
    yield Row(
        "rdzv backends, processor time",
        f"{duration(cost)} (median of {repeat}); {cost / statistics.median(pips):.2f} of what "
        "`pip --version` takes",
        "less than `pip --version`",
        cost < statistics.median(pips),
        {"rdzv": ours, "pip": pips},
    )


def _cpu(module: str, *arguments: str) -> float:
    """Seconds of all processors that a command takes; its exit code is its own business."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        check=False,
    )
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def _python(code: str) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
    return time.monotonic() - started


FIGURES: dict[str, Callable[[Options], Iterator[Row]]] = {
    "import": imports,
    "listing": listing,
    "rounds": rounds,
    "large": large,
    "last": last,
    "requests": requests,
    "wire": wire,
    "healthy": healthy,
    "reform": reform,
    "kill": kill,
    "torchrun": torchrun,
}
