"""One node: a process, the engine's real handler in it, and an agent that does as torch's does."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rdzv.checkpoints import REACHED, WAITING
from rdzv.dynamic_rendezvous.backend import Session
from rdzv.dynamic_rendezvous.handler import DynamicRendezvousHandler
from rdzv.dynamic_rendezvous.phases import Phase
from rdzv.dynamic_rendezvous.settings import RendezvousSettings, RendezvousTimeout
from rdzv.errors import RendezvousError

from .policies import ranking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.distributed import Store

    from rdzv.api import RendezvousHandler
    from rdzv.dynamic_rendezvous.backend import RendezvousBackend, Swap, Token
    from rdzv.dynamic_rendezvous.machine import Machine
    from rdzv.dynamic_rendezvous.messages import Action, Joined

    from .checks import Checker
    from .hub import Process
    from .operator import Operator
    from .scenario import Node, Scenario

__all__ = ["Agent", "Call", "Recorded"]

CLOSE_TIMEOUT = 10.0


class Signal(BaseException):
    """What an order does to the agent's main thread, wherever it waits."""


@dataclass
class Call:
    """One call of the handler's interface."""

    name: str
    started: float
    """In the world's time (seconds)."""
    allowed: float | None
    """Seconds of the node's clock within which it has to return; ``None``: no bound."""
    ended: float | None = None
    outcome: str = ""


class _Handler(DynamicRendezvousHandler):
    """The real handler, without torch's store for the workers."""

    was_spare = False

    def _join_deadline(self) -> float | None:
        self.was_spare = self.was_spare or self._driver.machine.phase is Phase.SPARE
        return super()._join_deadline()

    def _store_of_round(self, joined: Joined) -> Store:  # noqa: ARG002
        return None  # type: ignore[return-value]


class Agent:
    """A node of a simulated run.

    Args:
        process: Its process.
        plan: What kind of a node it is.
        scenario: The limits and times that it is started with.
        backend: Its way to the store.
        checker: Is told what it does.
    """

    def __init__(
        self,
        process: Process,
        plan: Node,
        scenario: Scenario,
        backend: RendezvousBackend,
        checker: Checker,
    ) -> None:
        self.process = process
        self.plan = plan
        self.handler: _Handler | None = None
        self.node = ""
        """Its incarnation, as the protocol names it."""
        self.calls: list[Call] = []
        self.order: str | None = None
        self.ended: str | None = None
        """How it ended, if it did by itself."""
        self.paused_for = 0.0
        self.saves = 0.3
        """How often its workers reach a checkpoint, of all looks at ``num_nodes_waiting()``."""
        self._luck = random.Random(f"checkpoints {scenario.seed} {process.name}")
        self._scenario = scenario
        self._backend = backend
        self._checker = checker
        self._main = process.thread(self._run, "main")

    def start(self) -> None:
        self._main.start()

    @property
    def lives(self) -> bool:
        """Whether its process runs and its agent is at work."""
        return not self.process.dead and self.ended is None

    @property
    def machine(self) -> Machine:
        if self.handler is None:
            raise RuntimeError("it has not started")
        return self.handler._driver.machine

    @property
    def phase(self) -> Phase:
        return Phase.IDLE if self.handler is None else self.machine.phase

    @property
    def was_spare(self) -> bool:
        """Whether it was a spare at some time of its last call to join."""
        return self.handler is not None and self.handler.was_spare

    @property
    def at_work(self) -> bool:
        """Whether its workers run, and nobody wants them to stop."""
        return self.lives and self.phase is Phase.MEMBER and self.machine.latch is None

    def command(self, order: str) -> None:
        """Have its main thread drop what it does for ``order``: leave, quit or close."""
        if self.lives and self.order is None:
            self.order = order
            self._main.interrupt(Signal(order))

    # ------------------------------------------------------------ its main thread

    def _run(self) -> None:
        handler = self._make_handler()
        try:
            while not self._work_until_told(handler):
                pass
        except RendezvousError as exc:
            self._end(f"{type(exc).__name__}: {exc}")
            self._call("leave", handler.leave, CLOSE_TIMEOUT + 2.0)
        finally:
            if not self.process.dead:
                self.process.kill()

    def _end(self, how: str) -> None:
        self.ended = how
        self._checker.note(self.process.name, f"ended: {how}")

    def _work_until_told(self, handler: _Handler) -> bool:
        """Work until an order comes; returns whether that was the agent's end."""
        try:
            self._work(handler)
        except Signal:
            return self._obey(handler)
        return True

    def _work(self, handler: _Handler) -> None:
        while True:
            handler.was_spare = False
            self._call("next_rendezvous", handler.next_rendezvous, self._scenario.join_timeout)
            while not self._call("num_nodes_waiting", handler.num_nodes_waiting, 0.0):
                self.process.sleep(self.plan.poll)
                if self._luck.random() < self.saves:
                    self.reach_checkpoint()
            self.process.sleep(self.process.chance.random() * 0.5)  # Its workers stop.

    def reach_checkpoint(self) -> bool:
        """Have one of its workers say so; returns whether it was told that a new round opens."""
        joined = None if self.handler is None else self.handler._info
        if joined is None or not self.at_work or self.process.paused:
            return False
        store = self.process.hub.stores[joined.master]
        if store.process.dead or store.process.paused or not store.change(WAITING, REACHED):
            return False
        self._checker.note(self.node, f"a checkpoint of round {joined.round} lets newcomers in")
        return True

    def _obey(self, handler: RendezvousHandler) -> bool:
        """Do what was ordered; returns whether that was the agent's end."""
        order = self.order
        if order == "close":
            self._call("set_closed", handler.set_closed, CLOSE_TIMEOUT)
            self.order = None
            return False
        if order == "quit":
            self._call("shutdown", handler.shutdown, 2 * CLOSE_TIMEOUT)
        else:
            self._call("leave", self._leave, CLOSE_TIMEOUT)
        self._end(f"did {order}")
        return True

    def _leave(self) -> bool:
        return self.handler is not None and self.handler.leave()

    def _call(self, name: str, method: Callable[[], Any], allowed: float | None) -> Any:
        hub = self.process.hub
        call = Call(name, hub.now, allowed)
        self.paused_for = 0.0
        self.calls.append(call)
        try:
            result = method()
        except Signal:
            call.outcome = "interrupted"
            call.ended = hub.now
            raise
        except Exception as exc:
            call.outcome = type(exc).__name__
            call.ended = hub.now
            self._checker.failed(self, call, exc)
            raise
        call.ended = hub.now
        call.outcome = str(result) if isinstance(result, bool | int) else "ok"
        self._checker.returned(self, call)
        return result

    # ------------------------------------------------------------ the real thing

    def _make_handler(self) -> _Handler:
        scenario = self._scenario
        timeout = RendezvousTimeout(
            timedelta(seconds=scenario.join_timeout),
            timedelta(seconds=scenario.last_call),
            timedelta(seconds=CLOSE_TIMEOUT),
        )
        settings = RendezvousSettings(
            "simulated",
            scenario.min_nodes,
            scenario.max_nodes,
            timeout,
            timedelta(seconds=scenario.interval),
            scenario.attempts,
            scenario.admission,
        )
        handler = _Handler(
            settings,
            "simulated",
            None,  # type: ignore[arg-type]
            self._backend,
            self.process.name,
            scenario.patience,
            self.process,
            ranking(scenario.rank_policy, self.plan),
        )
        self.handler = handler
        self.node = self.machine.node
        if not self._lists_places():
            self.machine.settings = replace(self.machine.settings, listed=0)
        driver = handler._driver
        tell, open_session = driver._notify, driver._open_session

        def notify(action: Action) -> None:
            self._checker.reported(self, action)
            tell(action)

        driver._notify = notify
        driver._open_session = lambda: Recorded(open_session(), self, self._checker)
        self._checker.started(self)
        return handler

    def _lists_places(self) -> bool:
        """Whether it has places in the document, where it leads, as if the nodes were few.

        In a third of the seeds all do, in another none, and in the last some.
        """
        seed = self._scenario.seed
        luck = random.Random(f"places {seed} {self.process.name}")
        return seed % 3 == 0 or (seed % 3 == 1 and luck.random() < 0.5)

    def bury(self) -> None:
        """Unwind its threads once the simulation is over."""
        if self.handler is not None:
            self.handler._leaver.left = True  # Its finalizer has nothing to do.
        self.process.bury()


class Recorded(Session):
    """Passes everything on, and tells the checker what it has to know."""

    def __init__(self, session: Session, agent: Agent | Operator, checker: Checker) -> None:
        self._session = session
        self._agent = agent
        self._checker = checker
        self._done: deque[str] = deque(maxlen=2)
        self._looked_at = -1.0

    def _now(self) -> float:
        return self._agent.process.hub.now

    def read(self, known: Token | None) -> tuple[bytes, Token] | None:
        self._done.append("read")
        return self._session.read(known)

    def swap(self, document: bytes, token: Token | None) -> Swap:
        look = self._looked_at if list(self._done) == ["records", "publish"] else None
        self._done.append("swap")
        offer = self._checker.offered(self._agent, document, look)
        swap = self._session.swap(document, token)
        self._checker.answered(offer, won=swap.won)
        return swap

    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        return self._session.wait(token, timeout)

    def attach(self, epoch: str) -> None:
        self._session.attach(epoch)

    def enter(self, record: bytes) -> int:
        self._done.append("enter")
        return self._session.enter(record)

    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        self._done.append("records")
        self._looked_at = self._now()
        return self._session.records(after)

    def wait_records(self, after: int, count: int, timeout: float) -> None:
        self._session.wait_records(after, count, timeout)

    def bury(self, ticket: int) -> None:
        self._done.append("bury")
        self._session.bury(ticket)

    def beat(self, slot: int) -> Mapping[int, int]:
        self._done.append("beat")
        self._checker.looks(self._agent)
        return self._session.beat(slot)

    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        self._done.append("beats")
        self._checker.looks(self._agent)
        return self._session.beats(slots)

    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        self._done.append("publish")
        self._session.publish(nonce, pieces)

    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        self._done.append("fetch")
        return self._session.fetch(nonce, names)

    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        self._done.append("forget")
        self._session.forget(after, upto, nonce, names)

    def close(self) -> None:
        self._session.close()
