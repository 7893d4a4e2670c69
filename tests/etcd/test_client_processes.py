"""The client across processes: forks, ends without a close, what is left and what is printed."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator

import pytest

from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import Get
from rdzv_etcd.server import EtcdServer

from ..local_servers import LIMIT
from .clients import eventually, threads, values
from .servers import debian

ENDPOINT = "RDZV_TEST_ENDPOINT"


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(binary=debian(), durable=False) as server:
        yield server


@pytest.fixture
def key() -> bytes:
    return uuid.uuid4().hex.encode()


def run(server: EtcdServer, code: str, *, status: int = 0) -> str:
    """Run Python in a process of its own; nothing but its output may be printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            PREAMBLE + textwrap.dedent(code),
        ],
        env={**os.environ, ENDPOINT: server.endpoint, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == status
    return done.stdout


PREAMBLE = textwrap.dedent(
    f"""
    import gc, os, sys, threading
    from rdzv_etcd.client import EtcdClient
    from rdzv_etcd.seam import EtcdError, Get
    endpoint = os.environ["{ENDPOINT}"]
    client = EtcdClient(endpoint, timeout=20)
    watch = client.watch(b"key")
    client.put(b"key", b"a")
    first = []
    while not first:
        first = watch.next(20)

    def child(work):
        "Fork, work in the child, and see that it ended well."
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            return
        try:
            work()
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    """
)


def test_a_forked_child_has_a_connection_of_its_own(server):
    printed = run(
        server,
        """
        def work():
            client.put(b"key", b"child")
            own = client.watch(b"key")
            client.put(b"key", b"child too")
            events = []
            while not events:
                events = own.next(20)
            assert [event.kv.value for event in events] == [b"child too"], events
            own.close()
            client.close()

        child(work)
        child(work)
        client.put(b"key", b"parent")
        events = []
        while len(events) < 5:
            events += watch.next(20)
        print([event.kv.value.decode() for event in events])
        """,
    )
    assert printed == "['child', 'child too', 'child', 'child too', 'parent']\n"


def test_a_child_may_close_what_it_was_given(server):
    run(
        server,
        """
        def work():
            watch.close()
            client.close()

        child(work)
        client.put(b"key", b"parent")
        assert watch.next(20)
        """,
    )


def test_a_watch_of_the_parent_is_refused_in_the_child(server):
    run(
        server,
        """
        def work():
            try:
                watch.next(20)
            except EtcdError as error:
                assert "belongs to the process" in str(error), error
            else:
                raise AssertionError("no error")

        child(work)
        """,
    )


def test_a_child_that_is_forked_while_others_call_goes_on(server):
    run(
        server,
        """
        ended = threading.Event()

        def call():
            while not ended.is_set():
                client.put(b"key", b"x")

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            child(lambda: client.range(Get(b"key")))
        ended.set()
        for thread in threads:
            thread.join()
        """,
    )


def test_a_child_ends_in_order_and_forgets_its_parents_client(server):
    run(
        server,
        """
        pid = os.fork()
        if pid == 0:
            del client, watch
            gc.collect()
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        client.put(b"key", b"parent")
        assert watch.next(20)
        """,
    )


def test_multiprocessing_works_with_a_client_of_the_parent(server):
    run(
        server,
        """
        import multiprocessing
        context = multiprocessing.get_context("fork")
        process = context.Process(target=lambda: client.put(b"key", b"child"))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert watch.next(20)
        """,
    )


@pytest.mark.parametrize("end", ["", "client.close()", "watch.close()", "del watch, client"])
def test_nothing_is_printed_at_the_end(server, end):
    run(server, end)


def test_nothing_is_printed_at_the_end_while_threads_wait_and_call(server):
    run(
        server,
        """
        def call():
            while True:
                client.put(b"key", b"x")

        begun = threading.Event()

        def wait():
            begun.set()
            while True:
                watch.next(20)

        threading.Thread(target=call, daemon=True).start()
        threading.Thread(target=wait, daemon=True).start()
        begun.wait()
        """,
    )


def sockets() -> int:
    """How many sockets this process has open, after a collection of garbage."""
    gc.collect()
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return found


@pytest.mark.parametrize("how", ["forgotten", "closed", "only the watch is closed"])
def test_a_client_that_nobody_has_any_more_lets_its_connection_go(server, key, how):
    before = threads(), sockets()
    for _ in range(5):
        client = EtcdClient(server.endpoint)
        watch = client.watch(key)
        client.put(key, b"a")
        assert values(watch, 1) == [b"a"]
        if how == "closed":
            client.close()
        elif how != "forgotten":
            watch.close()
        del client, watch
    eventually(lambda: threads() <= before[0])
    eventually(lambda: sockets() <= before[1])


def test_a_watch_keeps_its_client(server, key):
    watch = EtcdClient(server.endpoint).watch(key)
    gc.collect()
    other = EtcdClient(server.endpoint)
    other.put(key, b"a")
    assert values(watch, 1) == [b"a"]
    assert other.range(Get(key)).count == 1
    watch.close()
    other.close()
