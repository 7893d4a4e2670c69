"""torch's backends under this handler, these backends under torch's, and the errors of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import FileStore, HashStore, TCPStore
from torch.distributed.elastic.rendezvous import api as torch_api
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as torch_dynamic
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import (
    C10dRendezvousBackend as TorchC10dBackend,
)

from rdzv import (
    DynamicRendezvousHandler,
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousStateError,
)
from rdzv.dynamic_rendezvous import RendezvousTimeout
from rdzv.errors import torch_compatible
from rdzv_c10d import C10dRendezvousBackend

from .memory import Memory, MemoryBackend
from .test_handler import LIMIT, background, eventually, join

TOKEN_OF_TORCH = b"gASVIQAAAAAAAAB9lC4="


@pytest.fixture
def server():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(params=["tcp", "file"])
def store(request, tmp_path):
    if request.param == "file":
        return FileStore(str(tmp_path / "store"), -1)
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def c10d(store, run_id="run"):
    return C10dRendezvousBackend(store, run_id)


def again(store) -> Any:
    """The same store, as another process would open it."""
    if isinstance(store, FileStore):
        return FileStore(store.path, -1)  # type: ignore[attr-defined]
    return TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)


@pytest.fixture
def made():
    handlers: list[DynamicRendezvousHandler] = []
    yield handlers
    for handler in handlers:
        background(handler.leave)


def ours(backend, low: int = 2, high: int = 2, **options) -> DynamicRendezvousHandler:
    timeout = RendezvousTimeout(join=timedelta(seconds=LIMIT), last_call=timedelta(seconds=0.3))
    return DynamicRendezvousHandler.from_backend(
        "run",
        HashStore(),
        backend,
        low,
        high,
        local_addr="127.0.0.1",
        timeout=timeout,
        keep_alive_interval=0.3,
        **options,
    )


# ---------------------------------------------------------------- torch's backend here


@pytest.mark.parametrize("count", [2, 3])
def test_torchs_backend_serves_rounds_of_this_handler(server, made, count):
    backends = [TorchC10dBackend(again(server), "run") for _ in range(count)]
    made += [ours(backend, count, count) for backend in backends]
    for number in (1, 2):
        infos = join(*made)
        assert sorted(info.rank for info in infos) == list(range(count))
        assert {handler.round for handler in made} == {number}
    made[0].set_closed()
    with pytest.raises(RendezvousClosedError):
        made[1].next_rendezvous()


def test_a_late_node_is_taken_in_over_torchs_backend(server, made):
    made += [ours(TorchC10dBackend(again(server), "run"), 2, 3) for _ in range(3)]
    join(*made[:2])
    late = background(made[2].next_rendezvous)
    eventually(lambda: all(h.num_nodes_waiting() for h in made[:2]), "it is announced")
    infos = [*join(*made[:2]), late.result(LIMIT)]
    assert sorted(info.rank for info in infos) == [0, 1, 2]


@pytest.mark.parametrize("theirs", ["RendezvousConnectionError", "RendezvousStateError"])
def test_torchs_errors_are_recognised_where_a_backend_raises_them(made, theirs):
    backend = MemoryBackend(Memory())
    backend.failure = getattr(torch_api, theirs)("out of order")
    made.append(ours(backend, patience=0.2))
    kinds = {
        "RendezvousConnectionError": RendezvousConnectionError,
        "RendezvousStateError": RendezvousStateError,
    }
    with pytest.raises(kinds[theirs], match=r"'memory'.*out of order"):
        made[0].next_rendezvous()


def test_what_torchs_backend_left_in_a_store_is_a_state_error(server, made):
    theirs = TorchC10dBackend(server, "run")
    theirs.set_state(b"\x80\x04N.")
    made.append(ours(TorchC10dBackend(again(server), "run")))
    with pytest.raises(RendezvousStateError, match="run id"):
        made[0].next_rendezvous()


# ---------------------------------------------------------------- our backend there


def test_this_backend_serves_torchs_own_handler(store):
    def theirs(own):
        return torch_dynamic.DynamicRendezvousHandler.from_backend(
            run_id="run",
            store=own,
            backend=c10d(own),
            min_nodes=2,
            max_nodes=2,
            local_addr="127.0.0.1",
        )

    handlers = [theirs(store), theirs(again(store))]
    infos = join(*handlers)
    assert sorted(info.rank for info in infos) == [0, 1]
    assert {info.world_size for info in infos} == {2}
    handlers[0].set_closed()
    # torch's handler looks again after a second at the earliest.
    eventually(handlers[1].is_closed, "the other one is told")
    for handler in handlers:
        assert handler.shutdown()


def test_torchs_handler_recognises_the_errors_of_this_backend():
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    backend = C10dRendezvousBackend(again(server), "run")
    del server
    with pytest.raises(torch_api.RendezvousConnectionError):
        backend.get_state()
    with pytest.raises(RendezvousConnectionError):
        backend.set_state(b"x", None)


def test_an_error_raised_as_torchs_is_both():
    for name in ("RendezvousConnectionError", "RendezvousStateError", "RendezvousClosedError"):
        kind = torch_compatible({c.__name__: c for c in ERRORS}[name])
        assert issubclass(kind, getattr(torch_api, name))


ERRORS = (RendezvousConnectionError, RendezvousStateError, RendezvousClosedError)


# ---------------------------------------------------------------- get and set


def test_where_nothing_is_stored_there_is_no_state(store):
    assert c10d(store).get_state() is None


def test_a_state_is_created_read_and_replaced(store):
    one, two = c10d(store), c10d(again(store))
    state, token, won = one.set_state(b"first")
    assert (state, won) == (b"first", True)
    assert two.get_state() == (b"first", token)
    state, newer, won = two.set_state(b"\x00\xff", token)
    assert (state, won) == (b"\x00\xff", True)
    assert newer != token
    assert one.get_state() == (b"\x00\xff", newer)


def test_an_empty_state_is_a_state(store):
    backend = c10d(store)
    assert backend.set_state(b"")[2]
    assert backend.get_state()[0] == b""


def test_runs_on_one_store_do_not_see_each_other(store):
    c10d(store).set_state(b"x")
    assert c10d(store, "run2").get_state() is None


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_token_that_is_out_of_date_changes_nothing(store, steps):
    backend = c10d(store)
    old = token = backend.set_state(b"0")[1]
    for step in range(steps):
        token = backend.set_state(f"{step + 1}".encode(), token)[1]
    newest = f"{steps}".encode()
    assert backend.set_state(b"late", old) == (newest, token, False)
    assert backend.set_state(b"late", None) == (newest, token, False)
    assert backend.get_state() == (newest, token)


@pytest.mark.parametrize(
    "token", [TOKEN_OF_TORCH, "1", b"1", 1.0, 0, -1, object(), (1,), True, 10**9], ids=repr
)
def test_a_token_of_somebody_else_changes_nothing(store, token):
    backend = c10d(store)
    assert backend.set_state(b"x", token) is None
    assert backend.get_state() is None
    backend.set_state(b"first")
    newest = backend.set_state(b"second", backend.get_state()[1])[1]
    assert backend.set_state(b"x", token) == (b"second", newest, False)


def test_of_two_that_write_the_same_bytes_exactly_one_wins(store):
    one, two = c10d(store), c10d(again(store))
    assert [b.set_state(b"same")[2] for b in (one, two)] == [True, False]
    token = two.get_state()[1]
    assert [b.set_state(b"same", token)[2] for b in (one, two)] == [True, False]


def test_of_many_that_write_the_same_bytes_at_once_exactly_one_wins(store):
    backends = [c10d(again(store)) for _ in range(4)]
    token = None
    for _ in range(5):
        together = threading.Barrier(len(backends))

        def write(backend, together=together, token=token):
            together.wait(LIMIT)
            return backend.set_state(b"same", token)

        answers = [f.result(LIMIT) for f in [background(lambda b=b: write(b)) for b in backends]]
        assert sorted(answer[2] for answer in answers) == [False] * 3 + [True]
        assert len({answer[1] for answer in answers}) == 1
        token = answers[0][1]


def test_a_state_that_somebody_else_has_written_is_a_state_error(store):
    backend = c10d(store)
    backend.set_state(b"x")
    for garbage in ("no mark", "0123456789abcdef:not base 64!", ":"):
        store.set("rdzv/run/state/1", garbage)
        with pytest.raises(RendezvousStateError, match="Use another run id"):
            backend.get_state()


# ---------------------------------------------------------------- whole rounds on a FileStore


def test_whole_rounds_on_a_file(tmp_path, made):
    path = str(tmp_path / "store")
    made += [ours(C10dRendezvousBackend(FileStore(path, -1), "run"), 3, 3) for _ in range(3)]
    for number in (1, 2):
        infos = join(*made)
        assert sorted(info.rank for info in infos) == [0, 1, 2]
        assert {handler.round for handler in made} == {number}
    made[2].set_closed()
    with pytest.raises(RendezvousClosedError):
        made[0].next_rendezvous()


NODE = """
    import json, sys
    from datetime import timedelta
    from torch.distributed import FileStore
    from rdzv import DynamicRendezvousHandler
    from rdzv.dynamic_rendezvous import RendezvousTimeout
    from rdzv_c10d import C10dRendezvousBackend

    store = FileStore(sys.argv[1], -1)
    handler = DynamicRendezvousHandler.from_backend(
        "run", store, C10dRendezvousBackend(store, "run"), 2, 2, local_addr="127.0.0.1",
        timeout=RendezvousTimeout(join=timedelta(seconds=90)),
    )
    for _ in range(2):
        info = handler.next_rendezvous()
        print(json.dumps([handler.round, info.rank, info.world_size,
                          info.bootstrap_store_info.master_port]), flush=True)
    handler.leave()
"""


def test_whole_rounds_on_a_file_across_two_processes(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(NODE), str(tmp_path / "store")]
    nodes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    try:
        outputs = [node.communicate(timeout=LIMIT)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    assert [node.returncode for node in nodes] == [0, 0]
    one, two = ([json.loads(line) for line in output.splitlines()] for output in outputs)
    for number in (1, 2):
        (round1, rank1, *same1), (round2, rank2, *same2) = one[number - 1], two[number - 1]
        assert round1 == round2 == number
        assert {rank1, rank2} == {0, 1}
        assert same1 == same2
