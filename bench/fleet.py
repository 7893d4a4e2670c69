"""The processes of a measurement, seen from the one that coordinates them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ENVIRONMENT", "ROOT", "Child", "Fleet", "NodeResult", "environment", "flat"]

ROOT = Path(__file__).resolve().parent.parent

ENVIRONMENT = {
    # torch's TCPStore looks up the name of each client that connects, in the only thread of the
    # server. Where the name service loses packets, each look-up takes seconds and hides all else.
    "RES_OPTIONS": "timeout:1 attempts:1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
}
"""What every process of a measurement finds in its environment."""

NodeResult = dict[str, Any]


def flat(answers: list[list[NodeResult]]) -> list[NodeResult]:
    """What several processes answered, a node each."""
    return [node for answer in answers for node in answer]


def environment() -> dict[str, str]:
    """The environment of a child process."""
    return {**os.environ, **ENVIRONMENT}


class Child:
    """A process that takes commands and gives answers, one JSON document a line."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")

    def send(self, do: str, **arguments: Any) -> None:
        """Give a command; its answer has to be taken by :meth:`answer`."""
        if self._process.stdin is None:
            raise RuntimeError("the process takes no commands")
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self, seconds: float) -> Any:
        """The answer to the oldest command without one."""
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"a process gave no answer within {seconds:g} s") from None
        if not line:
            raise RuntimeError(f"a process ended early (exit code {self._process.wait(5)})")
        found = json.loads(line)
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found["answer"]

    def ask(self, do: str, seconds: float = 60.0, **arguments: Any) -> Any:
        """Give a command and take its answer."""
        self.send(do, **arguments)
        return self.answer(seconds)

    def kill(self) -> None:
        """End it as the machine's failure would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def close(self) -> None:
        """End it, one way or another."""
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Fleet:
    """A process that hosts a store, and processes with many nodes each.

    Args:
        processes: How many processes the nodes are spread over.
        server: The module of the process that hosts the store.
    """

    def __init__(self, processes: int = 2, server: str = "bench.server") -> None:
        self._children: list[Child] = []
        try:
            self.server = self._start(server)
            self.members = [self._start("bench.nodes", str(n)) for n in range(processes)]
            self.port = int(self.server.ask("port"))
            for member in self.members:
                member.ask("hello")
        except BaseException:
            self.close()
            raise

    def _start(self, module: str, *arguments: str) -> Child:
        child = Child(module, *arguments)
        self._children.append(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for child in reversed(self._children):  # The store's process last.
            child.close()

    # ------------------------------------------------------------ what nodes do

    def every(self, do: str, limit: float = 60.0, **arguments: Any) -> list[Any]:
        """Have every process do the same at once; their answers."""
        for member in self.members:
            member.send(do, **arguments)
        return [member.answer(limit) for member in self.members]

    def make(self, kind: str, nodes: int, *, port: int | None = None, **settings: Any) -> None:
        """Make ``nodes`` handlers of a fresh run, their connections opened."""
        run = uuid.uuid4().hex[:8]
        places = len(self.members)
        shares = [nodes // places + (1 if n < nodes % places else 0) for n in range(places)]
        arguments = {"min": nodes, "max": nodes, **settings}
        for member, share in zip(self.members, shares, strict=True):
            member.send(
                "make", kind=kind, run=run, count=share, port=port or self.port, **arguments
            )
        for member in self.members:
            member.answer(120.0)

    def make_several(self, kind: str, nodes: int, runs: list[str], **settings: Any) -> None:
        """Make ``nodes`` handlers of each of these runs, every run spread over all processes."""
        places = len(self.members)
        for run in runs:
            for place, member in enumerate(self.members):
                share = nodes // places + (1 if place < nodes % places else 0)
                arguments = {"min": nodes, "max": nodes, "more": True, **settings}
                member.send("make", kind=kind, run=run, count=share, port=self.port, **arguments)
            for member in self.members:
                member.answer(120.0)

    def round(self, seconds: float = 60.0) -> tuple[float, list[NodeResult]]:
        """All nodes enter at one moment: the seconds until the last returned, and each node's."""
        at = self.begin()
        found = self.finish(seconds)
        return max(node["end"] for node in found) - at, found

    def begin(self) -> float:
        """Have all nodes enter at one moment in the near future, which is returned."""
        self.every("prepare")
        at = time.monotonic() + 0.3
        self.every("start", at=at)
        return at

    def finish(self, seconds: float = 60.0) -> list[NodeResult]:
        """What became of all nodes that were started."""
        found = flat(self.every("finish", seconds + 10, timeout=seconds))
        errors = [node["error"] for node in found if node["error"]]
        if errors:
            raise RuntimeError(f"{len(errors)} of {len(found)} nodes failed: {errors[0]}")
        return found

    def drop(self) -> None:
        """Have all nodes leave and forget them."""
        self.every("drop", 90.0)
