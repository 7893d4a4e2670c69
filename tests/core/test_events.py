"""Observers: told of everything, in nobody's way."""

from __future__ import annotations

import dataclasses
import gc
import logging
import queue
import threading
from datetime import datetime, timezone
from typing import Any

import pytest

from rdzv import plugins
from rdzv.dynamic_rendezvous.document import Change
from rdzv.events import Closed, Completed, Event, Joined, Lost, Observers, Reopened

LONG = 60.0  # seconds; reached only where a test fails


def joined(number: int) -> Joined:
    return Joined(run_id="run", node="n0", round=number, at=float(number))


@pytest.fixture
def threads():
    """The observers' threads that have begun in this test."""
    earlier = set(threading.enumerate())

    def begun() -> list[threading.Thread]:
        here = set(threading.enumerate()) - earlier
        return [each for each in here if each.name.startswith("rdzv-observer")]

    return begun


def test_an_event_is_a_frozen_record_with_the_time_of_day_for_people():
    event = Completed(run_id="run", node="n0", round=3, at=1.5, rank=0, world_size=2)
    assert datetime.fromisoformat(event.time).tzinfo == timezone.utc
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.round = 4  # type: ignore[misc]
    assert Lost(run_id="run", node="n0", round=3, at=1.5, lost=("n1",)).lost == ("n1",)


def test_every_observer_sees_every_event_in_order():
    first: list[Event] = []
    second: list[Event] = []
    observers = Observers([("first", first.append), ("second", second.append)])
    events = [joined(number) for number in range(100)]
    for event in events:
        observers.emit(event)
    observers.close(LONG)
    assert first == second == events


def test_without_observers_nothing_happens_and_no_thread_runs(threads):
    observers = Observers()
    assert not observers.active
    observers.emit(joined(1))
    assert not threads()
    observers.close()


def test_an_observer_that_raises_is_logged_once_and_hinders_nobody(caplog):
    seen: list[Event] = []

    def failing(event):
        raise RuntimeError("no room")

    observers = Observers([("failing", failing), ("good", seen.append)])
    with caplog.at_level(logging.WARNING, logger="rdzv"):
        for number in range(5):
            observers.emit(joined(number))
        observers.close(LONG)
    assert len(seen) == 5
    assert caplog.text.count("observer 'failing' failed") == 1
    assert "no room" in caplog.text


def test_an_observer_that_blocks_delays_nobody_and_what_it_misses_is_logged(caplog):
    release = threading.Event()
    blocked = threading.Event()
    told: queue.Queue[Event] = queue.Queue()

    def blocking(event):
        blocked.set()
        release.wait(LONG)

    observers = Observers([("blocking", blocking), ("good", told.put)], limit=2)
    with caplog.at_level(logging.WARNING, logger="rdzv"):
        observers.emit(joined(0))
        assert blocked.wait(LONG)
        told.get(timeout=LONG)
        for number in range(1, 4):  # two fit into its queue, one is dropped
            observers.emit(joined(number))
            assert told.get(timeout=LONG).round == number
        release.set()
        observers.close(LONG)
    assert caplog.text.count("observer 'blocking' is too slow") == 1
    assert "observer 'blocking' missed 1 events" in caplog.text


def test_closing_leaves_a_blocked_observer_behind(threads):
    release = threading.Event()
    blocked = threading.Event()

    def blocking(event):
        blocked.set()
        release.wait(LONG)

    observers = Observers([("blocking", blocking)])
    observers.emit(joined(0))
    assert blocked.wait(LONG)
    (thread,) = threads()
    observers.close(timeout=0.0)
    assert thread.is_alive()
    assert thread.daemon
    release.set()
    thread.join(LONG)
    assert not thread.is_alive()


def test_after_closing_nothing_is_told_and_closing_again_does_nothing(threads):
    seen: list[Event] = []
    observers = Observers([("good", seen.append)])
    observers.emit(joined(0))
    observers.close(LONG)
    observers.emit(joined(1))
    observers.close(LONG)
    assert len(seen) == 1
    assert not threads()


def test_the_threads_of_dropped_observers_end(threads):
    seen: list[Event] = []
    observers = Observers([("good", seen.append)])
    observers.emit(joined(0))
    (thread,) = threads()
    del observers
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()
    assert len(seen) == 1


def test_an_observer_may_close_the_observers_itself():
    seen: list[Event] = []
    done = threading.Event()

    def closing(event):
        observers.close(LONG)
        seen.append(event)
        done.set()

    observers = Observers([("closing", closing)])
    observers.emit(joined(0))
    assert done.wait(LONG)
    assert len(seen) == 1


def test_installed_extensions_become_observers(fake):
    source = """
        from rdzv import hookimpl

        seen = []

        class Silent:
            @hookimpl
            def rdzv_event(self):
                seen.append("something")

        silent = Silent()

        @hookimpl
        def rdzv_event(event):
            seen.append(event)
    """
    fake.module("watcher", source)
    fake.add(
        "dist-watcher",
        entries={"watcher": "watcher", "silent": "watcher:silent"},
        group=plugins.EXTENSIONS,
    )
    observers = Observers.from_extensions()
    assert observers.active
    event = Closed(run_id="run", node="n0", round=1, at=0.0)
    observers.emit(event)
    observers.close(LONG)
    import watcher  # type: ignore[import-not-found]

    assert len(watcher.seen) == 2
    assert event in watcher.seen
    assert "something" in watcher.seen


def test_an_extension_makes_an_observer_for_each_handler_or_is_idle(
    fake, caplog, threads, monkeypatch
):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # rdzv-observers may be installed
    source = """
        from rdzv import hookimpl

        made = []

        class Idle:
            @hookimpl
            def rdzv_observer(self):
                return None

        class Broken:
            @hookimpl
            def rdzv_observer(self):
                raise RuntimeError("no such folder")

        class Maker:
            @hookimpl
            def rdzv_observer(self):
                made.append([])
                return made[-1].append

        idle, broken, maker = Idle(), Broken(), Maker()
    """
    fake.module("makers", source)
    fake.add("dist-idle", entries={"idle": "makers:idle"}, group=plugins.EXTENSIONS)
    assert not Observers.from_extensions().active
    assert not threads()
    plugins._extensions = None
    entries = {"broken": "makers:broken", "maker": "makers:maker"}
    fake.add("dist-maker", entries=entries, group=plugins.EXTENSIONS)
    first, second = Observers.from_extensions(), Observers.from_extensions()
    first.emit(joined(1))
    second.emit(joined(2))
    first.close(LONG)
    second.close(LONG)
    import makers  # type: ignore[import-not-found]

    assert [[event.round for event in seen] for seen in makers.made] == [[1], [2]]
    assert "'dist-maker:broken' is left out" in caplog.text
    assert "no such folder" in caplog.text


def test_every_reason_for_another_round_can_be_told_to_observers():
    counts: dict[str, Any] = dict.fromkeys(Change.__struct_fields__, 1)
    told = Reopened(run_id="run", node="node", round=1, at=0.0, reason="all", **counts)
    assert {name: getattr(told, name) for name in counts} == counts
