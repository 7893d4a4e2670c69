"""Any bytes in a store give a value or a state error, in little time and memory (S10)."""

from __future__ import annotations

import threading
import tracemalloc

import msgspec
import pytest
from fuzz import handlers, nodes, sessions, stored
from fuzz.values import KINDS
from torch.distributed import FileStore, TCPStore

from rdzv import RendezvousStateError
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv.dynamic_rendezvous.document import Record, decode
from rdzv.dynamic_rendezvous.roster import DocumentSession

from .hypothesised import fuzzed


def test_any_bytes_are_a_value_that_comes_back_or_a_state_error():
    fuzzed(stored.decoding)


def test_a_session_over_get_and_set_bears_any_state():
    fuzzed(stored.document_session)


def test_a_session_over_a_store_in_this_process_bears_any_bytes_under_any_key():
    fuzzed(sessions.hash_store)


def test_a_session_over_a_file_store_bears_any_bytes_under_any_key(tmp_path):
    store = FileStore(str(tmp_path / "store"), -1)
    fuzzed(lambda source: sessions.store_session(source, store, store, pushes=False))


def test_a_session_over_a_tcp_store_bears_any_bytes_under_any_key():
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def target(source):
        # One of its own each: the server closes a connection that adds to no number.
        client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
        sessions.store_session(source, client, server, pushes=True)

    fuzzed(target)


def test_the_state_of_torch_s_interface_bears_any_bytes_under_any_key():
    fuzzed(sessions.get_and_set)


def test_a_node_bears_any_answers():
    fuzzed(nodes.machine)


def test_a_node_bears_a_state_that_others_overwrite():
    fuzzed(nodes.over_get_and_set)


def test_a_node_bears_a_store_that_others_write_to():
    fuzzed(sessions.node_on_a_store)


@pytest.fixture
def no_parser(monkeypatch):
    def parse(*_args, **_kwargs):
        raise AssertionError("parsed too many bytes")

    monkeypatch.setattr(msgspec.json, "decode", parse)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_bytes_are_refused_before_they_are_parsed(no_parser, kind):
    with pytest.raises(RendezvousStateError, match="1048577 bytes"):
        decode(kind, b" " * (MAX_STATE_BYTES + 1), "The thing")


def test_too_large_a_state_is_refused_before_it_is_parsed(no_parser):
    session = DocumentSession(stored.Holder(b" " * (MAX_STATE_BYTES + 1)), threading.Lock())
    for call in (lambda: session.read(None), lambda: session.records(0), lambda: session.beat(1)):
        with pytest.raises(RendezvousStateError, match="1048577 bytes"):
            call()


ENTRY = b'[1,1,{"kind":"enter","node":"","addr":"","pid":0,"local_id":0,"interval":1,"id":""}]'
LARGE = {
    "many members": b"[" + b",".join([ENTRY] * 12_000) + b"]",
    "many empty lists": b"[" + b"[]," * 300_000 + b"[]]",
    "one field again and again": b"{" + b",".join([b'"round":1'] * 100_000) + b"}",
    "unknown fields": b"{" + b",".join([b'"%d":{}' % n for n in range(80_000)]) + b"}",
    "a long number": b'{"schema":' + b"1" * 1_000_000 + b"}",
    "a long text": b'{"schema":1,"epoch":"' + b"x" * 1_000_000 + b'"}',
    "deep nesting": b'{"schema":1,"x":' + b"[" * 1_000_000,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large", LARGE)
def test_the_largest_state_takes_little_memory_to_read(kind, large):
    tracemalloc.start()
    try:
        decode(kind, LARGE[large], "The thing")
    except RendezvousStateError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * MAX_STATE_BYTES


def test_the_error_of_a_decoder_stays_short():
    with pytest.raises(RendezvousStateError) as caught:
        decode(Record, b'{"kind":"' + b"x" * 1_000_000 + b'"}', "The thing")
    stored.check_message(caught.value)


@pytest.mark.parametrize("freed", [b"0", b"9223372036854775807"])
def test_a_tail_beyond_all_nodes_costs_little(freed):
    held = b'{"schema":1,"write":"w","document":"{\\"epoch\\":\\"e\\"}","rosters":{"e":'
    held += b'{"tail":9223372036854775807,"freed":' + freed + b"}}}"
    session = DocumentSession(stored.Holder(held), threading.Lock())
    session.attach("e")
    try:
        lines = session.records(0)
    except RendezvousStateError:
        return
    assert len(lines) <= 10_000


def test_a_handler_ends_its_calls_whatever_its_backend_holds():
    fuzzed(handlers.handler, examples=25)
