"""Real torchrun agents as processes, and what their workers and handlers tell about themselves.

Agents, their workers and their rdzv handlers append JSON lines to one file of
the test, each with the name of the agent; tests wait for conditions in it.
Workers do as they are told by files in one folder: see :data:`WORKER`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rdzv.testing.local_server import stop_process

LIMIT = 60.0
"""Seconds until a wait gives up: far beyond what anything takes."""

_LOOK = 0.02

T = TypeVar("T")

QUICK = {"last_call_timeout": 0.5, "keep_alive_interval": 0.2, "keep_alive_max_attempt": 8}
"""A silent node is noticed after 1.6 s, and no sooner: an agent may be held up a while."""

PATIENT = {"last_call_timeout": 0.5, "keep_alive_interval": 20, "keep_alive_max_attempt": 5}
"""A silent node is not noticed while a test runs: only one that says that it leaves."""

ENVIRONMENT = {
    # torch's TCPStore looks up the name of each that connects.
    "RES_OPTIONS": "timeout:1 attempts:1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform.startswith("linux") else "lo0",
}

_TELL = """
import faulthandler, json, os, signal, sys, time

# A test that waits in vain has each process say where it is, also one that hangs.
faulthandler.register(signal.SIGUSR1)

def tell(kind, **more):
    line = {"kind": kind, "agent": os.environ["E2E_AGENT"], "pid": os.getpid(), **more}
    handle = os.open(os.environ["E2E_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\\n").encode())
    finally:
        os.close(handle)
"""

_WORKER_BASE = (
    _TELL
    + '''
def number(name):
    return int(os.environ[name])

PARENT = os.getppid()
ROUND = os.environ["MASTER_ADDR"] + ":" + os.environ["MASTER_PORT"]
ME = dict(
    round=ROUND,
    master=os.environ["MASTER_ADDR"],
    rank=number("RANK"),
    world=number("WORLD_SIZE"),
    local_rank=number("LOCAL_RANK"),
    group_rank=number("GROUP_RANK"),
    group_world=number("GROUP_WORLD_SIZE"),
    role=os.environ["ROLE_NAME"],
    role_rank=number("ROLE_RANK"),
    role_world=number("ROLE_WORLD_SIZE"),
    restart=number("TORCHELASTIC_RESTART_COUNT"),
)

def told(what):
    return os.path.exists(os.path.join(os.environ["E2E_COMMANDS"], what))

def obey():
    """Whether to go on."""
    agent = os.environ["E2E_AGENT"]
    if told("finish"):
        sys.exit(0)
    for what in (f"round {ROUND}", f"agent {agent}", f"agent {agent} restart {ME['restart']}"):
        if told("crash " + what):
            tell("crash", **ME)
            sys.exit(1)
    if os.getppid() != PARENT:
        os._exit(3)
    time.sleep(0.02)
'''
)

WORKER = (
    _WORKER_BASE
    + """
tell("worker", **ME)
while True:
    obey()
"""
)
"""Runs until the file ``finish`` appears, or one that tells it to crash."""

GLOO_WORKER = (
    _WORKER_BASE
    + """
from datetime import timedelta
import torch
import torch.distributed as dist

def check(**how):
    dist.init_process_group("gloo", timeout=timedelta(seconds=30), **how)
    ones = torch.ones(1)
    dist.all_reduce(ones)
    if int(ones) != ME["world"]:
        sys.exit(4)

check()
if os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
    # A process that makes a second group has to give it a place of its own in the
    # store that the agent serves: torch's "env://" would find the keys of the first.
    dist.destroy_process_group()
    store = dist.TCPStore(os.environ["MASTER_ADDR"], number("MASTER_PORT"), is_master=False)
    check(store=dist.PrefixStore("second", store), rank=ME["rank"], world_size=ME["world"])
tell("worker", **ME)
while True:
    # All or none of them go on: a peer that vanishes fails the others here.
    end = torch.tensor([1.0 if told("finish") else 0.0])
    try:
        dist.all_reduce(end, op=dist.ReduceOp.MAX)
    except RuntimeError:
        tell("peer lost", **ME)
        raise
    if end:
        break
    time.sleep(0.02)
dist.destroy_process_group()
"""
)
"""Makes one or two process groups in a row, and works in the last until ``finish``."""

SAVING_WORKER = (
    _WORKER_BASE
    + """
from datetime import timedelta
import torch.distributed as dist
import rdzv

dist.init_process_group("gloo", timeout=timedelta(seconds=30))
tell("worker", **ME)
step = 0
while True:
    obey()
    step += 1
    if step % 10 == 0:
        tell("step", step=step, **ME)
        if ME["rank"] == 0 and told(f"save in round {ROUND}"):
            # The next round may begin, and this worker be ended, before it has told.
            ending = []
            before = signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
            tell("saved", opens=rdzv.checkpoint_reached(), **ME)
            signal.signal(signal.SIGTERM, before)
            if ending:
                os._exit(1)
"""
)
"""Works until ``finish``; now and then its rank 0 reaches a checkpoint, once it is told to."""

_OBSERVER = (
    _TELL
    + """
from rdzv import hookimpl

@hookimpl
def rdzv_event(event):
    fields = {name: getattr(event, name) for name in event.__dataclass_fields__}
    tell("rdzv " + type(event).__name__, **fields)
"""
)


class Wire:
    """A way to a port that can be cut: what is sent meanwhile arrives when it is mended."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.mend()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._whole.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    try:
        found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    except OSError:
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        return [child for child, parent in pairs if parent == pid]
    parents: dict[int, int] = {}
    for each in found:
        with contextlib.suppress(OSError, ValueError):
            text = Path(f"/proc/{each}/stat").read_text()
            parents[each] = int(text.rpartition(")")[2].split()[1])
    return [child for child, parent in parents.items() if parent == pid]


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also where its parent has not been told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # Or there is no /proc.
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


@dataclass
class Round:
    """A round as its workers tell about it, ordered by global rank."""

    name: str
    workers: list[dict[str, Any]]

    @property
    def pids(self) -> set[int]:
        return {worker["pid"] for worker in self.workers}

    @property
    def agents(self) -> list[str]:
        """The names of the agents, by their group rank."""
        return list(dict.fromkeys(worker["agent"] for worker in self.workers))

    @property
    def restarts(self) -> dict[str, int]:
        """How many restarts each agent has used up."""
        return {worker["agent"]: worker["restart"] for worker in self.workers}

    def of(self, agent: str) -> list[dict[str, Any]]:
        return [worker for worker in self.workers if worker["agent"] == agent]


class Agent:
    """One ``python -m torch.distributed.run``."""

    def __init__(self, job: Job, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._job = job
        self._process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _all(self) -> list[int]:
        return [self._process.pid, *children(self._process.pid)]

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        self._job.until(lambda: self.ended, f"the end of agent {self.name}")
        return self._process.returncode

    def kill(self) -> None:
        """Kill it and its workers; it starts no others meanwhile."""
        if self.ended:
            return
        self.freeze()
        for pid in reversed(self._all()):
            _signal(pid, signal.SIGKILL)
        self._process.wait()

    def say_where(self) -> None:
        """Have it and its workers write their stacks to its log, if they have begun to work."""
        for pid in [] if self.ended else self._all():
            _signal(pid, signal.SIGUSR1)

    def freeze(self, *, workers: bool = True) -> None:
        """Stop it; its workers too, unless told otherwise."""
        stop_process(self._process.pid)
        for pid in children(self._process.pid) if workers else []:
            with contextlib.suppress(ProcessLookupError):
                stop_process(pid)

    def thaw(self) -> None:
        for pid in self._all():
            _signal(pid, signal.SIGCONT)

    def terminate(self) -> None:
        _signal(self._process.pid, signal.SIGTERM)

    def interrupt(self) -> None:
        _signal(self._process.pid, signal.SIGINT)


@dataclass
class Job:
    """The agents of one run, in a folder of their own.

    Args:
        folder: Where all files go.
        nnodes: What torchrun is given.
        conf: The settings of the rendezvous.
        worker: The source of the worker script.
        options: More options for every agent.
        env: More variables for every agent.
        backend: Its name for torchrun.
        endpoint: Of a server that is no agent's; an agent hosts the store where there is none.
    """

    folder: Path
    nnodes: str = "2"
    conf: dict[str, object] = field(default_factory=lambda: dict(QUICK))
    worker: str = WORKER
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    backend: str = "rdzv-c10d"
    run_id: str = "job"
    port: int = 0
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self._known = 0
        """Rounds that were formed before, or passed over."""
        self._stores: list[subprocess.Popen[str]] = []
        self._wires: list[Wire] = []
        self._events = self.folder / "events.jsonl"
        self._commands = self.folder / "commands"
        self._commands.mkdir(parents=True)
        self._site = self.folder / "site"
        self._script = self.folder / "worker.py"
        self._script.write_text(self.worker)
        self.module("e2e_observer", _OBSERVER)
        self.distribution("e2e-observer", "rdzv.extensions", "observer", "e2e_observer")
        if not self.port and not self.endpoint:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self.port = server.getsockname()[1]

    # ------------------------------------------------------------ what agents find installed

    def module(self, name: str, source: str) -> None:
        self._site.mkdir(exist_ok=True)
        (self._site / f"{name}.py").write_text(source)

    def distribution(self, name: str, group: str, entry: str, module: str) -> None:
        """Add the metadata of a distribution with one entry point."""
        folder = self._site / f"{name.replace('-', '_')}-1.5.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (folder / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}\n")

    # ------------------------------------------------------------ processes

    def _environment(self, name: str) -> dict[str, str]:
        path = [str(self._site), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            **ENVIRONMENT,
            **self.env,
            "PYTHONPATH": os.pathsep.join(path),
            "E2E_AGENT": name,
            "E2E_EVENTS": str(self._events),
            "E2E_COMMANDS": str(self._commands),
        }

    def host_store(self) -> None:
        """Have a process that is no node host the store, so that any agent can end."""
        program = (
            "import sys; from torch.distributed import TCPStore\n"
            "store = TCPStore('127.0.0.1', int(sys.argv[1]), is_master=True, "
            "wait_for_workers=False)\n"
            "print(flush=True)\nsys.stdin.read()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment("store"),
            start_new_session=True,
            text=True,
        )
        self._stores.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "\n", "the store did not start"

    def wire(self) -> Wire:
        """Lay a wire of its own to the store, for one agent's endpoint."""
        self._wires.append(Wire(self.port))
        return self._wires[-1]

    def start(self, *names: str, options: tuple[str, ...] = (), **conf: object) -> list[Agent]:
        """Start agents. The first of all hosts the store, unless another process does."""
        return [self._start(name, options, conf) for name in names]

    def _start(self, name: str, options: tuple[str, ...], conf: dict[str, object]) -> Agent:
        settings = {**self.conf, **conf}
        if not self.endpoint:
            settings.setdefault("is_host", int(not self.agents and not self._stores))
        given = ",".join(f"{key}={value}" for key, value in settings.items() if value is not None)
        log = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={self.nnodes}"]
        endpoint = self.endpoint or f"127.0.0.1:{self.port}"
        command += [f"--rdzv-backend={self.backend}", f"--rdzv-endpoint={endpoint}"]
        command += [f"--rdzv-id={self.run_id}", f"--rdzv-conf={given}"]
        # Of an option that is given twice, torchrun takes the last.
        command += [*self.options, *options, str(self._script)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(name),
                start_new_session=True,
            )
        assert name not in self.agents
        agent = self.agents[name] = Agent(self, name, process, log)
        return agent

    def end(self) -> None:
        """Kill what still runs."""
        for agent in self.agents.values():
            agent.kill()
        # Workers whose agent died otherwise.
        for event in self.events("worker"):
            with contextlib.suppress(OSError):
                if str(self._script) in Path(f"/proc/{event['pid']}/cmdline").read_text():
                    _signal(event["pid"], signal.SIGKILL)
        for wire in self._wires:
            wire.close()
        for store in self._stores:
            store.kill()
            store.communicate()

    # ------------------------------------------------------------ orders and observations

    def order(self, what: str) -> None:
        """Tell workers: ``finish``, or ``crash agent NAME``, ``crash round NAME``, …"""
        (self._commands / what).touch()

    def revoke(self, what: str) -> None:
        (self._commands / what).unlink()

    def events(self, kind: str, agent: str | None = None) -> list[dict[str, Any]]:
        """What was told so far."""
        try:
            lines = self._events.read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines]
        return [
            event
            for event in found
            if event["kind"] == kind and (agent is None or event["agent"] == agent)
        ]

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Wait until something holds; returns it."""
        deadline = time.monotonic() + LIMIT
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {LIMIT:g} s\n{self.report()}")
            time.sleep(_LOOK)

    def stays(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        """See that something holds for a time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert condition(), f"{what} did not stay so for {seconds:g} s\n{self.report()}"
            time.sleep(_LOOK)

    def report(self) -> str:
        """What is known, for the message of a failed test; with where each process is."""
        for agent in self.agents.values():
            agent.say_where()
        time.sleep(1)
        parts = [self._events.read_text()[-6000:]] if self._events.exists() else []
        parts += [f"--- {name}\n{agent.log[-9000:]}" for name, agent in self.agents.items()]
        return "\n".join(parts)

    def formed(self, *agents: str) -> Round:
        """Wait for a round of just these agents, all workers running, later than those formed yet.

        Rounds of others may come before it: of those who were the first to come, say.
        """

        def look() -> tuple[int, Round] | None:
            for number, found in enumerate(self._rounds()):
                if (
                    number >= self._known
                    and set(found.agents) == set(agents)
                    and all(worker["world"] == len(found.workers) for worker in found.workers)
                ):
                    return number, found
            return None

        there = self.until(look, f"a round of {', '.join(agents)}")
        assert there is not None
        number, found = there
        self._known = number + 1
        assert [worker["rank"] for worker in found.workers] == list(range(len(found.workers)))
        assert {worker["group_world"] for worker in found.workers} == {len(agents)}
        return found

    def rounds(self) -> int:
        """How many rounds have begun to work."""
        return len(self._rounds())

    def _rounds(self) -> list[Round]:
        """All rounds, in the order in which they began to work, of the workers seen so far.

        They are named by their master's address, whose port a later one may get again.
        """
        found: list[Round] = []
        latest: dict[str, Round] = {}
        for worker in self.events("worker"):
            name = worker["round"]
            known = latest.get(name)
            if known is None or any(
                each["rank"] == worker["rank"] or each["world"] != worker["world"]
                for each in known.workers
            ):
                known = latest[name] = Round(name, [])
                found.append(known)
            known.workers.append(worker)
            known.workers.sort(key=lambda each: each["rank"])
        return found

    def waits(self, agent: str, *, spare: bool) -> None:
        """Wait until an agent waits for a round to come, as a spare or not."""
        self.until(
            lambda: [
                event for event in self.events("rdzv Waiting", agent) if event["spare"] == spare
            ],
            f"the waiting of {agent}",
        )

    def waits_for_checkpoint(self, agent: str) -> None:
        """Wait until an agent waits for workers to reach a checkpoint."""
        self.until(
            lambda: [event for event in self.events("rdzv Waiting", agent) if event["deferred"]],
            f"the waiting of {agent} for a checkpoint",
        )

    def crashed(self, *pids: int) -> None:
        """Wait until these workers have done as they were told, and have ended."""
        self.until(
            lambda: (
                {event["pid"] for event in self.events("crash")} >= set(pids)
                and all(map(has_ended, pids))
            ),
            f"the failure of the workers {pids}",
        )

    def works_on(self, found: Round, reports: int = 5) -> None:
        """Wait until every worker of a round has gone on for some steps."""

        def steps() -> Counter[int]:
            return Counter(event["pid"] for event in self.events("step"))

        began = steps()
        self.until(
            lambda: all(steps()[pid] >= began[pid] + reports for pid in found.pids),
            f"more steps of round {found.name}",
        )

    def saves(self, found: Round, *, opens: bool) -> None:
        """Have a round reach checkpoints until its worker is told whether another one opens."""
        self.order(f"save in round {found.name}")

        def told() -> list[dict[str, Any]]:
            saved = self.events("saved")
            return [e for e in saved if e["round"] == found.name and e["opens"] is opens]

        self.until(told, f"a checkpoint of round {found.name}")

    def finish(self, *agents: str) -> None:
        """Let the workers end well, and with them these agents."""
        self.order("finish")
        codes = {name: self.agents[name].wait() for name in agents}
        assert set(codes.values()) == {0}, f"{codes}\n{self.report()}"
