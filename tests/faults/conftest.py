"""What the fault tests are made of: real processes, told what to do and listened to.

Nothing here sleeps to synchronise. A test waits for what a process announces,
with a limit that only a hung program reaches; a call's own deadline is checked
with room for a machine that has much else to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rdzv.testing.local_server import stop_process

NODES = Path(__file__).with_name("nodes.py")

REQUEST_FORK, REQUEST_REAP = b"F", b"W"

LIMIT = 45.0
"""Seconds after which what did not happen will not happen."""

Event = dict[str, Any]


# As in nodes.py, which this cannot import: what these tests run is installed, they are not.
_REQUEST, _REPLY = struct.Struct("!cq"), struct.Struct("!q")


class Nursery:
    """Starts processes quickly: it has imported torch, and forks."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        environment = {
            **os.environ,
            # TCPStore looks up the name of each that connects: where nobody answers,
            # that is not to take long.
            "RES_OPTIONS": "timeout:1 attempts:1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(NODES), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()
        self._receive()

    def _receive(self) -> int:
        data = self._control.recv(_REPLY.size, socket.MSG_WAITALL)
        assert len(data) == _REPLY.size, "the nursery has ended"
        return int(_REPLY.unpack(data)[0])

    def fork(self, stdin: int, stdout: int) -> int:
        socket.send_fds(self._control, [_REQUEST.pack(REQUEST_FORK, 0)], [stdin, stdout])
        return self._receive()

    def reap(self, pid: int) -> int:
        """The exit code of a process that has ended or is ending."""
        self._control.sendall(_REQUEST.pack(REQUEST_REAP, pid))
        return self._receive()

    def close(self) -> None:
        self._control.close()
        self._process.wait(LIMIT)


class Process:
    """One process of a test: a node, or a store's host."""

    def __init__(self, nursery: Nursery, name: str) -> None:
        self.name = name
        self.events: list[Event] = []
        self.node = ""
        self.code: int | None = None
        self._nursery = nursery
        self._unread: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._held: list[Event] = []
        stdin, self._commands = os.pipe()
        lines, stdout = os.pipe()
        self.pid = nursery.fork(stdin, stdout)
        os.close(stdin)
        os.close(stdout)
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def _listen(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as lines:
            for line in lines:
                if line.endswith("\n"):
                    event = json.loads(line)
                    self.events.append(event)
                    self._unread.put(event)
        self._unread.put(None)

    def tell(self, command: str, **arguments: object) -> None:
        """Give a command; what comes of it is announced."""
        line = json.dumps({"do": command, **arguments}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            os.write(self._commands, line.encode())

    def expect(
        self,
        event: str,
        matches: Callable[[Event], bool] = lambda _: True,
        limit: float = LIMIT,
    ) -> Event:
        """The next such event that has not been asked for; a failed command is a failed test."""
        for held in self._held:
            if held["event"] == event and matches(held):
                self._held.remove(held)
                return held
        until = time.monotonic() + limit
        while True:
            try:
                found = self._unread.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"{self.name} announced no {event!r} in {limit:g} s:\n{self.story()}"
                ) from None
            if found is None:
                self._unread.put(None)
                raise AssertionError(f"{self.name} ended before {event!r}:\n{self.story()}")
            if found["event"] == event and matches(found):
                return found
            if found["event"] == "error":
                raise AssertionError(f"{self.name} failed, not {event!r}:\n{self.story()}")
            self._held.append(found)

    def ask(self, command: str, answer: str, limit: float = LIMIT, **arguments: object) -> Event:
        self.tell(command, **arguments)
        return self.expect(answer, limit=limit)

    def fail(self, command: str, limit: float = LIMIT, **arguments: object) -> Event:
        """Give a command that is to fail; the error."""
        self.tell(command, **arguments)
        return self.failed(command, limit)

    def failed(self, command: str, limit: float = LIMIT) -> Event:
        """The error of a command that was given."""
        return self.expect("error", lambda e: e["do"] == command, limit)

    def logged(self, *words: str, limit: float = LIMIT) -> Event:
        """The next line of its log that has all these words."""
        return self.expect("log", lambda e: all(word in e["text"] for word in words), limit)

    def has_logged(self, *words: str) -> bool:
        return any(
            e["event"] == "log" and all(word in e["text"] for word in words) for e in self.events
        )

    def forget(self) -> None:
        """Drop what was announced and not asked for."""
        self._held.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._unread.get_nowait()
                if event is None:
                    self._unread.put(None)
                    return

    def story(self) -> str:
        return "\n".join(f"  {self.name}: {event}" for event in self.events[-25:])

    def signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def pause(self) -> None:
        if self.code is None:
            stop_process(self.pid)

    def wake(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        if self.code is None:
            until = time.monotonic() + LIMIT
            while self._unread.get(timeout=max(0.0, until - time.monotonic())) is not None:
                pass
            self._unread.put(None)
            self.code = self._nursery.reap(self.pid)
            os.close(self._commands)
        return self.code


def is_free(path: str) -> bool:
    """Whether nobody holds the lock of a file."""
    if not os.path.exists(path):
        return True
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@dataclass
class Cluster:
    """The processes of one test, and what has to hold of all that they announce."""

    nursery: Nursery
    folder: Path
    processes: list[Process] = field(default_factory=list)
    nodes: list[Process] = field(default_factory=list)
    endpoint: str = ""
    run_id: str = field(default_factory=lambda: f"run-{uuid.uuid4().hex[:8]}")
    settings: dict[str, Any] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self, name: str) -> Process:
        process = Process(self.nursery, name)
        self.processes.append(process)
        return process

    def host_store(self, port: int = 0, host: str = "127.0.0.1") -> Process:
        """Start a process with a TCPStore, and point nodes that come later to it."""
        store = self.start(f"store-{next(self._numbers)}")
        port = store.ask("host", "hosting", host=host, port=port)["port"]
        self.endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return store

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def use_file(self) -> None:
        """Keep the run in a FileStore."""
        self.endpoint = str(self.folder / "store")
        self.settings["store_type"] = "file"

    def parameters(self, min_nodes: int = 1, max_nodes: int = 1, **settings: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "backend": "c10d",
            "endpoint": self.endpoint,
            "run_id": self.run_id,
            "min_nodes": min_nodes,
            "max_nodes": max_nodes,
            "join_timeout": 60,
            "last_call_timeout": 0.5,
            "close_timeout": 10,
            # Detection takes 1.5 s, and a busy machine may delay a beat by 1.25 s.
            "keep_alive_interval": 0.25,
            "keep_alive_max_attempt": 6,
            **self.settings,
            **settings,
        }
        if "store_type" not in given:
            given.setdefault("is_host", False)
        return given

    def open(self, count: int, min_nodes: int, max_nodes: int, **settings: Any) -> list[Process]:
        """Start nodes and make their handlers; they join nothing yet."""
        nodes = [self.start(f"node-{next(self._numbers)}") for _ in range(count)]
        self.nodes += nodes
        for node in nodes:
            node.tell("open", **self.parameters(min_nodes, max_nodes, **settings))
        for node in nodes:
            node.node = node.expect("opened")["node"]
        return nodes

    def try_to_open(self, **settings: Any) -> Event:
        """The error that making a handler gives."""
        node = self.start(f"node-{next(self._numbers)}")
        return node.fail("open", **self.parameters(**settings))

    def live(self, count: int, min_nodes: int, max_nodes: int, **settings: Any) -> list[Process]:
        """Start nodes that join round after round, and wait for a round of all of them."""
        nodes = self.open(count, min_nodes, max_nodes, **settings)
        # One after another, so that the first leads, and ranks are as they came.
        for node in nodes:
            self.enter(node)
        self.settle(nodes)
        return nodes

    def enter(self, node: Process) -> None:
        """Have a node join round after round, and wait until it has entered the run."""
        node.tell("live")
        node.ask("see_entered", "entered")

    def settle(self, nodes: Iterable[Process], above: int = 0) -> int:
        """Wait until these nodes and no others are together in a round; which one."""
        nodes = list(nodes)
        last: dict[str, Event] = {}
        for node in nodes:
            joined = [e for e in node.events if e["event"] == "joined"]
            if joined:
                last[node.name] = joined[-1]
        until = time.monotonic() + LIMIT
        while True:
            rounds = {name: event["round"] for name, event in last.items()}
            if (
                len(last) == len(nodes)
                and len(set(rounds.values())) == 1
                and min(rounds.values()) > above
                and all(event["size"] == len(nodes) for event in last.values())
            ):
                return int(min(rounds.values()))
            behind = min(nodes, key=lambda n: rounds.get(n.name, -1))
            if len(set(rounds.values())) == 1 and len(last) == len(nodes):
                behind = nodes[0]
            known = last.get(behind.name)
            try:
                last[behind.name] = behind.expect(
                    "joined",
                    lambda e, k=known: k is None or e["round"] > k["round"],  # type: ignore[misc]
                    max(0.1, until - time.monotonic()),
                )
            except AssertionError as exc:
                story = "\n".join(node.story() for node in self.processes)
                raise AssertionError(f"{exc}\nEverybody:\n{story}") from None

    def document(self, store: Process, above: int) -> Event:
        """The run's document once a round above that one has been committed."""
        answer = store.ask("see_round", "round", run_id=self.run_id, above=above)
        document: Event = answer["document"]
        return document

    def joined(self, node: Process) -> Event:
        """What its last join returned."""
        return [e for e in node.events if e["event"] == "joined"][-1]

    def new_leader(self, nodes: Iterable[Process]) -> Process:
        """The node of these that has taken, or takes, the lead."""
        nodes = list(nodes)
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            for node in nodes:
                if node.has_logged("leads the run"):
                    return node
            time.sleep(0.01)
        story = "\n".join(node.story() for node in nodes)
        raise AssertionError(f"nobody took the lead:\n{story}")

    def pause(self, node: Process) -> None:
        """Stop it where it does not hold a FileStore's lock, which would stop all others too."""
        while True:
            node.pause()
            if self.settings.get("store_type") != "file" or is_free(self.endpoint):
                return
            node.wake()

    def kill(self, node: Process) -> None:
        """Kill it, but not within a write to a FileStore.

        Half a record, once it is in the file, holds up all who read it, for ever.
        """
        self.pause(node)
        node.kill()

    def check(self, min_nodes: int | None = None, max_nodes: int | None = None) -> None:
        """What is promised of every history, on all that the nodes of the run have announced."""
        rounds: dict[int, list[Event]] = defaultdict(list)
        for node in self.nodes:
            seen = 0
            for event in node.events:
                if event["event"] != "joined":
                    continue
                assert event["round"] > seen, f"S6: rounds of a node grow\n{node.story()}"
                seen = event["round"]
                rounds[seen].append(event)
        for number, events in rounds.items():
            told = f"round {number}: {events}"
            assert len({(e["size"], *e["master"]) for e in events}) == 1, f"S2, {told}"
            ranks = [e["rank"] for e in events]
            size = events[0]["size"]
            assert len(ranks) == len(set(ranks)), f"S3, {told}"
            assert set(ranks) <= set(range(size)), f"S3, {told}"
            assert min_nodes is None or size >= min_nodes, f"S4, {told}"
            assert max_nodes is None or size <= max_nodes, f"S4, {told}"
        closed = [e["at"] for n in self.nodes for e in n.events if e["event"] == "closed"]
        if closed:
            late = [e for es in rounds.values() for e in es if e["began"] > min(closed)]
            assert not late, f"S8: closed at {min(closed)}, joined later: {late}"

    def end(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def bare(nursery: Nursery, tmp_path: Path) -> Iterator[Cluster]:
    """Processes without a store."""
    cluster = Cluster(nursery, tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()
    cluster.check()


@pytest.fixture
def cluster(bare: Cluster) -> Cluster:
    """Processes with a TCPStore in one of them, the first."""
    bare.host_store()
    return bare


@pytest.fixture(params=["tcp", "file"])
def anywhere(request: pytest.FixtureRequest, bare: Cluster) -> Cluster:
    """Processes with a TCPStore or a FileStore."""
    if request.param == "tcp":
        bare.host_store()
    else:
        bare.use_file()
    return bare
