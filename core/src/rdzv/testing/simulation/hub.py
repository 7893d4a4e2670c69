"""The simulated world's time: one heap of events, and threads that are greenlets.

Nothing here knows of the protocol. A :class:`Process` is a machine's worth of
clocks and threads: it can be stopped, continued and killed, and it is the
``Runtime`` that the engine is given in place of the real one.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

from rdzv.checkpoints import NOBODY, REACHED, WAITING
from rdzv.dynamic_rendezvous.document import Master
from rdzv.dynamic_rendezvous.runtime import Runtime
from rdzv.errors import RendezvousConnectionError
from rdzv.events import Observers

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

__all__ = ["Hub", "Process", "Thread", "WorkersStore"]

_SWITCH = 2e-4
"""The longest that a thread that can run waits for a processor (seconds)."""


class Hub:
    """Virtual time. ``now`` is the truth that no node can see (seconds)."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.stopped = False
        self.stores: dict[Master, WorkersStore] = {}
        """Those of the workers, which processes have opened."""
        self._heap: list[tuple[float, int, list[Any]]] = []
        self._count = 0
        self.greenlet = getcurrent()

    def at(self, time: float, call: Callable[[], None]) -> list[Any]:
        """Have ``call`` made at a time; cleared, the list that is returned cancels it."""
        self._count += 1
        entry: list[Any] = [call]
        heapq.heappush(self._heap, (max(time, self.now), self._count, entry))
        return entry

    def after(self, seconds: float, call: Callable[[], None]) -> list[Any]:
        """Have ``call`` made after some time."""
        return self.at(self.now + seconds, call)

    def run(self, until: float) -> None:
        """Let everything happen that happens before ``until``, or before :meth:`stop`."""
        heap = self._heap
        while heap and heap[0][0] <= until and not self.stopped:
            time, _, entry = heapq.heappop(heap)
            if entry:
                self.now = time
                self.events += 1
                entry[0]()
        if not self.stopped:
            self.now = until

    def stop(self) -> None:
        """Let nothing happen any more."""
        self.stopped = True

    def switch_back(self) -> Any:
        """Let the hub go on; returns what the calling greenlet is woken with."""
        return self.greenlet.switch()


class Thread:
    """One thread of a process."""

    def __init__(self, process: Process, run: Callable[[], None], name: str) -> None:
        self.name = name
        self.ended = False
        self._process = process
        self._run = run
        self._greenlet = greenlet(self._main, parent=process.hub.greenlet)
        self._timer: list[Any] | None = None
        self._parked = False
        self._value: object = None
        self._interruption: BaseException | None = None
        self._joiners: list[Thread] = []

    def start(self) -> None:
        self._parked = True
        self.wake(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        if not self.ended:
            self._joiners.append(self._process.current_thread())
            self._process.park(timeout)

    def wake(self, value: object) -> None:
        """Have it go on, soon, with ``value``. A thread that runs, or was woken, is not woken."""
        if not self._parked:
            return
        self._parked = False
        self._value = value
        if self._timer is not None:
            self._timer.clear()
            self._timer = None
        self._process.schedule(self)

    def interrupt(self, exc: BaseException) -> None:
        """Have it go on with an exception, as a signal does to a main thread."""
        self._interruption = exc
        self.wake(None)

    def park(self, timer: list[Any] | None) -> object:
        """Stop until :meth:`wake`; called by the thread itself."""
        self._timer = timer
        self._parked = True
        value = self._process.hub.switch_back()
        if self._interruption is not None:
            interruption, self._interruption = self._interruption, None
            raise interruption
        return value

    def go_on(self) -> None:
        """Run it until it stops again; called by the hub."""
        self._greenlet.switch(self._value)

    def kill(self) -> None:
        """End it wherever it is."""
        if self._greenlet and not self.ended:
            self._greenlet.throw(GreenletExit)

    def _main(self, _: object) -> None:
        try:
            self._run()
        except GreenletExit:
            pass
        except Exception as exc:  # noqa: BLE001 - a bug: the simulation reports it as one.
            self._process.crashed(self.name, exc)
        self.ended = True
        for joiner in self._joiners:
            joiner.wake(True)


class Process(Runtime):
    """A process of one node: its clocks, its threads, its luck.

    Args:
        hub: The world's time.
        name: What to call it.
        seed: For its own chance.
        offset: What its monotonic clock showed when the world began (seconds).
        rate: How fast its monotonic clock goes; 1 is right.
        wall: How much its wall clock is ahead (seconds).
    """

    def __init__(
        self,
        hub: Hub,
        name: str,
        seed: str,
        *,
        offset: float = 0.0,
        rate: float = 1.0,
        wall: float = 0.0,
    ) -> None:
        self.hub = hub
        self.name = name
        self.offset = offset
        self.rate = rate
        self.ahead = wall
        self.dead = False
        self.paused = False
        self.failures: list[tuple[str, Exception]] = []
        self.counts: Counter[str] = Counter()
        """Requests by their names, and the bytes of the values in them."""
        self.chance = random.Random(seed)
        self._threads: list[Thread] = []
        self._stopped: list[Thread] = []
        self._ids = 0
        self.master_takes = 0.05
        """The longest that opening a store for workers takes (seconds)."""
        self._masters = 0
        self._current: Thread | None = None

    # ------------------------------------------------------------ what happens to it

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        stopped, self._stopped = self._stopped, []
        for thread in stopped:
            self.schedule(thread)

    def kill(self) -> None:
        """SIGKILL: nothing of it ever runs again."""
        self.dead = True

    def bury(self) -> None:
        """Unwind its threads, once the simulation is over."""
        self.dead = True
        for thread in self._threads:
            thread.kill()

    def crashed(self, thread: str, exc: Exception) -> None:
        """A thread has ended by an exception."""
        self.failures.append((thread, exc))

    # ------------------------------------------------------------ scheduling

    def schedule(self, thread: Thread) -> None:
        self.hub.after(_SWITCH * self.chance.random(), lambda: self._go_on(thread))

    def _go_on(self, thread: Thread) -> None:
        if self.dead:
            return
        if self.paused:
            self._stopped.append(thread)
            return
        self._current = thread
        thread.go_on()

    def park(self, timeout: float | None) -> object:
        """Stop the calling thread until it is woken; ``None`` after ``timeout`` of its clock."""
        if self.dead:
            raise GreenletExit
        thread = self.current_thread()
        timer = None
        if timeout is not None:
            timer = self.hub.after(max(0.0, timeout) / self.rate, lambda: thread.wake(None))
        return thread.park(timer)

    # ------------------------------------------------------------ Runtime

    def monotonic(self) -> float:
        return self.offset + self.hub.now * self.rate

    def wall(self) -> float:
        """The time of day, as this node has it. The engine passes it on, and never compares it."""
        return 1e9 + self.ahead + self.hub.now

    def sleep(self, seconds: float) -> None:
        self.park(seconds)

    def thread(self, run: Callable[[], None], name: str) -> Any:
        thread = Thread(self, run, name)
        self._threads.append(thread)
        return thread

    def current_thread(self) -> Any:
        if self._current is None:
            raise RuntimeError("not called from a simulated thread")
        return self._current

    def lock(self) -> Any:
        return _Lock(self)

    def rlock(self) -> Any:
        return _Lock(self)

    def condition(self, lock: Any = None) -> Any:
        return _Condition(self, lock or _Lock(self))

    def event(self) -> Any:
        return _Event(self)

    def handler_number(self) -> tuple[int, int]:
        return 1000, 0

    def random(self) -> float:
        return self.chance.random()

    def new_id(self) -> str:
        self._ids += 1
        return f"{self.name}-{self._ids}".replace(".", "_")

    def open_master(self, host: str, *, shared: bool) -> tuple[Master, object]:  # noqa: ARG002
        self.sleep(self.master_takes * self.chance.random())
        self._masters += 1
        master = Master(self.name, self._masters)
        store = self.hub.stores[master] = WorkersStore(self)
        return master, store

    def open_gate(self, master: Master) -> Any:
        return _Gate(self, self.hub.stores[master])

    def observers(self) -> Observers:
        return Observers([])

    @property
    def ends_with_process(self) -> bool:
        return False


class WorkersStore:
    """What workers and a leader tell one another through the store of a round's workers."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.told = NOBODY

    def change(self, before: str, after: str) -> bool:
        """As a store's compare-and-set; returns whether a checkpoint counts as reached."""
        if self.told == before:
            self.told = after
        return self.told == REACHED


class _Gate:
    """A connection to the workers' store, which is as well as the process that serves it."""

    def __init__(self, process: Process, store: WorkersStore) -> None:
        self._process = process
        self._store = store

    def ask(self) -> bool:
        return self._change(NOBODY, WAITING)

    def call_off(self) -> bool:
        return self._change(WAITING, NOBODY)

    def _change(self, before: str, after: str) -> bool:
        chance, server = self._process.chance, self._store.process
        self._process.sleep(_SWITCH + 0.01 * chance.random())
        if server.dead or server.paused:
            self._process.sleep(2.0 * chance.random())
            raise RendezvousConnectionError("the workers' store does not answer")
        reached = self._store.change(before, after)
        self._process.sleep(_SWITCH + 0.01 * chance.random())
        return reached


class _Lock:
    """Fair and reentrant; who is woken by a release has it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._owner: Thread | None = None
        self._depth = 0
        self._queue: deque[Thread] = deque()

    def acquire(self, blocking: bool = True) -> bool:
        me = self._process.current_thread()
        if self._owner is None:
            self._owner = me
        elif self._owner is not me:
            if not blocking:
                return False
            self._queue.append(me)
            try:
                self._process.park(None)
            except BaseException:
                if self._owner is me:
                    self._depth = 1
                    self.release()
                elif me in self._queue:
                    self._queue.remove(me)
                raise
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = self._queue.popleft() if self._queue else None
            if self._owner is not None:
                self._owner.wake(True)

    def release_wholly(self) -> int:
        depth, self._depth = self._depth, 1
        self.release()
        return depth

    def acquire_again(self, depth: int) -> None:
        self.acquire()
        self._depth = depth

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Condition:
    def __init__(self, process: Process, lock: _Lock) -> None:
        self._process = process
        self._lock = lock
        self._waiting: deque[Thread] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        me = self._process.current_thread()
        self._waiting.append(me)
        depth = self._lock.release_wholly()
        try:
            return bool(self._process.park(timeout))
        finally:
            if me in self._waiting:
                self._waiting.remove(me)
            if not self._process.dead:
                self._lock.acquire_again(depth)

    def notify(self) -> None:
        if self._waiting:
            self._waiting.popleft().wake(True)


class _Event:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._set = False
        self._waiting: list[Thread] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for thread in self._waiting:
            thread.wake(True)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            me = self._process.current_thread()
            self._waiting.append(me)
            self._process.park(timeout)
            self._waiting.remove(me)
        return self._set
