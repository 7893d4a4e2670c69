"""The handler, several in one process as threads, on memory and on a real TCPStore."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore

from rdzv import (
    DynamicRendezvousHandler,
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rdzv.dynamic_rendezvous import RendezvousSettings, RendezvousTimeout, create_handler
from rdzv.dynamic_rendezvous.driver import Driver
from rdzv.dynamic_rendezvous.phases import Phase
from rdzv_c10d import C10dRendezvousBackend

from .memory import Memory, MemoryBackend

LIMIT = 90.0
"""No test waits longer for anything that has to happen (seconds)."""


LIMIT_OF_TORCH = timedelta(seconds=LIMIT)


def eventually(happened, what: str) -> None:
    """Wait until ``happened``; there is nothing here that could be listened to."""
    until = time.monotonic() + LIMIT
    pause = threading.Event()
    while not happened():
        assert time.monotonic() < until, f"it never came to this: {what}"
        pause.wait(0.005)


def background(call) -> Future[Any]:
    """Run a call in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001 - handed to whoever waits
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future


def join(*handlers: DynamicRendezvousHandler) -> list[Any]:
    """Have all of them join at once; what each of them got."""
    futures = [background(handler.next_rendezvous) for handler in handlers]
    return [future.result(LIMIT) for future in futures]


class Run:
    """Makes the handlers of one run, and shuts them down."""

    def __init__(self, kind: str) -> None:
        self.memory = Memory()
        self.server = TCPStore("127.0.0.1", 0, is_master=True) if kind == "tcp" else None
        self.handlers: list[DynamicRendezvousHandler] = []

    def backend(self):
        if self.server is None:
            return MemoryBackend(self.memory)
        return C10dRendezvousBackend(self.server, "run")

    def handler(self, low: int = 2, high: int = 2, **options) -> DynamicRendezvousHandler:
        made: DynamicRendezvousHandler = self.unkept(low, high, **options)
        self.handlers.append(made)
        return made

    def unkept(self, low, high, *, join=LIMIT, last_call=0.2, interval=0.2, attempts=5, **options):
        timeout = RendezvousTimeout(
            join=timedelta(seconds=join), last_call=timedelta(seconds=last_call)
        )
        return DynamicRendezvousHandler.from_backend(
            **{
                "run_id": "run",
                "store": HashStore(),
                "backend": self.backend(),
                "min_nodes": low,
                "max_nodes": high,
                "local_addr": "127.0.0.1",
                "timeout": timeout,
                "keep_alive_interval": interval,
                "keep_alive_max_attempt": attempts,
                **options,
            }
        )

    def end(self) -> None:
        for handler in self.handlers:
            background(handler.leave)
        for handler in self.handlers:
            handler._driver.stop()


@pytest.fixture(params=["memory", "tcp"])
def run(request):
    made = Run(request.param)
    yield made
    made.end()


@pytest.fixture
def quick():
    """A run in memory, where the kind of the store makes no difference."""
    made = Run("memory")
    yield made
    made.end()


def phase(handler: DynamicRendezvousHandler) -> Phase:
    return handler._driver.machine.phase


# ---------------------------------------------------------------- forming


def test_nodes_form_a_round_and_know_the_same_about_it(run):
    handlers = [run.handler(3, 3) for _ in range(3)]
    infos = join(*handlers)
    assert sorted(info.rank for info in infos) == [0, 1, 2]
    assert {info.world_size for info in infos} == {3}
    stores = [info.bootstrap_store_info for info in infos]
    assert len({(store.master_addr, store.master_port) for store in stores}) == 1
    assert {handler.round for handler in handlers} == {1}
    assert {handler.num_nodes_waiting() for handler in handlers} == {0}
    assert not any(handler.is_closed() for handler in handlers)


def test_the_workers_store_can_be_reached_and_is_another_one_each_round(run):
    handlers = [run.handler(), run.handler()]
    ports = set()
    for _ in range(2):
        infos = join(*handlers)
        where = infos[0].bootstrap_store_info
        ports.add(where.master_port)
        workers = TCPStore(where.master_addr, where.master_port, is_master=False)
        assert workers.num_keys() <= 1
        workers.set("workers were here", "1")
    assert len(ports) == 2


def test_a_store_that_was_ready_in_one_round_is_still_open_in_the_next():
    run = Run("tcp")
    often = {"interval": 0.3, "attempts": 8}
    seldom = often | {"attempts": 100}
    first = run.handler(1, 3, **often)
    second, third = run.handler(1, 3, **seldom), run.handler(1, 3, **often)
    join(first)
    late = []
    for handler in (second, third):
        late.append(background(handler.next_rendezvous))
        eventually(lambda: phase(handler) is Phase.WAITING, "the late node is in the roster")  # noqa: B023
    join(first)
    assert [future.result(LIMIT).rank for future in late] == [1, 2]
    first._driver.stop()
    # The one that looks for longer before it takes over leads nothing, but comes first.
    eventually(lambda: third._driver.machine.leading is not None, "the third leads")
    eventually(lambda: second.num_nodes_waiting() and third.num_nodes_waiting(), "they are told")
    assert [info.rank for info in join(second, third)] == [0, 1]
    second.leave()
    eventually(third.num_nodes_waiting, "the third is told")
    where = third.next_rendezvous().bootstrap_store_info
    assert where is not None
    client = TCPStore(where.master_addr, where.master_port, is_master=False, timeout=LIMIT_OF_TORCH)
    client.set("key", "value")
    run.end()


def test_the_store_of_a_round_is_kept_apart_from_that_of_the_next(quick):
    shared = HashStore()
    handlers = [quick.handler(store=shared), quick.handler(store=shared)]
    first = join(*handlers)
    first[0].store.set("key", "old")
    assert first[1].store.get("key") == b"old"
    second = join(*handlers)
    assert not second[0].store.check(["key"])


def test_an_elastic_round_completes_with_those_who_came_by_the_last_call(run):
    infos = join(run.handler(2, 4), run.handler(2, 4))
    assert {info.world_size for info in infos} == {2}


def test_a_late_node_is_announced_and_taken_in_when_the_others_come_back(run):
    early = [run.handler(2, 3), run.handler(2, 3)]
    join(*early)
    late = run.handler(2, 3)
    waiting = background(late.next_rendezvous)
    eventually(lambda: all(h.num_nodes_waiting() >= 1 for h in early), "it is announced")
    infos = [*join(*early), waiting.result(LIMIT)]
    assert sorted(info.rank for info in infos) == [0, 1, 2]
    assert {info.rank for info in infos[:2]} == {0, 1}
    assert late.gone_before_round == 0
    assert [h.num_nodes_waiting() for h in early] == [0, 0]


def test_a_spare_waits_unnoticed_and_replaces_who_leaves(run):
    handlers = [run.handler(2, 2, join=3.0), run.handler(2, 2)]
    join(*handlers)
    spare = run.handler(2, 2)
    waiting = background(spare.next_rendezvous)
    eventually(lambda: phase(spare) is Phase.SPARE, "a spare waits")
    assert [h.num_nodes_waiting() for h in handlers] == [0, 0]
    handlers[1].leave()
    eventually(lambda: handlers[0].num_nodes_waiting() >= 1, "the survivor hears of it")
    (info,) = join(handlers[0])
    assert info.world_size == waiting.result(LIMIT).world_size == 2
    assert handlers[0].gone_before_round == 1


def test_a_spare_of_a_closed_run_is_told_that_it_was_not_needed(run):
    handlers = [run.handler(), run.handler()]
    join(*handlers)
    spare = run.handler()
    waiting = background(spare.next_rendezvous)
    eventually(lambda: phase(spare) is Phase.SPARE, "a spare waits")
    handlers[0].set_closed()
    with pytest.raises(RendezvousGracefulExitError, match="not needed"):
        waiting.result(LIMIT)


def test_a_spare_has_no_deadline(quick):
    join(quick.handler(), quick.handler())
    spare = quick.handler(join=3)
    waiting = background(spare.next_rendezvous)
    eventually(lambda: phase(spare) is Phase.SPARE, "a spare waits")
    with pytest.raises(TimeoutError):
        waiting.result(4)
    quick.handlers[0].set_closed()
    with pytest.raises(RendezvousGracefulExitError):
        waiting.result(LIMIT)


def test_the_end_of_a_spare_is_noticed_by_nobody(quick):
    handlers = [quick.handler(), quick.handler()]
    join(*handlers)
    spare = quick.handler()
    background(spare.next_rendezvous)
    eventually(lambda: phase(spare) is Phase.SPARE, "a spare waits")
    assert spare.shutdown()
    assert not handlers[0].is_closed()
    assert [h.num_nodes_waiting() for h in handlers] == [0, 0]


# ---------------------------------------------------------------- time is up


@pytest.fixture
def unhurried(monkeypatch):
    """However slow the machine, there is time to find out who was here."""
    monkeypatch.setattr("rdzv.dynamic_rendezvous.handler._GRACE", LIMIT)


@pytest.mark.usefixtures("unhurried")
def test_a_timeout_names_the_run_the_time_who_was_here_and_how_many_were_missing(run):
    handlers = [run.handler(4, 4, join=1.5), run.handler(4, 4)]
    background(handlers[1].next_rendezvous)
    eventually(lambda: phase(handlers[1]) is Phase.WAITING, "the other one waits")
    with pytest.raises(RendezvousTimeoutError) as caught:
        handlers[0].next_rendezvous()
    text = str(caught.value)
    assert re.search(r"within \d+\.\d s", text)
    for part in ("'run'", handlers[0].node, handlers[1].node, "2 more", "min_nodes=4"):
        assert part in text


def test_a_timeout_names_who_was_here_also_where_the_store_is_slow_to_say_so(run, monkeypatch):
    real = Driver.describe

    def slowly(self, session):
        time.sleep(1.2)
        return real(self, session)

    monkeypatch.setattr(Driver, "describe", slowly)
    monkeypatch.setattr("rdzv.dynamic_rendezvous.handler._GRACE", 3.0)
    with pytest.raises(RendezvousTimeoutError, match="only this node"):
        run.handler(2, 2, join=0.5).next_rendezvous()


@pytest.mark.usefixtures("unhurried")
def test_a_timeout_names_the_participants_that_did_not_come_back(quick):
    handlers = [quick.handler(2, 2, join=3), quick.handler()]
    join(*handlers)
    with pytest.raises(RendezvousTimeoutError, match="still to come back") as caught:
        handlers[0].next_rendezvous()
    assert handlers[1].node in str(caught.value)


@pytest.mark.usefixtures("unhurried")
def test_a_node_whose_time_was_up_is_not_counted_and_may_try_again(quick):
    first = quick.handler(2, 2, join=3)
    with pytest.raises(RendezvousTimeoutError, match="only this node"):
        first.next_rendezvous()
    second = quick.handler()
    waiting = background(second.next_rendezvous)
    eventually(lambda: phase(second) is Phase.WAITING, "the second one waits")
    assert quick.memory.state is not None
    infos = [*join(first), waiting.result(LIMIT)]
    assert sorted(info.rank for info in infos) == [0, 1]


def test_nodes_with_other_limits_are_refused(run):
    background(run.handler(2, 4).next_rendezvous)
    eventually(lambda: phase(run.handlers[0]) is Phase.WAITING, "the first one waits")
    with pytest.raises(RendezvousStateError, match=r"max_nodes=5.*max_nodes=4"):
        run.handler(2, 5).next_rendezvous()


# ---------------------------------------------------------------- the end


def test_before_joining_nobody_waits_and_nothing_is_closed(run):
    handler = run.handler()
    assert not handler.is_closed()
    assert handler.num_nodes_waiting() == 0
    assert handler.round == 0


def test_who_has_not_joined_sees_that_a_run_is_closed(run):
    run.handler().set_closed()
    other = run.handler()
    assert other.is_closed()
    with pytest.raises(RendezvousClosedError, match="'run' is closed"):
        other.next_rendezvous()


def test_a_run_can_be_closed_twice_and_by_two(run):
    handlers = [run.handler(), run.handler()]
    join(*handlers)
    for _ in range(2):
        for handler in handlers:
            handler.set_closed()
    assert all(handler.is_closed() for handler in handlers)


def test_nobody_joins_a_closed_run_not_even_its_participants(run):
    handlers = [run.handler(), run.handler()]
    join(*handlers)
    handlers[0].set_closed()
    for handler in (*handlers, run.handler()):
        with pytest.raises(RendezvousClosedError):
            handler.next_rendezvous()
    assert phase(handlers[1]) is Phase.IDLE


def test_those_who_wait_are_refused_when_the_run_is_closed(run):
    waiting = [background(run.handler(3, 3).next_rendezvous) for _ in range(2)]
    run.handler(3, 3).set_closed()
    for future in waiting:
        with pytest.raises(RendezvousClosedError):
            future.result(LIMIT)


def test_a_participants_shutdown_closes_the_run_and_ends_the_handler(run):
    handlers = [run.handler(), run.handler()]
    join(*handlers)
    assert handlers[0].shutdown()
    assert handlers[0].shutdown()
    with pytest.raises(RendezvousClosedError, match="has left"):
        handlers[0].next_rendezvous()
    eventually(handlers[1].is_closed, "the other one is told")


def test_a_node_that_leaves_closes_nothing(run):
    # Long enough for the other one, however late its thread begins.
    handlers = [run.handler(1, 2, last_call=2), run.handler(1, 2, last_call=2)]
    join(*handlers)
    assert handlers[1].leave()
    eventually(lambda: handlers[0].num_nodes_waiting() >= 1, "the other one is told")
    assert not handlers[0].is_closed()
    (info,) = join(handlers[0])
    assert info.world_size == 1


def test_shutdown_of_a_handler_that_never_did_anything_works(quick):
    assert quick.handler().shutdown()


def test_a_join_that_is_just_being_begun_is_taken_back_by_the_departure(quick, monkeypatch):
    # Whose silence nobody here has time for.
    handler = quick.handler(1, 2, interval=30)
    driver = handler._driver
    rest = driver.rest

    def rest_later(seconds):
        eventually(lambda: driver.machine.document is not None, "the join goes on meanwhile")
        return rest(seconds)

    monkeypatch.setattr(driver, "rest", rest_later)
    with driver._deciding:
        joining = background(handler.next_rendezvous)
        eventually(lambda: driver._obeys, "the join is in the thread's hands")
        leaving = background(handler.leave)
        eventually(lambda: handler._leaver.left, "the other call has begun")
    assert leaving.result(LIMIT)
    with pytest.raises(RendezvousClosedError, match="has left"):
        joining.result(LIMIT)
    assert join(quick.handler(1, 2))[0].world_size == 1


def test_a_join_that_was_not_begun_does_not_hold_a_departure_up(quick):
    handler = quick.handler()
    driver = handler._driver
    busy, go_on = threading.Event(), threading.Event()

    def keep_busy(_) -> None:
        busy.set()
        go_on.wait(LIMIT)

    driver.submit(keep_busy)
    busy.wait(LIMIT)
    joining = background(handler.next_rendezvous)
    eventually(lambda: driver._commands, "the join is waiting for its turn")
    leaving = background(handler.leave)
    eventually(lambda: not driver._commands or driver.stopped, "it is taken back")
    go_on.set()
    assert leaving.result(LIMIT)
    with pytest.raises(RendezvousClosedError, match="has left"):
        joining.result(LIMIT)
    assert quick.memory.state is None, "nobody has begun a run"


def test_only_one_thread_at_a_time_may_join(quick):
    handler = quick.handler()
    first = background(handler.next_rendezvous)
    eventually(lambda: phase(handler) is Phase.WAITING, "the first one waits")
    with pytest.raises(RendezvousError, match="Another thread"):
        handler.next_rendezvous()
    assert not first.done()
    handler.set_closed()
    with pytest.raises(RendezvousClosedError):
        first.result(LIMIT)


EXIT = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from rdzv import DynamicRendezvousHandler, RendezvousError
from rdzv.dynamic_rendezvous import RendezvousTimeout
from rdzv_c10d import C10dRendezvousBackend

def main(port, how):
    store = TCPStore("127.0.0.1", port, is_master=False)
    handler = DynamicRendezvousHandler.from_backend(
        "run", store, C10dRendezvousBackend(store, "run"), *((2, 2) if how == "waits" else (1, 1)),
        "127.0.0.1", RendezvousTimeout(join=timedelta(seconds=0.5 if how == "waits" else 60)),
    )
    if how == "looks":
        handler.is_closed()
    elif how == "waits":
        try:
            handler.next_rendezvous()
        except RendezvousError:
            pass
    else:
        handler.next_rendezvous()
    return handler if how == "holds" else None

kept = main(int(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("how", ["drops", "holds", "looks", "waits"])
def test_a_process_may_end_with_its_handler_dropped_or_held(how):
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # A thread that came back from torch during the interpreter's end would abort it.
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", EXIT, str(server.port), how], timeout=LIMIT, check=False
        )
        assert done.returncode == 0


@pytest.mark.parametrize("how", ["looks", "waits"])
def test_handlers_that_were_dropped_leave_no_thread_behind(how):
    run = Run("tcp")
    # Not all threads of the process: handlers that other tests have left may begin some.
    threads: list[threading.Thread] = []
    for _ in range(5):
        handler = run.unkept(2, 2, join=0.2)
        threads += handler._driver._threads
        if how == "looks":
            handler.is_closed()
        else:
            with pytest.raises(RendezvousTimeoutError):
                handler.next_rendezvous()
        del handler
    gc.collect()
    eventually(lambda: not any(thread.is_alive() for thread in threads), "their threads end")


def test_a_handler_that_is_dropped_leaves_its_run(run):
    dropped = run.unkept(2, 2)
    kept = run.handler()
    join(dropped, kept)
    driver = dropped._driver
    del dropped
    gc.collect()
    eventually(lambda: driver.stopped, "its threads stop")
    eventually(lambda: kept.num_nodes_waiting() >= 1, "the other one is told")
    assert not kept.is_closed()


def test_a_handler_that_stops_beating_is_lost_to_the_others(run):
    handlers = [run.handler(2, 3, last_call=2) for _ in range(3)]
    join(*handlers)
    handlers[2]._driver.stop()
    eventually(lambda: handlers[0].num_nodes_waiting() >= 1, "the loss is noticed")
    infos = join(*handlers[:2])
    assert {info.world_size for info in infos} == {2}
    assert handlers[0].gone_before_round == 1


@contextmanager
def wall_clock(monkeypatch, *readings: float):
    true = time.time
    steps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: true() + readings[next(steps) % len(readings)])
    yield
    monkeypatch.undo()


@pytest.mark.parametrize("readings", [(3600.0,), (-3600.0, 3600.0, 0.0)], ids=["off", "jumping"])
def test_a_wall_clock_that_is_wrong_changes_nothing(run, monkeypatch, readings):
    handlers = [run.handler(2, 3), run.handler(2, 3)]
    with wall_clock(monkeypatch, *readings):
        join(*handlers)
        beats: list[int] = []

        def look(session) -> None:
            others = handlers[0]._driver.others(session)
            beats.append(sum(number for _, number in others.values()))

        handlers[0]._driver.submit(look)
        eventually(lambda: bool(beats), "the beats are read")

        asked = 1

        def more() -> bool:
            nonlocal asked
            # One at a time: a node that is kept busy with looks beats late.
            if len(beats) == asked:
                asked += 1
                handlers[0]._driver.submit(look)
            return beats[-1] > beats[0] + 10

        eventually(more, "ten more beats")
        assert [h.num_nodes_waiting() for h in handlers] == [0, 0]
        assert {info.world_size for info in join(*handlers)} == {2}


def test_a_driver_does_not_look_at_the_wall_clock(quick, monkeypatch):
    def read():
        raise AssertionError("somebody reads the wall clock")

    handlers = [quick.handler(), quick.handler()]
    with monkeypatch.context() as patch:
        patch.setattr("rdzv.dynamic_rendezvous.runtime.time.time", read)
        driver: Driver = handlers[0]._driver
        driver.check()
    join(*handlers)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run_id": ""}, "run id"),
        ({"min_nodes": 0}, "min_nodes is 0"),
        ({"min_nodes": -1}, "min_nodes is -1"),
        ({"min_nodes": 5, "max_nodes": 4}, r"max_nodes is 4.*min_nodes \(5\)"),
        ({"keep_alive_interval": 0}, "keep_alive_interval is 0 s"),
        ({"keep_alive_interval": -1.5}, "keep_alive_interval is -1.5 s"),
        ({"keep_alive_max_attempt": 1}, "keep_alive_max_attempt is 1"),
        ({"patience": 0}, "patience is 0 s"),
    ],
)
def test_an_argument_out_of_its_range_is_named_with_its_value(quick, changes, told):
    threads = set(threading.enumerate())
    with pytest.raises(ValueError, match=told):
        quick.unkept(2, 4, **changes)
    assert set(threading.enumerate()) <= threads


def test_the_default_timeouts_are_those_of_torch():
    timeout = RendezvousTimeout()
    seconds = [
        t.total_seconds()
        for t in (timeout.join, timeout.last_call, timeout.close, timeout.heartbeat)
    ]
    assert seconds == [600, 30, 30, 5]


@pytest.mark.parametrize("name", ["join", "last_call", "close", "heartbeat"])
def test_a_timeout_may_be_a_fraction_but_not_zero_or_less(name):
    made = RendezvousTimeout(**{name: timedelta(seconds=0.25)})
    assert getattr(made, name) == timedelta(seconds=0.25)
    for seconds in (0, -1):
        with pytest.raises(ValueError, match=rf"{name}_timeout\) is {seconds} s"):
            RendezvousTimeout(**{name: timedelta(seconds=seconds)})


def test_settings_tell_what_the_handler_was_made_with(quick):
    settings = quick.handler(2, 3).settings
    assert isinstance(settings, RendezvousSettings)
    assert (settings.run_id, settings.min_nodes, settings.max_nodes) == ("run", 2, 3)
    assert settings.keep_alive_interval == timedelta(seconds=0.2)
    assert settings.keep_alive_max_attempt == 5
    with pytest.raises(AttributeError):
        settings.run_id = "other"  # type: ignore[misc]


def test_the_handler_names_its_run_and_backend(quick):
    handler = quick.handler()
    assert (handler.get_run_id(), handler.get_backend()) == ("run", "memory")


def test_whether_the_agents_store_is_shared_is_up_to_torchs_variable(quick, monkeypatch):
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    assert quick.handler().use_agent_store
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    assert not quick.handler().use_agent_store


def test_without_a_shared_store_the_address_of_a_round_is_free_for_the_workers(quick, monkeypatch):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    where = join(quick.handler(), quick.handler())[0].bootstrap_store_info
    TCPStore(where.master_addr, where.master_port, is_master=True, wait_for_workers=False)


def made_with(run: Run, **config) -> DynamicRendezvousHandler:
    params = RendezvousParameters(
        "memory", "127.0.0.1:0", "run", 2, 4, local_addr="127.0.0.1", **config
    )
    handler = create_handler(HashStore(), run.backend(), params)
    run.handlers.append(handler)
    return handler


def test_a_handler_made_from_parameters_has_the_documented_defaults(quick):
    settings = made_with(quick).settings
    assert settings.keep_alive_interval == timedelta(seconds=1)
    assert settings.keep_alive_max_attempt == 5
    assert settings.timeout.join == timedelta(seconds=600)


def test_parameters_may_be_texts_and_fractions(quick):
    settings = made_with(
        quick,
        join_timeout="1.5",
        last_call_timeout=0.25,
        close_timeout="2",
        heartbeat_timeout=3,
        keep_alive_interval="0.5",
        keep_alive_max_attempt="3",
        patience=10,
    ).settings
    assert settings.timeout.join == timedelta(seconds=1.5)
    assert settings.timeout.last_call == timedelta(seconds=0.25)
    assert settings.timeout.close == timedelta(seconds=2)
    assert settings.timeout.heartbeat == timedelta(seconds=3)
    assert settings.keep_alive_interval == timedelta(seconds=0.5)
    assert settings.keep_alive_max_attempt == 3


def test_torchs_names_of_parameters_work_too(quick):
    assert made_with(quick, heartbeat=7).settings.timeout.heartbeat == timedelta(seconds=7)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("join_timeout", "30s"),
        ("last_call_timeout", "soon"),
        ("close_timeout", -1),
        ("join_timeout", 0),
        ("keep_alive_interval", "nan"),
        ("keep_alive_interval", 0),
        ("keep_alive_max_attempt", "2.5"),
        ("patience", "long"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_with_its_name(quick, key, value):
    with pytest.raises(ValueError, match=key.removesuffix("_timeout")):
        made_with(quick, **{key: value})
