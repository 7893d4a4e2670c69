"""The processes of the fault tests: each takes commands as JSON lines and tells what happens.

Run as a script it is the nursery: it imports torch once and forks a process for
every node and store that a test asks for, so that a node costs milliseconds. A
process is told ``{"do": <command>, ...}`` on its stdin and announces
``{"event": <what>, "at": <monotonic clock>, ...}`` on its stdout.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

REQUEST = struct.Struct("!cq")
REPLY = struct.Struct("!q")
FORK, REAP = b"F", b"W"

_DIE_WITH_PARENT = 1


def die_with_parent() -> None:
    """Whatever becomes of the test, nothing of it stays behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


class Announcer(logging.Handler):
    """Tells events and rdzv's own log, a line each."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._lines = os.fdopen(1, "w", buffering=1, closefd=False)

    def tell(self, event: str, **fields: object) -> None:
        line = json.dumps({"event": event, "at": time.monotonic(), **fields}) + "\n"
        self.acquire()
        try:
            self._lines.write(line)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        self.tell("log", level=record.levelname, text=record.getMessage())


class Process:
    """One node, or the process that hosts a store."""

    def __init__(self) -> None:
        self._announcer = Announcer()
        self._tell = self._announcer.tell
        self._main: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._handler: Any = None
        self._store: Any = None
        self._left = False

    def run(self) -> None:
        """Serve until told to end. Whatever blocks for long runs in the main thread, as torch's
        agent does it, so that a signal unwinds it."""
        log = logging.getLogger("rdzv")
        log.setLevel(logging.DEBUG)
        log.addHandler(self._announcer)
        # As torch's agent: the signal becomes an exception of the main thread.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            self._main.get()()

    def _listen(self) -> None:
        for line in sys.stdin:
            command = json.loads(line)
            name = command.pop("do")
            method = getattr(self, f"do_{name}")
            job = self._guarded(name, method, command)
            if name in ("join", "live", "live_to_the_end", "exit"):
                self._main.put(job)
            else:
                threading.Thread(target=job, daemon=True).start()
        os._exit(0)

    def _guarded(
        self, name: str, method: Callable[..., None], arguments: dict[str, Any]
    ) -> Callable[[], None]:
        def job() -> None:
            began = time.monotonic()
            try:
                method(**arguments)
            except Exception as exc:  # noqa: BLE001 - told to the test, which judges it
                took = time.monotonic() - began
                self._tell("error", do=name, type=type(exc).__name__, text=str(exc), took=took)

        return job

    # ------------------------------------------------------------ a store

    def do_host(self, host: str, port: int) -> None:
        from torch.distributed import TCPStore

        self._store = TCPStore(host, port, is_master=True, wait_for_workers=False)
        self._tell("hosting", port=self._store.port)

    def do_set(self, key: str, value: str) -> None:
        """Write what rdzv would never write."""
        self._store.set(key, value)
        self._tell("set", key=key)

    def do_get(self, key: str) -> None:
        self._tell("got", key=key, value=self._store.get(key).decode())

    def do_see_round(self, run_id: str, above: int) -> None:
        """Tell the run's document once a round above that one is in it."""
        from rdzv_c10d.session import Chain, Keys

        chain = Chain(Keys(self._store, "the store", pushes=False), f"rdzv/{run_id}/document")
        while True:
            found = chain.read(None)
            document = {} if found is None else json.loads(found[0])
            if document.get("round", 0) > above:
                self._tell("round", document=document)
                return
            time.sleep(0.01)

    # ------------------------------------------------------------ a node

    def do_open(self, block_master: int = 0, **parameters: Any) -> None:
        """Make the handler. The call of that number to open a store for the workers, from 1 on,
        is announced and never returns."""
        import rdzv
        from rdzv.dynamic_rendezvous import runtime

        if block_master:
            opened, real = [0], vars(runtime)["open_master"]

            def open_master(*args: Any, **kwargs: Any) -> Any:
                opened[0] += 1
                if opened[0] >= block_master:
                    self._tell("blocked")
                    threading.Event().wait()
                return real(*args, **kwargs)

            vars(runtime)["open_master"] = open_master
        began = time.monotonic()
        params = rdzv.RendezvousParameters(**parameters)
        self._handler = rdzv.get_rendezvous_handler(params)
        took = time.monotonic() - began
        self._tell("opened", node=getattr(self._handler, "node", ""), took=took)

    def _join(self) -> None:
        began = time.monotonic()
        info = self._handler.next_rendezvous()
        where = info.bootstrap_store_info
        self._tell(
            "joined",
            began=began,
            round=self._handler.round,
            rank=info.rank,
            size=info.world_size,
            master=[where.master_addr, where.master_port],
            gone=self._handler.gone_before_round,
        )

    def do_join(self) -> None:
        self._join()

    def do_live(self) -> None:
        """Join round after round, as an agent with healthy workers does."""
        while True:
            self._join()
            while not self._handler.num_nodes_waiting():
                time.sleep(0.01)

    def do_live_to_the_end(self) -> None:
        """The same until the run is closed, or this node has left it."""
        from rdzv import RendezvousClosedError, RendezvousGracefulExitError

        try:
            while True:
                self._join()
                while not self._handler.num_nodes_waiting():
                    if self._handler.is_closed() or self._left:
                        self._tell("over", how="member")
                        return
                    time.sleep(0.005)
        except (RendezvousClosedError, RendezvousGracefulExitError) as exc:
            self._tell("over", how=type(exc).__name__)

    def do_waiting(self) -> None:
        self._tell("waiting", count=self._handler.num_nodes_waiting())

    def do_see_entered(self) -> None:
        """Tell once it has a ticket."""
        while not self._handler._driver.machine.in_roster:
            time.sleep(0.001)
        self._tell("entered")

    def do_latch(self) -> None:
        """Tell once a new round is due."""
        while not self._handler.num_nodes_waiting():
            time.sleep(0.01)
        self._tell("latch", count=self._handler.num_nodes_waiting())

    def do_is_closed(self) -> None:
        self._tell("is_closed", closed=self._handler.is_closed())

    def do_see_closed(self) -> None:
        """Tell once the run is closed."""
        while not self._handler.is_closed():
            time.sleep(0.01)
        self._tell("is_closed", closed=True)

    def do_close(self) -> None:
        self._handler.set_closed()
        self._tell("closed")

    def do_shutdown(self) -> None:
        began = time.monotonic()
        done = self._handler.shutdown()
        self._tell("ended", done=done, took=time.monotonic() - began)

    def do_leave(self) -> None:
        began = time.monotonic()
        done = self._handler.leave()
        self._left = True
        self._tell("ended", done=done, took=time.monotonic() - began)

    def do_exit(self) -> None:
        sys.exit(0)


def nursery(control: socket.socket) -> None:
    """Fork a process for each request, and tell how one ended; returns in the forked ones."""
    import torch.distributed  # noqa: F401

    import rdzv.dynamic_rendezvous.handler  # noqa: F401
    import rdzv_c10d  # noqa: F401

    control.sendall(REPLY.pack(0))
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 2)
        if not data:
            os._exit(0)
        request, pid = REQUEST.unpack(data)
        if request == REAP:
            _, status = os.waitpid(pid, 0)
            control.sendall(REPLY.pack(os.waitstatus_to_exitcode(status)))
            continue
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            control.close()
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
                os.close(descriptor)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(REPLY.pack(pid))


if __name__ == "__main__":
    die_with_parent()
    nursery(socket.socket(fileno=int(sys.argv[1])))
    Process().run()
