"""The wire format: valid records, or an error that says where; never anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv import RendezvousStateError
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES
from rdzv.dynamic_rendezvous.document import (
    SCHEMA,
    Assigned,
    Change,
    Document,
    Leader,
    Master,
    Member,
    Record,
    decode,
    encode,
)

KINDS = (Document, Record, Assigned, list[Member])

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", max_size=64)
counts = st.integers(0, 2**53)
seconds = st.floats(0, 86400.0, exclude_min=True)
records = st.builds(
    Record,
    kind=st.sampled_from(["enter", "leave"]),
    node=names,
    addr=st.text(max_size=255),
    pid=counts,
    local_id=counts,
    interval=seconds,
    id=names,
    round=counts,
    rank=st.integers(-1, 10**6),
)
sizes = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(sorted)
documents = sizes.flatmap(
    lambda size: st.builds(
        Document,
        schema=st.just(SCHEMA),
        epoch=names,
        version=st.integers(1, 2**53),
        write=names,
        min_nodes=st.just(size[0]),
        max_nodes=st.just(size[1]),
        leader=st.none() | st.builds(Leader, names, seconds, st.integers(-1, 10**6)),
        upto=counts,
        gone=counts,
        master=st.none() | st.builds(Master, st.text(max_size=255), st.integers(1, 65535)),
        change=st.none() | st.builds(Change, counts, counts, counts, counts),
        closed=st.booleans(),
    )
)
completed = st.builds(
    lambda document, share, **fields: msgspec.structs.replace(
        document, size=1 + round(share * (document.max_nodes - 1)), **fields
    ),
    documents,
    st.floats(0, 1),
    round=st.integers(1, 2**53),
    nonce=names.filter(bool),
    chunks=st.integers(1, 10**4),
)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def example() -> Any:
    return msgspec.to_builtins(Document(SCHEMA, "epoch", 1, "write", 2, 4))


@given(documents | completed)
def test_a_document_comes_back_as_it_was_written(document):
    assert decode(Document, encode(document), "here") == document


@given(records, st.integers(-1, 10**6), counts)
def test_records_and_members_come_back_as_they_were_written(record, rank, ticket):
    assert decode(Record, encode(record), "here") == record
    members = [Member(ticket, rank, record)]
    assert decode(list[Member], encode(members), "here") == members


@given(st.sampled_from(KINDS), st.binary(max_size=2000))
def test_any_bytes_are_a_record_or_a_state_error(kind, data):
    try:
        decode(kind, data, "here")
    except RendezvousStateError as exc:
        assert str(exc).startswith("here ")


@given(st.sampled_from(KINDS), jsons)
def test_any_json_is_a_record_or_a_state_error(kind, value):
    try:
        decode(kind, json.dumps(value).encode(), "here")
    except RendezvousStateError as exc:
        assert str(exc).startswith("here ")


@given(st.sampled_from([*sorted(example()), "leader", "master", "change", "round"]), jsons)
def test_any_value_in_any_field_is_a_document_or_a_state_error(field, value):
    data = json.dumps({**example(), field: value}).encode()
    try:
        found = decode(Document, data, "here")
    except RendezvousStateError:
        return
    assert 1 <= found.min_nodes <= found.max_nodes
    assert found.version >= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_endless_nesting_is_a_state_error(kind, opening):
    with pytest.raises(RendezvousStateError):
        decode(kind, opening * 100_000, "here")


def test_a_newer_schema_is_named_before_anything_else_is_looked_at():
    data = json.dumps({"schema": SCHEMA + 1, "epoch": 7, "surprise": []}).encode()
    with pytest.raises(RendezvousStateError, match=r"newer rdzv \(schema 2.*same version"):
        decode(Document, data, "The document")


def test_fields_that_are_not_known_are_borne():
    data = json.dumps({**example(), "hint": [1, 2]}).encode()
    assert decode(Document, data, "here").min_nodes == 2


class Unread(bytes):
    """Bytes of a length that nobody may look into."""

    def __len__(self) -> int:
        return MAX_STATE_BYTES + 1

    def __getitem__(self, key):
        raise AssertionError("looked into too many bytes")

    def __buffer__(self, flags):
        raise AssertionError("parsed too many bytes")


def test_too_many_bytes_are_refused_before_they_are_parsed():
    with pytest.raises(RendezvousStateError, match=r"holds 1048577 bytes.*another run id"):
        decode(Document, Unread(), "The document")


def test_the_largest_state_is_still_parsed():
    text = json.dumps(example()).encode()
    assert decode(Document, text.ljust(MAX_STATE_BYTES), "here").max_nodes == 4
    with pytest.raises(RendezvousStateError):
        decode(Document, text.ljust(MAX_STATE_BYTES + 1), "here")


def test_what_is_no_state_of_ours_is_shown_by_its_beginning_with_a_remedy():
    with pytest.raises(RendezvousStateError) as caught:
        decode(Document, b"\x80\x04\x95" + b"x" * 100, "The document")
    text = str(caught.value)
    assert "\\x80\\x04\\x95" in text
    assert "x" * 60 not in text
    assert "run id" in text


def test_limits_that_contradict_each_other_are_a_state_error():
    data = json.dumps({**example(), "min_nodes": 5}).encode()
    with pytest.raises(RendezvousStateError, match="contradicts itself.*min_nodes=5, max_nodes=4"):
        decode(Document, data, "here")


@pytest.mark.parametrize(
    "changes",
    [
        {"places": "1aaaa"},
        {"round": 1, "size": 3, "nonce": "n", "chunks": 1, "places": "1aaaa 2bbbb"},
    ],
)
def test_places_that_are_not_those_of_a_round_are_a_state_error(changes):
    data = json.dumps({**example(), **changes}).encode()
    with pytest.raises(RendezvousStateError, match="contradicts itself"):
        decode(Document, data, "here")


def test_a_place_is_found_by_its_ticket_and_told_from_another_nodes():
    changes = {"round": 1, "size": 3, "places": "7abcd 15x___ 5ijkl"}
    document = decode(
        Document, json.dumps({**example(), **changes, **PUBLISHED[1]}).encode(), "here"
    )
    assert document.place_of(5, "ijklm") == Assigned("ijklm", 2)
    assert document.place_of(15, "x") == Assigned("x", 1)
    assert document.place_of(7, "ijklm") == Assigned("abcd", 0)
    assert document.place_of(6, "ijklm") is None


PUBLISHED: tuple[dict[str, Any], ...] = ({}, {"nonce": "n", "chunks": 1})


@pytest.mark.parametrize(
    ("changes", "full"),
    [
        ({}, False),
        ({"round": 1, "size": 3}, False),
        ({"round": 1, "size": 4}, True),
        ({"round": 1, "size": 4, "change": {"lost": 1}}, False),
    ],
)
def test_a_run_is_full_while_its_round_stands_and_has_no_room(changes, full):
    data = json.dumps({**example(), **changes, **PUBLISHED["round" in changes]}).encode()
    assert decode(Document, data, "here").full is full


# ---------------------------------------------------------------- what may follow


@given(documents | completed)
def test_a_document_follows_itself_and_every_write_on_top_of_it(document):
    assert document.follows(document)
    later = msgspec.structs.replace(document, version=document.version + 2, write="later")
    assert later.follows(document)
    assert not document.follows(later)
    assert msgspec.structs.replace(later, closed=True).follows(document)


@given(completed)
def test_a_completed_round_follows_only_lower_ones_of_a_run_that_is_open(document):
    version = document.version + 1
    higher = msgspec.structs.replace(
        document, version=version, write="w", round=document.round + 1, nonce="n"
    )
    assert higher.follows(document) is not document.closed
    lower = msgspec.structs.replace(higher, round=document.round - 1)
    assert not lower.follows(document)


@given(completed)
def test_neither_another_write_nor_another_assignment_nor_a_run_opened_again_follows(document):
    replace = msgspec.structs.replace
    assert not replace(document, write=f"{document.write}x"[:64] + "y").follows(document)
    later = replace(document, version=document.version + 1, write="later")
    assert not replace(later, nonce=f"x{document.nonce}").follows(document)
    assert not replace(later, closed=False).follows(replace(document, closed=True))


_RACE = """
import sys, threading
from rdzv.dynamic_rendezvous.document import Assigned, Member, Record, decode, encode
from rdzv.dynamic_rendezvous import roster

record = Record(kind="enter", node="n", addr="a", pid=1, local_id=0, interval=1.0, id="x")
stored = [
    (Record, encode(record)),
    (Assigned, encode(Assigned("n", 1))),
    (list[Member], encode([Member(1, 0, record)])),
    (roster._State, encode(roster._State(schema=1, write="w"))),
]
sys.setswitchinterval(1e-7)
all_here = threading.Barrier(40)

def read():
    all_here.wait()
    for kind, data in stored:
        decode(kind, data, "it")

threads = [threading.Thread(target=read) for _ in range(40)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("attempt", range(8))
def test_many_threads_may_be_the_first_to_read_something(attempt):
    # Half of all processes crashed where msgspec learnt of a type by its first use.
    done = subprocess.run(
        [sys.executable, "-c", _RACE], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
