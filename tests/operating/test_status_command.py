"""``rdzv status`` and ``rdzv watch`` on stores of every kind."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from rdzv import RendezvousStateError, operating
from rdzv.cli.status import screen
from rdzv.dynamic_rendezvous.backend import Session
from rdzv.dynamic_rendezvous.document import Record, encode
from rdzv.dynamic_rendezvous.runtime import Runtime
from rdzv.operating import Liveness, Role, RunNotFoundError

from ..groups import joining, places
from ..local_servers import eventually, listens
from .conftest import roles


def test_it_tells_who_is_in_and_who_waits_and_that_they_live(run):
    handlers = run.group.formed(2, 2, 2)
    joining(*run.group.add(1, 2, 2))
    eventually(lambda: len(run.status("--observe", "0")["nodes"]) == 3)
    found = run.status()
    assert roles(found) == [("member", 0), ("member", 1), ("spare", None)]
    assert (found["round"], found["size"], found["closed"]) == (1, 2, False)
    assert found["reason"]["code"] == "STANDS"
    assert {node["name"] for node in found["nodes"]} >= {h.node for h in handlers}
    assert [node["leads"] for node in found["nodes"]].count(True) == 1
    assert found["leader"] in {h.node for h in handlers}
    life = {"lease held"} if run.site.backend == "etcd" else {"beating"}
    eventually(lambda: {node["liveness"] for node in run.status()["nodes"]} == life)
    assert all(abs(node["since"] - time.time()) < 600 for node in found["nodes"])


def test_looking_leaves_a_run_and_the_lack_of_one_as_they_are(run):
    run.command("status", code=1)
    run.command("watch", code=1)
    with contextlib.closing(run.access().reader()) as session:
        assert session.read(None) is None, "somebody has made a run by looking at it"
    handlers = run.group.formed(2, 2, 2)
    eventually(lambda: run.status("--observe", "0")["master"] is not None)
    before = run.status("--observe", "0")
    for _ in range(3):
        run.status()
    after = run.status("--observe", "0")
    assert after == before
    assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0]


class Reading:
    """A session that can do nothing but read, and counts what is asked of it."""

    LOOKS = ("read", "fetch", "records", "beats")

    def __init__(self, session: Session) -> None:
        self.asked: Counter[str] = Counter()
        for name in (*self.LOOKS, "attach", "listen", "wait", "close"):
            setattr(self, name, self._counted(name, getattr(session, name)))

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            self.asked[name] += 1
            return method(*given)

        return call


def test_a_look_at_a_run_only_reads_and_costs_seven_requests_and_one_a_look_at_beats(make):
    run = make("sessions")
    run.group.formed(2, 2, 2)
    access = run.access()
    session = Reading(access.reader())
    access.reader = lambda: session
    operating.inspect(access)
    asked = session.asked
    assert asked["read"] + asked["fetch"] + asked["records"] == 7
    assert asked["beats"] >= 2
    for number, _ in enumerate(operating.follow(access)):
        if number == 3:
            break


def test_a_backend_of_get_and_set_is_only_asked_to_get(make, monkeypatch):
    run = make("get and set")
    run.group.formed(2, 2, 2)
    access = run.access()

    def refuse(*_: Any) -> None:
        raise AssertionError("status writes")

    monkeypatch.setattr(access._backend, "set_state", refuse)
    assert operating.inspect(access).size == 2


def test_a_run_that_is_not_there_is_said_to_be_not_there(run):
    done = run.command("status", code=1)
    assert f"There is no run '{run.name}'" in done.stderr
    assert done.stdout == ""


def test_a_node_that_has_stopped_is_silent(run):
    # One is too few for another round: who is lost stays in this one.
    handlers = run.group.formed(2, 2, 2)
    handlers[1]._driver.stop()

    def life() -> dict[str, str]:
        return {node["name"]: node["liveness"] for node in run.status()["nodes"]}

    eventually(lambda: life()[handlers[1].node] == "silent")
    eventually(lambda: life()[handlers[0].node] in ("beating", "lease held"))
    said = re.compile(r"silent for \d\.\d s or more")
    eventually(lambda: said.search(run.command("status").stdout))


def test_it_says_how_many_are_missing(tcp):
    joining(*tcp.group.add(1, 3, 4))
    there = (AssertionError,)  # Not yet.
    eventually(lambda: tcp.command("status", "--observe", "0"), unknown=there)
    eventually(lambda: len(tcp.status("--observe", "0")["nodes"]) == 1)
    found = tcp.status()
    assert found["reason"]["code"] == "MINIMUM"
    assert found["reason"]["missing"] == 2
    text = tcp.command("status").stdout
    assert "1 of 3: waiting for 2 more." in text
    assert "no round yet; 3 to 4 nodes" in text


def test_it_says_about_when_the_last_call_ends(tcp):
    began = time.time()
    joining(*tcp.group.add(2, 2, 4, last_call_timeout=600))
    eventually(
        lambda: tcp.status("--observe", "0")["reason"]["code"] == "LAST_CALL",
        unknown=(AssertionError,),
    )
    reason = tcp.status()["reason"]
    assert reason["missing"] == 2
    assert began + 600 <= reason["until"] <= time.time() + 600
    clock = time.strftime("%X", time.localtime(reason["until"]))
    said = " ".join(tcp.command("status").stdout.split())
    assert f"2 of 4: waiting for 2 more until about {clock} (last call)." in said


def test_it_says_who_has_still_to_come_back(tcp):
    handlers = tcp.group.formed(3, 2, 3)
    joining(handlers[0])
    eventually(lambda: tcp.status("--observe", "0")["reason"]["code"] == "RETURN")
    found = tcp.status("--observe", "0")
    assert found["change"] == "1 node came back"
    assert found["reason"]["missing"] == 2
    for handler in handlers[1:]:
        assert handler.node in found["reason"]["text"]
    assert sorted(role for role, _ in roles(found)) == ["member", "member", "returned"]


@pytest.mark.parametrize("name", ["c10d", "rdzv-c10d"])
def test_a_backend_goes_by_its_name_in_rdzv_and_in_torchrun(tcp, name):
    tcp.group.formed(1, 1, 1)
    access = operating.connect(name, tcp.site.endpoint, tcp.name)
    assert operating.inspect(access).size == 1


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("command", ["watch", "reset"])
def test_nothing_is_hosted_where_nothing_listens(tcp, command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tcp.site = type(tcp.site)("c10d", f"127.0.0.1:{port}")
    # Even where the settings of the job are given as they are.
    more = ["--yes"] if command == "reset" else []
    done = tcp.command(
        command, "--conf", "is_host=true,read_timeout=600,join_timeout=600", *more, code=3
    )
    assert f"No store answers at 127.0.0.1:{port} within 3 s" in done.stderr
    assert not listens(port)


def test_a_file_that_is_not_there_is_not_made(tcp, tmp_path):
    tcp.site = type(tcp.site)("c10d", str(tmp_path / "file"))
    done = tcp.command("status", "--conf", "store_type=file", code=3)
    assert "There is no FileStore" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backend", "options", "said"),
    [
        ("nosuch", [], "nosuch"),
        ("static", [], "does without rdzv's engine"),
        ("c10d", ["--conf", "depth=3"], "no setting 'depth'"),
        ("c10d", ["--conf", "depth"], "write k=v"),
        ("c10d", ["--conf", "read_timeout=soon"], "read_timeout"),
    ],
)
def test_wrong_arguments_are_named(tcp, backend, options, said):
    tcp.site = type(tcp.site)(backend, "127.0.0.1:1")
    assert said in tcp.command("status", *options, code=2).stderr


def test_a_store_that_holds_something_else_is_refused_without_its_control_characters(tcp):
    tcp.site.store.set(f"rdzv/{tcp.name}/document/1", "0123456789abcdef:\x1b[31mred\x07")
    for command in (("status",), ("scale", "--max", "3"), ("close", "--yes"), ("reset", "--yes")):
        done = tcp.command(*command, code=3)
        assert "does not hold what rdzv writes there" in done.stderr
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", done.stderr)


def test_names_in_the_store_cannot_do_anything_to_the_terminal(tcp):
    evil = "ho\x1b[2Jst\u202e[red]\n"
    tcp.group.formed(1, 1, 1)
    write_record(tcp, Record("enter", "x", evil, 1, 0, 1.0, "y"))
    text = tcp.command("status").stdout
    assert "\\x1b[2J" in text
    assert "\\u202e[red]\\n" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert tcp.status("--observe", "0")["nodes"][1]["address"] == evil


def write_record(tcp, record: Record) -> None:
    base = f"rdzv/{tcp.name}/{tcp.status('--observe', '0')['epoch']}"
    ticket = tcp.site.store.add(f"{base}/tickets", 1)
    tcp.site.store.set(f"{base}/record/{ticket}", encode(record).decode())


def test_a_wall_clock_out_of_its_range_is_refused(tcp):
    tcp.group.formed(1, 1, 1)
    write_record(tcp, Record("enter", "x", "host", 1, 0, 1.0, "y", since=1e300))
    with pytest.raises(RendezvousStateError, match="does not hold what rdzv writes"):
        operating.inspect(tcp.access())


class Held(Runtime):
    """A clock of its own; this process is held up as it wakes from a pause for the first time."""

    def __init__(self, late: float) -> None:
        self.now, self.late = 100.0, late

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late
        self.late = 0.0


@pytest.mark.parametrize("late", [0.0, 0.3, 0.5, 0.7, 1.0, 5.0])
def test_who_is_held_up_as_it_looks_tells_the_silent_all_the_same(tcp, late):
    for handler in tcp.group.formed(2, 2, 2):
        handler._driver.stop()
    with contextlib.closing(tcp.access().reader()) as session:
        observer = operating.Observer(session, tcp.name, runtime=Held(late))
        observer.read()
        observer.watch_beats(observer.enough())
    assert {node.liveness for node in observer.status().nodes} == {Liveness.SILENT}


# ---------------------------------------------------------------- the screen


@pytest.mark.parametrize("width", [80, 120])
def test_a_screen_is_no_wider_than_the_terminal(tcp, width):
    tcp.group.formed(2, 2, 3)
    write_record(tcp, Record("enter", "x", "host." + "x" * 250, 2**53, 2**53, 20.0, "y"))
    found = operating.inspect(tcp.access(), observe=0)
    nodes = [
        dataclasses.replace(node, liveness=Liveness.BEATING) if node.rank is not None else node
        for node in found.nodes
    ]
    found = dataclasses.replace(found, observed=10.0, nodes=tuple(nodes))
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(screen(found))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert any(re.match(r"\s+rank|rank", line) for line in lines)
    assert sum(line.count("beating") for line in lines) == 2


def test_what_was_seen_of_a_node_counts_from_when_it_was_first_looked_at(tcp):
    tcp.group.formed(2, 2, 2)
    found = operating.inspect(tcp.access(), observe=0)
    first, second = found.nodes
    # As ``watch`` sees it that has run for long when somebody comes.
    late = (
        dataclasses.replace(first, liveness=Liveness.UNKNOWN, silent=0.0),
        dataclasses.replace(second, liveness=Liveness.UNKNOWN, silent=0.4),
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(screen(dataclasses.replace(found, observed=18.0, nodes=late)))
    text = console.export_text()
    assert text.count("not known") == 1
    assert text.count("no beat seen in 0.4 s") == 1


# ---------------------------------------------------------------- following


def test_a_run_is_followed_from_change_to_change_until_it_is_closed(run):
    run.group.formed(2, 2, 3)
    seen = []
    changes = threading.Event()

    def follow() -> None:
        for status in operating.follow(run.access()):
            seen.append(status)
            changes.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    eventually(lambda: seen and len(seen[-1].alive) == 2)
    [third] = run.group.add(1, 2, 3)
    future = joining(third)[0]
    eventually(lambda: seen[-1].change)
    for handler in run.group.handlers[:2]:
        eventually(handler.num_nodes_waiting)
    futures = joining(*run.group.handlers[:2])
    assert {place[2] for place in places([*futures, future])} == {3}
    eventually(lambda: seen[-1].round == 2 and len(seen[-1].alive) == 3)
    last = seen[-1]
    assert last.those(Role.MEMBER) == list(last.nodes)
    run.command("close", "--yes")
    thread.join(30)
    assert not thread.is_alive()
    assert seen[-1].closed


def test_whoever_follows_a_run_sees_a_node_get_lost(tcp):
    # Nobody else notices: one node cannot go on alone.
    handlers = tcp.group.formed(2, 2, 2)
    for handler in handlers:
        handler._driver.stop()
    for status in operating.follow(tcp.access()):
        if len(status.those(Role.LOST)) == 2:
            break
    assert {node.liveness for node in status.nodes} == {Liveness.SILENT}
    assert all(node.silent >= 0.9 for node in status.nodes)


def program(run, *words: str) -> subprocess.Popen[str]:
    where = ["--backend", run.site.backend, "--endpoint", run.site.endpoint]
    return subprocess.Popen(
        [sys.executable, "-m", "rdzv.cli", words[0], run.name, *where, *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_watch_prints_a_line_for_each_change_until_the_run_is_closed(tcp):
    tcp.group.formed(2, 2, 2)
    with program(tcp, "watch", "--json") as process:
        assert process.stdout is not None
        try:
            lines = [json.loads(process.stdout.readline()) for _ in range(2)]
            tcp.command("close", "--yes")
            lines += [json.loads(line) for line in process.stdout]
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert [line["closed"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert {line["round"] for line in lines} == {1}


def test_ctrl_c_ends_watch(tcp):
    tcp.group.formed(2, 2, 2)
    with program(tcp, "watch") as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert line.startswith(f"Run {tcp.name}: round 1 of 2 nodes since ")
    assert process.returncode == 0, errors
    assert errors == ""
    assert "Traceback" not in rest


def test_following_a_run_that_is_not_there_is_an_error(run):
    with pytest.raises(RunNotFoundError, match=run.name):
        next(operating.follow(run.access()))
