"""What the demo knows about its job, all of it read from the workers' logs and from processes.

Nothing here asks the rendezvous: rounds are what the workers saw of them. All workers of a round
are given the same master address, and a fresh one every round, so it stands for the round.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "RDZV_DEMO_NODE"
"""The environment variable by which the demo recognises the processes it started."""


class State(Enum):
    """What a node is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    TRAINING = "training"
    RESTARTING = "restarting"
    KILLED = "killed"
    FAILED = "failed"
    DONE = "done"


@dataclass
class Span:
    """The life of one worker: one node's part in one round. Times are time.time()."""

    node: str
    round: int
    rank: int
    world: int
    pid: int
    began: float
    trained_from: float | None = None
    first_step: int | None = None
    last_step: int | None = None
    resumed_step: int | None = None
    ended: float | None = None
    finished: bool = False


@dataclass(frozen=True)
class Loss:
    """One point of the loss curve."""

    time: float
    round: int
    step: int
    loss: float


@dataclass
class Round:
    """One agreed membership."""

    number: int
    master: str
    world: int
    members: dict[str, int] = field(default_factory=dict)
    completed: float = 0.0
    """When the last of its workers was started."""

    @property
    def is_complete(self) -> bool:
        return len(self.members) == self.world

    def __str__(self) -> str:
        ranked = sorted(self.members.items(), key=lambda item: item[1])
        names = ", ".join(f"{name} (rank {rank})" for name, rank in ranked)
        return f"round {self.number}: {names}"


class LogReader:
    """The new complete lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


class Node:
    """One agent, which plays one machine, and its worker."""

    def __init__(self, name: str, run: str, logs: Path) -> None:
        self.name = name
        self.agent_log = logs / f"{name}.agent.log"
        self.marker = f"{run}/{name}"
        self.began = time.time()
        self.ended: float | None = None
        self.killed = False
        self.spans: list[Span] = []
        self.losses: list[Loss] = []
        self.held_out: list[Loss] = []
        self._log = LogReader(logs / f"{name}-0.jsonl")
        self._agent: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        with self.agent_log.open("wb") as log:
            self._agent = subprocess.Popen(
                command,
                env={**environment, MARKER: self.marker},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.began = time.time()

    @property
    def exit_code(self) -> int | None:
        return None if self._agent is None else self._agent.poll()

    @property
    def span(self) -> Span | None:
        return self.spans[-1] if self.spans else None

    @property
    def state(self) -> State:
        if self.killed:
            return State.KILLED
        if self.exit_code is not None:
            return State.DONE if self.exit_code == 0 else State.FAILED
        if self.span is None:
            return State.WAITING
        if self.span.ended is not None:
            return State.DONE if self.span.finished else State.RESTARTING
        return State.STARTING if self.span.trained_from is None else State.TRAINING

    def kill(self) -> None:
        """Kill the agent and its workers, as if the machine had lost its power.

        A killed agent's workers would live on and go on training: torchrun gives each a session
        of its own. The agent goes first, so that it has no time to notice its worker's death.
        """
        self.killed = True
        self.ended = time.time()
        if self._agent is not None:
            self._agent.kill()
        for pid in processes_marked(self.marker):
            kill(pid)
        if self._agent is not None:
            self._agent.wait()
        # One that was being forked at that moment is found now.
        for pid in processes_marked(self.marker):
            kill(pid)

    def read_log(self, rounds: Rounds) -> None:
        for event in self._log.read():
            self._take(event, rounds)
        span = self.span
        if span is not None and span.ended is None and not is_alive(span.pid):
            span.ended = self.ended or time.time()
        if self.exit_code is not None and self.ended is None:
            self.ended = time.time()

    def _take(self, event: dict[str, Any], rounds: Rounds) -> None:
        kind, when = event["event"], event["time"]
        if kind == "start":
            if self.span is not None and self.span.ended is None:
                self.span.ended = event["started"]
            self.spans.append(rounds.join(event))
            return
        span = self.spans[-1]
        if kind == "resume":
            span.resumed_step = event["step"]
        elif kind == "step":
            self._take_step(span, Loss(when, span.round, event["step"], event["loss"]))
        elif kind == "checkpoint":
            self.held_out.append(Loss(when, span.round, event["step"], event["held_out"]))
        elif kind in ("end", "failed"):
            span.ended = when
            span.finished = kind == "end"

    def _take_step(self, span: Span, loss: Loss) -> None:
        if span.first_step is None:
            span.first_step, span.trained_from = loss.step, loss.time
        span.last_step = loss.step
        self.losses.append(loss)


class Rounds:
    """The rounds seen so far, in order."""

    def __init__(self) -> None:
        self.seen: list[Round] = []

    def join(self, event: dict[str, Any]) -> Span:
        """Enter a worker's start, and answer with the span that begins with it."""
        name, rank, world = event["node"], event["rank"], event["world"]
        current = self._find(name, event["master"], world)
        current.members[name] = rank
        current.completed = max(current.completed, event["started"])
        return Span(name, current.number, rank, world, event["pid"], event["started"])

    def _find(self, name: str, master: str, world: int) -> Round:
        for known in self.seen:
            # A port may come back by chance, but a node is in a round only once.
            if known.master == master and name not in known.members:
                return known
        self.seen.append(Round(len(self.seen) + 1, master, world))
        return self.seen[-1]

    @property
    def complete(self) -> list[Round]:
        return [each for each in self.seen if each.is_complete]


def processes_marked(marker: str) -> list[int]:
    """The processes whose environment carries this marker.

    Unlike a walk from parent to child this also finds the workers of an agent that has died.
    """
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or belongs to somebody else
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended (a zombie waits for its agent to look)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
