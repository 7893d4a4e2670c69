"""What observers are told of whole runs, in which order, and that they disturb none."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import pytest

from rdzv import events, hookimpl
from rdzv.events import (
    Closed,
    Completed,
    Event,
    Failed,
    Joined,
    LastCall,
    LeaderChanged,
    Left,
    Lost,
    Ranked,
    Reopened,
    Waiting,
)
from rdzv.plugins import extensions

from .test_handler import LIMIT, Run, background, eventually, join


class Recorder:
    """An extension that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Event] = []

    @hookimpl
    def rdzv_event(self, event: Event) -> None:
        self.seen.append(event)

    def of(self, node: str, *kinds: type[Event]) -> list[Event]:
        return [e for e in self.seen if e.node == node and (not kinds or isinstance(e, kinds))]

    def kinds(self, node: str) -> list[str]:
        return [type(event).__name__ for event in self.of(node)]


@pytest.fixture
def install() -> Iterator[Callable[[object], None]]:
    """Install extensions for one test."""
    installed: list[object] = []

    def add(extension: object) -> None:
        extensions().register(extension)
        installed.append(extension)

    yield add
    for each in installed:
        extensions().unregister(each)


@pytest.fixture
def told(install) -> Recorder:
    recorder = Recorder()
    install(recorder)
    return recorder


@pytest.fixture
def run(told) -> Iterator[Run]:  # made after the observer
    made = Run("memory")
    yield made
    made.end()


def test_a_node_of_a_run_tells_its_whole_life_in_order(run, told):
    first, second = run.handler(1, 2), run.handler(1, 2)
    join(first)
    late = background(second.next_rendezvous)
    eventually(lambda: told.of(first.node, Reopened), "the late node is seen, and told of")
    join(first)
    late.result(LIMIT)
    first.set_closed()
    for handler in (first, second):
        handler.leave()
    assert told.kinds(first.node) == [
        *("Joined", "LeaderChanged", "LastCall", "Ranked", "Completed"),
        *("Reopened", "Joined", "Ranked", "Completed"),
        *("Closed", "Left"),
    ]
    assert told.kinds(second.node) == ["Joined", "Waiting", "Ranked", "Completed", "Left"]
    assert [event.round for event in told.of(first.node, Completed, Reopened)] == [1, 1, 2]
    for node in (first.node, second.node):
        seen = told.of(node)
        assert {(event.run_id, event.backend) for event in seen} == {("run", "memory")}
        assert all(a.at <= b.at and a.time <= b.time for a, b in itertools.pairwise(seen))


def test_a_loss_tells_how_long_the_node_was_silent_and_the_news_what_happened(run, told):
    handlers = [run.handler(2, 3, interval=0.3, attempts=8, last_call=2) for _ in range(3)]
    infos = join(*handlers)
    by_rank = dict(zip([info.rank for info in infos], handlers, strict=True))
    victim = by_rank[2]
    victim._driver.stop()
    others = [by_rank[0], by_rank[1]]
    eventually(lambda: all(h.num_nodes_waiting() for h in others), "the loss is told")
    join(*others)
    eventually(lambda: any(told.of(h.node, Lost) for h in others), "an observer is told")
    [lost] = [event for h in others for event in told.of(h.node, Lost)]
    assert isinstance(lost, Lost)
    assert lost.lost == (victim.node,)
    # The leader counts on its own clock; 2.4 s is what the settings say.
    assert 2.39 < lost.silent < LIMIT
    for handler in others:
        [news] = told.of(handler.node, Reopened)
        assert isinstance(news, Reopened)
        assert (news.lost, news.left, news.returned, news.arrived) == (1, 0, 0, 0)
        assert news.reason == "1 node lost"


def test_the_last_call_tells_how_many_are_here_and_how_long_it_takes(run, told):
    first = run.handler(1, 3, last_call=0.3)
    join(first)
    eventually(lambda: told.of(first.node, Completed), "the round is told")
    called, completed = told.of(first.node, LastCall, Completed)
    assert isinstance(called, LastCall)
    assert called.nodes == 1
    assert called.seconds == pytest.approx(0.3)
    assert isinstance(completed, Completed)
    # Told when it has been decided, and so a moment late.
    assert completed.at - called.at > 0.2
    [joined] = told.of(first.node, Joined)
    assert completed.seconds == pytest.approx(completed.at - joined.at, abs=0.2)


def test_a_full_round_has_no_last_call(run, told):
    handlers = [run.handler(2, 2), run.handler(2, 2)]
    join(*handlers)
    eventually(lambda: all(told.of(h.node, Completed) for h in handlers), "both are told")
    assert not any(told.of(h.node, LastCall) for h in handlers)


def test_a_spare_tells_that_it_is_one_and_again_once_there_is_room(run, told):
    handlers = [run.handler(2, 2), run.handler(2, 2)]
    join(*handlers)
    spare = run.handler(2, 2)
    waits = background(spare.next_rendezvous)
    eventually(lambda: told.of(spare.node, Waiting), "the spare is told")
    handlers[1].leave()
    eventually(lambda: handlers[0].num_nodes_waiting() > 0, "the departure is told")
    # The next round may be there before its thread has looked, and it has waited for no room then.
    eventually(lambda: len(told.of(spare.node, Waiting)) == 2, "the spare is told of its room")
    join(handlers[0])
    waits.result(LIMIT)
    spare.leave()
    assert [event.spare for event in told.of(spare.node, Waiting)] == [True, False]
    assert told.kinds(spare.node)[-3:] == ["Ranked", "Completed", "Left"]


def test_a_handler_that_is_dropped_tells_that_it_left(run, told):
    handler = run.unkept(1, 1)
    join(handler)
    node = handler.node
    del handler
    gc.collect()
    eventually(lambda: told.of(node, Left), "the departure is told")


def test_a_call_that_fails_is_told_with_its_error(run, told):
    handler = run.handler(2, 2, join=0.2)
    with pytest.raises(Exception, match="completed within"):
        handler.next_rendezvous()
    handler.leave()
    [failed] = told.of(handler.node, Failed)
    assert isinstance(failed, Failed)
    assert failed.error.startswith("RendezvousTimeoutError: No round")


def test_observers_that_raise_or_block_disturb_no_run(install, told, caplog):
    release = threading.Event()

    class Raising:
        @hookimpl
        def rdzv_event(self, event: Event) -> None:
            raise RuntimeError("out of order")

    class Blocking:
        @hookimpl
        def rdzv_event(self, event: Event) -> None:
            release.wait(LIMIT)

    install(Raising())
    install(Blocking())
    run = Run("memory")
    try:
        handlers = [run.handler(2, 2), run.handler(2, 2)]
        for number in range(3):
            join(*handlers)
            assert {handler.round for handler in handlers} == {number + 1}
            assert not release.is_set()
        eventually(lambda: len(told.of(handlers[0].node, Completed)) == 3, "the good one is told")
        once = "further failures of it are not logged"
        eventually(lambda: caplog.text.count(once) == 2, "both handlers say what has failed")
    finally:
        release.set()
        run.end()
    assert caplog.text.count(once) == 2


def test_without_observers_no_event_is_made(monkeypatch):
    made: list[str] = []

    for kind in Event.__subclasses__():

        def note(self, *, _init=kind.__init__, **fields) -> None:
            made.append(fields["node"])
            _init(self, **fields)

        monkeypatch.setattr(kind, "__init__", note)
    monkeypatch.setattr(
        events.Observers, "from_extensions", classmethod(lambda cls: events.Observers())
    )
    before = {t for t in threading.enumerate() if t.name.startswith("rdzv-observer")}
    run = Run("memory")
    try:
        handlers = [run.handler(2, 2), run.handler(2, 2)]
        join(*handlers)
        join(*handlers)
        handlers[0].set_closed()
        for handler in handlers:
            handler.leave()
    finally:
        run.end()
    # Nodes of earlier tests may still be leaving.
    assert not {handler.node for handler in handlers} & set(made)
    after = {t for t in threading.enumerate() if t.name.startswith("rdzv-observer")}
    assert not after - before


ENDED = textwrap.dedent(
    """
    import os, signal, sys
    from rdzv import hookimpl
    from rdzv.plugins import extensions
    from tests.engine.test_handler import Run, join

    def say(line):  # by two threads, and each line whole
        os.write(1, line.encode() + b"\\n")

    class Teller:
        @hookimpl
        def rdzv_event(self, event):
            say(type(event).__name__)

    extensions().register(Teller())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # signal.pause() would not see one that comes just before it.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    run = Run("memory")
    join(run.handler(1, 1))
    say("up")
    os.read(reading, 1)
    """
)


def test_a_process_that_ends_by_a_signal_tells_that_its_node_left():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDED], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    try:
        assert "up\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert rest.split()[-1] == "Left"


def test_only_a_leader_tells_of_leading(run, told):
    handlers = [run.handler(2, 2), run.handler(2, 2)]
    join(*handlers)
    eventually(lambda: all(told.of(h.node, Completed) for h in handlers), "both are told")
    [change] = [event for h in handlers for event in told.of(h.node, LeaderChanged)]
    assert isinstance(change, LeaderChanged)
    assert change.leader == change.node
    assert not told.of(handlers[0].node, Closed, Ranked)[1:]
