"""Whole handlers on simulated machines: threads, clocks and a network, in no real time."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import HashStore

from rdzv.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousSettings, RendezvousTimeout
from rdzv.dynamic_rendezvous.driver import Driver
from rdzv.dynamic_rendezvous.machine import Machine
from rdzv.testing.simulation.hub import Hub, Process
from rdzv.testing.simulation.network import Connection, Link
from rdzv.testing.simulation.sessions import NativeBackend, Offer
from rdzv.testing.simulation.store import Kind, Server

DELAY = 0.001
"""Seconds that a message takes one way; now and then twice as long."""


class Call:
    """A call in a thread of its own: what came of it, and when (the site's time)."""

    def __init__(self, member: Member, method: Callable[[], Any]) -> None:
        self.result: Any = None
        self.began = member.site.hub.now
        self.ended: float | None = None

        def run() -> None:
            try:
                self.result = method()
            except Exception as exc:  # noqa: BLE001 - handed to the test.
                self.result = exc
            self.ended = member.site.hub.now

        member.process.thread(run, "caller").start()


class Member:
    """One process with one handler."""

    def __init__(self, site: Site, number: int, patience: float, **timeouts: float) -> None:
        self.site = site
        hub, name = site.hub, f"n{number}"
        self.process = Process(hub, name, name, offset=100.0 * number)
        self.link = Link(hub, random.Random(name), DELAY)
        backend = NativeBackend(self._connect, site.server, Offer())
        times = {name: timedelta(seconds=seconds) for name, seconds in timeouts.items()}
        settings = RendezvousSettings(
            "run",
            *site.limits,
            RendezvousTimeout(**times),
            timedelta(seconds=site.interval),
            site.attempts,
            site.admission,
        )
        self.handler = DynamicRendezvousHandler(
            settings, "simulated", HashStore(), backend, name, patience, self.process
        )

    def _connect(self) -> Connection:
        # As of a client library that waits for an answer for ever.
        return Connection(self.process, self.link, self.site.server, None, keep_alive=8.0)

    @property
    def driver(self) -> Driver:
        return self.handler._driver

    @property
    def machine(self) -> Machine:
        return self.driver.machine

    def call(self, method: Callable[[], Any]) -> Call:
        return Call(self, method)

    def join(self) -> Call:
        return self.call(self.handler.next_rendezvous)


class Site:
    """A store, a network, and processes with handlers."""

    def __init__(
        self,
        low: int,
        high: int,
        *,
        interval: float = 1.0,
        attempts: int = 5,
        admission: Any = "immediate",
    ) -> None:
        self.limits = low, high
        self.interval = interval
        self.attempts = attempts
        self.admission = admission
        self.hub = Hub()
        self.server = Server(self.hub, random.Random(0), Kind.LINEARIZABLE, 0.0)
        self.members: list[Member] = []

    def add(self, *, patience: float = 60.0, join: float = 60.0, last_call: float = 1.0) -> Member:
        """Start another process."""
        number = len(self.members)
        self.members.append(Member(self, number, patience, join=join, last_call=last_call))
        return self.members[-1]

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.hub.run(self.hub.now + seconds)

    def until(self, happened: Callable[[], Any], seconds: float = 60.0) -> None:
        """Let time pass until something has happened."""
        end = self.hub.now + seconds
        while not happened():
            assert self.hub.now < end, "it never came to this"
            self.advance(0.0005)

    def end(self) -> None:
        """Unwind everything."""
        for member in self.members:
            member.handler._leaver.left = True  # Its finalizer has nothing to do.
            member.process.bury()
