"""An elastic job on this machine that loses a node, goes on, and grows back.

    python demo.py

Starts three torchrun agents, each playing a node, which train one model together (train.py).
Then one is killed, the others go on from the checkpoint, a new one joins, and the job ends by
itself. See README.md for what happens and for how to do the same on real nodes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from observe import Node, Round, Rounds, Span, State, kill, processes_marked
from picture import draw
from view import View, open_view

if TYPE_CHECKING:
    from types import FrameType

TRAIN = Path(__file__).with_name("train.py")
TIME_LIMIT = 110.0
POLL_INTERVAL = 0.1
LEAST_STEPS = 200
TAIL_LINES = 15

FIRST = ("node-1", "node-2", "node-3")
TORCHS_OWN = ("c10d", "etcd-v2")
HOST = "node-1"  # its agent hosts the store of c10d, so there this node must not be killed
VICTIM = "node-2"
NEWCOMER = "node-4"


class Phase(Enum):
    """What the demo waits for, and what is wrong when that does not come."""

    FORM = "the three nodes did not get to train together"
    RECOVER = f"the other two did not go on after {VICTIM} was killed"
    GROW = f"{NEWCOMER} did not get to train with the others, or the job did not end"


class DemoError(Exception):
    """The job did not do what this demo is there to show."""


@dataclass(frozen=True)
class Plan:
    """When things happen, in training steps: that holds on slow machines as well."""

    steps: int
    save_every: int = 20
    log_every: int = 5
    step_seconds: float = 0.1

    @property
    def kill_at(self) -> int:
        return self.steps * 3 // 10

    @property
    def join_at(self) -> int:
        return self.steps // 2


class Demo:
    """The job: its agents, what is known about them, and what is done to them when."""

    def __init__(
        self, backend: str, endpoint: str, admission: str, plan: Plan, directory: Path
    ) -> None:
        self.backend = backend
        self.admission = admission
        self.plan = plan
        self.directory = directory
        self.run_id = f"demo-{uuid.uuid4().hex[:8]}"
        self.endpoint = endpoint
        self.phase = Phase.FORM
        self.nodes: dict[str, Node] = {}
        self.rounds = Rounds()
        self.began = time.time()
        self.killed: float | None = None
        self.joined: float | None = None
        self.ended: float | None = None

    # The story

    def run(self, view: View) -> None:
        for name in FIRST:
            self._start(name)
        try:
            self._follow(view)
        finally:
            self.ended = time.time()

    def _follow(self, view: View) -> None:
        while not self._is_over():
            if time.time() - self.began > TIME_LIMIT:
                raise DemoError(f"Within {TIME_LIMIT:.0f} seconds {self.phase.value}.")
            self._observe()
            self._act()
            view.show(self)
            time.sleep(POLL_INTERVAL)
        self._observe()
        view.show(self)

    def _act(self) -> None:
        step = self._common_step()
        if self.phase is Phase.FORM and step >= self.plan.kill_at:
            self.nodes[VICTIM].kill()
            self.killed = self.nodes[VICTIM].ended
            self.phase = Phase.RECOVER
        elif self.phase is Phase.RECOVER and step >= self.plan.join_at:
            self._start(NEWCOMER)
            self.joined = self.nodes[NEWCOMER].began
            self.phase = Phase.GROW

    def _common_step(self) -> int:
        """The step that all nodes which are to train have reached, in one and the same round."""
        spans = [node.span for node in self.nodes.values() if not node.killed]
        training = [span for span in spans if span is not None and span.last_step is not None]
        if any(span.ended is not None or span.world != len(spans) for span in training):
            return 0
        steps = [span.last_step or 0 for span in training]
        return min(steps) if len(steps) == len(spans) else 0

    def _observe(self) -> None:
        for node in self.nodes.values():
            node.read_log(self.rounds)
            if node.state is State.FAILED:
                raise DemoError(f"{node.name}'s agent ended with exit code {node.exit_code}.")
            if node.state is State.DONE and node.exit_code == 0 and self.phase is not Phase.GROW:
                raise DemoError(f"{node.name} ended before the demo was over: more --steps?")

    def _is_over(self) -> bool:
        running = [node for node in self.nodes.values() if not node.killed]
        return self.phase is Phase.GROW and all(node.exit_code == 0 for node in running)

    # The agents

    def _start(self, name: str) -> None:
        node = Node(name, self.run_id, self.directory / "logs")
        self.nodes[name] = node
        node.start(self._command(name), agent_environment())

    def _command(self, name: str) -> list[str]:
        return [
            *(sys.executable, "-m", "torch.distributed.run"),
            "--nnodes=2:3",
            "--nproc-per-node=1",
            "--max-restarts=3",
            "--local-addr=127.0.0.1",
            f"--rdzv-backend={self.backend}",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={self.run_id}",
            f"--rdzv-conf={self._settings(is_host=name == HOST)}",
            str(TRAIN),
            f"--name={name}",
            f"--log-dir={self.directory / 'logs'}",
            f"--checkpoint-dir={self.directory / 'checkpoints'}",
            f"--steps={self.plan.steps}",
            f"--save-every={self.plan.save_every}",
            f"--log-every={self.plan.log_every}",
            f"--step-seconds={self.plan.step_seconds}",
        ]

    def _settings(self, *, is_host: bool) -> str:
        settings = rendezvous_settings(self.backend, is_host=is_host)
        # torch's own backends ignore what they do not know.
        return f"{settings},admission={self.admission}"

    def clean_up(self) -> None:
        """End whatever this demo started and is still running, in whichever way it ends."""
        for name in self.nodes:
            for pid in processes_marked(f"{self.run_id}/{name}"):
                kill(pid)

    # What came of it

    def timeline(self) -> list[tuple[float, str]]:
        """What happened when, in seconds since the start."""
        entries = [(self.began, f"{len(FIRST)} agents started: {', '.join(FIRST)}")]
        for each in self.rounds.complete:
            entries.append((each.completed, f"{each}{self._after(each.completed)}"))
            entries += self._training_of(each)
        if self.killed is not None:
            entries.append((self.killed, f"{VICTIM} killed: its agent and its worker"))
        if self.joined is not None:
            entries.append((self.joined, f"{NEWCOMER} started"))
        for node in self.nodes.values():
            if node.exit_code is not None and node.ended is not None and not node.killed:
                entries.append((node.ended, f"{node.name} ended, exit code {node.exit_code}"))
        return sorted((when - self.began, what) for when, what in entries)

    def _training_of(self, each: Round) -> list[tuple[float, str]]:
        spans = self.spans_of(each)
        if any(span.trained_from is None for span in spans):
            return []
        first = max(span.trained_from or 0.0 for span in spans)
        resumed = max(span.resumed_step or 0 for span in spans)
        origin = f"from the checkpoint of step {resumed}" if resumed else "from the beginning"
        return [(first, f"training in round {each.number}, {origin}{self._after(first)}")]

    def _after(self, when: float) -> str:
        """The time since what brought this about, if it was something the demo did."""
        if self.joined is not None and when > self.joined:
            return f" ({when - self.joined:.1f} s after {NEWCOMER} was started)"
        if self.killed is not None and when > self.killed:
            return f" ({when - self.killed:.1f} s after the kill)"
        return ""

    def spans_of(self, each: Round) -> list[Span]:
        spans = [span for node in self.nodes.values() for span in node.spans]
        return [span for span in spans if span.round == each.number]

    def problems(self) -> list[str]:
        """What is not as it should be after a job that ended by itself."""
        return [*self._problems_of_rounds(), *self._problems_of_learning()]

    def _problems_of_rounds(self) -> list[str]:
        survivors = {name for name in FIRST if name != VICTIM}
        # Before the kill there may be one round more, of the two agents that were faster.
        before = [each for each in self.rounds.seen if each.completed < (self.killed or 0)]
        after = [set(each.members) for each in self.rounds.seen[len(before) :]]
        found = []
        if not before or set(before[-1].members) != set(FIRST):
            found.append("the last round before the kill was not one of all three nodes")
        if after != [survivors, survivors | {NEWCOMER}]:
            seen = "; ".join(", ".join(sorted(members)) for members in after) or "none"
            found.append(f"the rounds after the kill were not the expected two, but: {seen}")
        return found + [
            f"ranks are missing or double: {each}"
            for each in self.rounds.seen
            if sorted(each.members.values()) != list(range(each.world))
        ]

    def _problems_of_learning(self) -> list[str]:
        found = []
        last = {loss.round: loss.loss for node in self.nodes.values() for loss in node.held_out}
        losses = [last[number] for number in sorted(last)]
        if len(losses) < len(self.rounds.seen) or losses != sorted(losses, reverse=True):
            found.append(f"the held-out loss did not fall from round to round: {losses}")
        for each in self.rounds.seen:
            resumed = {span.resumed_step for span in self.spans_of(each)}
            if each.completed > (self.killed or 0) and resumed in ({0}, {None}):
                found.append(f"round {each.number} did not go on from a checkpoint")
        return found


def rendezvous_settings(backend: str, *, is_host: bool) -> str:
    # Short times, for a job on one machine. torch's own backends know whole seconds only.
    interval = "1" if backend in TORCHS_OWN else "0.5"
    # etcd has no leases of less than two seconds.
    attempts = "4" if backend.startswith("rdzv-etcd") else "3"
    settings = {
        "join_timeout": "60",
        "last_call_timeout": "1",
        "keep_alive_interval": interval,
        "keep_alive_max_attempt": attempts,
    }
    if backend.endswith("c10d"):
        settings["is_host"] = str(int(is_host))
    return ",".join(f"{key}={value}" for key, value in settings.items())


def agent_environment() -> dict[str, str]:
    environment = dict(os.environ)
    # Several nodes share this machine's cores: one thread each, or they hinder one another.
    environment["OMP_NUM_THREADS"] = "1"
    # Everything stays on this machine, whatever its name resolves to.
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def explain(demo: Demo, why: list[str]) -> None:
    print("\nThe demo failed:", file=sys.stderr)
    for line in why:
        print(f"  - {line}", file=sys.stderr)
    print("\nWhat happened until then:", file=sys.stderr)
    for when, what in demo.timeline():
        print(f"  {when:6.1f} s  {what}", file=sys.stderr)
    for node in demo.nodes.values():
        state = f"{node.state.value}, exit code {node.exit_code}"
        print(f"\nThe end of {node.name}'s log ({state}):", file=sys.stderr)
        for line in tail(node.agent_log):
            print(f"  {line}", file=sys.stderr)
    print(f"\nAll logs are in {demo.directory}.", file=sys.stderr)


def tail(log: Path) -> list[str]:
    """The end of an agent's log, without the events that its worker has logged."""
    lines = log.read_text(errors="replace").splitlines()
    told = [line for line in lines if not line.startswith('{"time"')]
    return told[-TAIL_LINES:] or ["(empty)"]


def report(demo: Demo, picture: Path) -> None:
    print("\nWhat happened:")
    for when, what in demo.timeline():
        print(f"  {when:6.1f} s  {what}")
    held_out = sorted(
        (loss.time, loss.loss) for node in demo.nodes.values() for loss in node.held_out
    )
    print(f"\nHeld-out loss: {held_out[0][1]:.2f} at first, {held_out[-1][1]:.2f} in the end.")
    print(f"Picture of it: {picture}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="An elastic torchrun job that loses a node, goes on, and grows back.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backend", default="rdzv-c10d", help="the rendezvous backend, as torchrun knows it")
    add("--endpoint", help="for a backend with a server of its own; else a free port here")
    add("--admission", choices=("deferred", "immediate"), default="deferred", help="of newcomers")
    add("--steps", type=int, default=300, help=f"of the whole job, at least {LEAST_STEPS}")
    add("--output", type=Path, default=Path("elastic_training_output"), help="for the picture")
    add("--keep-logs", action="store_true", help="keep logs and checkpoints of a good run, too")
    options = parser.parse_args()
    if options.steps < LEAST_STEPS:
        parser.error(f"--steps must be at least {LEAST_STEPS}: a newcomer needs time to arrive.")
    if not Path("/proc/self/environ").exists():
        parser.error("this demo finds its processes by /proc and needs Linux; train.py does not.")
    return options


def end_on_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # an exception, so that clean_up is reached


def perform(demo: Demo, options: argparse.Namespace) -> int:
    """Run the demo and say what came of it. The answer is the exit code."""
    problems: list[str] = []
    try:
        with open_view() as view:
            demo.run(view)
        problems = demo.problems()
    except DemoError as error:
        problems = [str(error)]
    picture = options.output / "timeline.png"
    if demo.rounds.seen:
        draw(demo, picture)
    if problems:
        explain(demo, problems)
        return 1
    report(demo, picture)
    if not options.keep_logs:
        shutil.rmtree(demo.directory)
    return 0


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, end_on_signal)
    options.output.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=options.output)).resolve()
    (directory / "logs").mkdir()
    endpoint = options.endpoint or f"127.0.0.1:{free_port()}"
    demo = Demo(options.backend, endpoint, options.admission, Plan(options.steps), directory)
    try:
        return perform(demo, options)
    except KeyboardInterrupt:
        print(f"\nInterrupted. All logs are in {directory}.", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        demo.clean_up()


if __name__ == "__main__":
    sys.exit(main())
