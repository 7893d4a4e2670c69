"""Random calls against a model, on each backend of this tree."""

from __future__ import annotations

import itertools
import threading

import pytest
from torch.distributed import FileStore, HashStore, TCPStore

from rdzv.dynamic_rendezvous.roster import DocumentSession
from rdzv.testing.memory import MemoryBackend, MemoryServer, RosterMemoryBackend
from rdzv.testing.stateful import backend_machine, check, session_machine
from rdzv_c10d import C10dRendezvousBackend

RUNS = (f"run-{number}" for number in itertools.count())


@pytest.fixture
def server():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def on_tcp(server, run):
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    return C10dRendezvousBackend(client, run)


def test_sessions_over_a_tcp_store_are_as_the_model(server):
    def new_run():
        return on_tcp(server, next(RUNS)).open_session

    check(session_machine(new_run), examples=120)


def test_get_and_set_over_a_tcp_store_are_as_the_model(server):
    def new_run():
        run = next(RUNS)
        return lambda: on_tcp(server, run)

    check(backend_machine(new_run), examples=120)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "store")


def test_sessions_over_a_file_store_are_as_the_model(path):
    def new_run():
        return C10dRendezvousBackend(FileStore(f"{path}-{next(RUNS)}", -1), "run").open_session

    check(session_machine(new_run), examples=60)


def test_get_and_set_over_a_file_store_are_as_the_model(path):
    def new_run():
        file = f"{path}-{next(RUNS)}"
        return lambda: C10dRendezvousBackend(FileStore(file, -1), "run")

    check(backend_machine(new_run), examples=100)


def test_sessions_over_a_store_in_this_process_are_as_the_model():
    def new_run():
        return C10dRendezvousBackend(HashStore(), "run").open_session

    check(session_machine(new_run), examples=120)


def test_sessions_over_get_and_set_alone_are_as_the_model():
    def new_run():
        server, run = MemoryServer(), next(RUNS)
        return lambda: DocumentSession(MemoryBackend(server, run), threading.Lock())

    check(session_machine(new_run, epochs=1), examples=120)


def test_sessions_over_the_state_of_a_c10d_store_are_as_the_model():
    def new_run():
        store = HashStore()
        return lambda: DocumentSession(C10dRendezvousBackend(store, "run"), threading.Lock())

    check(session_machine(new_run, epochs=1), examples=60)


def test_sessions_in_memory_are_as_the_model():
    def new_run():
        return RosterMemoryBackend(MemoryServer(), "run").open_session

    check(session_machine(new_run), examples=120)


def test_get_and_set_in_memory_are_as_the_model():
    def new_run():
        server = MemoryServer()
        keep = MemoryBackend(server, "run")
        return lambda: MemoryBackend(keep.server, "run")

    check(backend_machine(new_run), examples=120)
