"""A session on a real TCPStore: what wakes whom, and how nodes share one number."""

from __future__ import annotations

import threading

import pytest
from torch.distributed import TCPStore

from rdzv import RendezvousStateError
from rdzv_c10d.session import StoreSession

LIMIT = 30.0


@pytest.fixture
def server():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def open_session(server) -> StoreSession:
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    session = StoreSession(client, "run", "the store", pushes=True)
    session.attach("epoch")
    return session


def test_looking_for_a_newer_document_wakes_nobody_who_waits_for_one(server):
    writer, waiter = open_session(server), open_session(server)
    first = writer.swap(b"one", None)
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(waiter.wait(first.token, LIMIT)))
    waiting.start()
    for _ in range(20):
        assert writer.read(first.token) == (b"one", first.token)
    second = writer.swap(b"two", first.token)
    waiting.join(LIMIT)
    # Somebody who had been woken for nothing would have come back with nothing.
    assert found == [(b"two", second.token)]


def test_nine_slots_share_a_number_and_never_spill_into_each_other(server):
    sessions = [open_session(server) for _ in range(9)]
    before = sessions[0].beats(range(9))
    for step in range(1500):
        slot = step * 5 % 9
        after = sessions[slot].beat(slot)
        assert after[slot] != before[slot]
        assert {s: n for s, n in after.items() if s != slot} == {
            s: n for s, n in before.items() if s != slot
        }
        before = after


@pytest.mark.parametrize("behind", [1, 2, 3])
def test_a_beat_whose_answer_was_lost_disturbs_no_neighbour(server, behind):
    session, other = open_session(server), open_session(server)
    neighbour = other.beat(4)[4]
    for step in range(300):
        if step % 50 == 0:
            # Beats that took effect although this session never heard of it.
            for _ in range(behind):
                other._keys.add(other._group(0), 1 << (7 * 3))
        counts = session.beat(3)
        assert counts[4] == neighbour
        assert counts[2] == 0


def test_two_slots_that_a_node_beats_in_by_turns_do_not_spill_over(server):
    session = open_session(server)
    neighbours = session.beat(3)
    for _ in range(300):
        counts = {**session.beat(1), **session.beat(2)}
    assert max(counts.values()) < 128
    assert {slot: n for slot, n in counts.items() if slot not in (1, 2)} == {
        slot: n for slot, n in neighbours.items() if slot not in (1, 2)
    }


def test_two_sessions_of_one_node_that_beat_by_turns_do_not_spill_over(server):
    one, two = open_session(server), open_session(server)
    neighbours = one.beat(5)
    for _ in range(300):
        one.beat(4)
        counts = two.beat(4)
    assert {slot: n for slot, n in counts.items() if slot != 4} == {
        slot: n for slot, n in neighbours.items() if slot != 4
    }


@pytest.mark.parametrize("number", [-5, 10**8])
def test_a_counter_that_counts_no_tickets_is_a_state_error(server, number):
    session = open_session(server)
    session._keys.add("rdzv/run/epoch/tickets", number)
    with pytest.raises(RendezvousStateError, match="no number of tickets"):
        session.enter(b"record")
    with pytest.raises(RendezvousStateError, match="no number of tickets"):
        session.records(0)


def test_a_new_session_of_a_node_goes_on_where_the_old_one_was(server):
    for _ in range(40):
        session = open_session(server)
        seen = [session.beat(8)[8] for _ in range(5)]
        assert len(set(seen)) == 5
    assert session.beats([7, 9]) == {7: 0, 9: 0}


def test_the_counters_of_many_nodes_are_read_together(server):
    session = open_session(server)
    for slot in (1, 9, 18, 200):
        session.beat(slot)
    assert session.beats([1, 2, 9, 18, 200]) == {1: 1, 2: 0, 9: 1, 18: 1, 200: 1}


def test_a_record_that_comes_after_its_ticket_was_buried_takes_another_one(server):
    leader, late = open_session(server), open_session(server)
    ticket = leader._keys.add("rdzv/run/epoch/tickets", 1)
    leader.bury(ticket)
    assert leader.records(0) == [(1, b"-")]
    leader._keys.add("rdzv/run/epoch/tickets", -1)
    assert late.enter(b"late") == 2
    assert leader.records(0) == [(1, b"-"), (2, b"late")]


def test_a_document_is_found_although_the_hint_that_follows_its_write_was_lost(server):
    writer, reader = open_session(server), open_session(server)
    first = writer.swap(b"one", None)
    server.delete_key("rdzv/run/document/hint")
    assert reader.read(None) == (b"one", first.token)
    second = writer.swap(b"two", first.token)
    third = writer.swap(b"three", second.token)
    server.delete_key("rdzv/run/document/hint")
    assert reader.read(second.token) == (b"three", third.token)
    assert reader.read(None) == (b"two", second.token)  # Old, and a step on the way.
