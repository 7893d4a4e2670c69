"""A session on a real server: what the kit does not ask, since it is of this backend alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdzv.dynamic_rendezvous.backend import HELD, MAX_RECORDS, MAX_STATE_BYTES
from rdzv.errors import RendezvousConnectionError, RendezvousError, RendezvousStateError
from rdzv_etcd import seam
from rdzv_etcd import session as session_module
from rdzv_etcd.backend import EtcdRendezvousBackend
from rdzv_etcd.client import EtcdClient
from rdzv_etcd.seam import Get, prefix_end
from rdzv_etcd.server import EtcdServer
from rdzv_etcd.session import EtcdSession

from ..local_servers import LIMIT
from .groups import eventually
from .servers import KINDS, compact, program

EPOCH = "epoch"


@pytest.fixture(scope="module", params=KINDS)
def server(request) -> Iterator[EtcdServer]:
    with EtcdServer(binary=program(request.param), durable=False) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[EtcdClient]:
    with_patience = EtcdClient(server.endpoint, timeout=LIMIT)
    yield with_patience
    with_patience.close()


@pytest.fixture
def backend(client, request) -> EtcdRendezvousBackend:
    return EtcdRendezvousBackend(client, request.node.name, ttl=600)


@pytest.fixture
def opened(backend) -> Iterator[Callable[[], EtcdSession]]:
    made: list[EtcdSession] = []

    def open_session() -> EtcdSession:
        session = cast("EtcdSession", backend.open_session())
        session.attach(EPOCH)
        made.append(session)
        return session

    yield open_session
    for session in made:
        session.close()


@pytest.fixture
def session(opened: Callable[[], EtcdSession]) -> EtcdSession:
    return opened()


class Counting(EtcdClient):
    """Counts what it asks of etcd, and the keys that it is told of."""

    def __init__(self, server: EtcdServer) -> None:
        super().__init__(server.endpoint, timeout=LIMIT)
        self.calls: list[str] = []
        self.read = 0

    def _call(self, method: str, request: Any, *, repeatable: bool = False) -> Any:
        self.calls.append(method)
        answer = super()._call(method, request, repeatable=repeatable)
        if method == "Txn":
            self.read += sum(len(each.response_range.kvs) for each in answer.responses)
        elif method == "Range":
            self.read += len(answer.kvs)
        return answer


@pytest.fixture
def counting(server) -> Iterator[Counting]:
    counting = Counting(server)
    yield counting
    counting.close()


def keys(client: EtcdClient, backend: EtcdRendezvousBackend) -> list[seam.KeyValue]:
    root = backend.run.key("")
    return list(client.range(Get(root, prefix_end(root))).kvs)


# ---------------------------------------------------------------- tickets and records


def texts(session: EtcdSession, after: int) -> dict[int, bytes | None]:
    return dict(session.records(after))


def test_tickets_go_on_after_records_were_freed_by_several_leaders(opened):
    enters, one, other = opened(), opened(), opened()
    assert [enters.enter(b"%d" % n) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert one.records(0)[-1] == (6, b"6")
    one.forget(0, 2, "nonce", [])
    other.forget(2, 3, "nonce", [])
    # By one who took over and has not heard of that.
    one.forget(0, 3, "nonce", [])
    assert enters.enter(b"7") == 7
    assert texts(one, 0) == {1: b"-", 2: b"-", 3: b"-", 4: b"4", 5: b"5", 6: b"6", 7: b"7"}
    for reader in (one, other, enters):
        assert reader.records(6) == [(7, b"7")]
        assert reader.records(3) == [(n, b"%d" % n) for n in (4, 5, 6, 7)]
        assert reader.records(7) == []


def test_what_is_forgotten_behind_what_is_needed_keeps_its_place(client, backend, opened):
    session = opened()
    for n in range(1, 6):
        session.enter(b"%d" % n)
    session.forget(2, 4, "nonce", [])
    expected: dict[int, bytes | None] = {1: b"1", 2: b"2", 3: b"-", 4: b"-", 5: b"5"}
    assert texts(session, 0) == expected
    session.forget(2, 4, "nonce", [])
    assert texts(session, 0) == expected
    # Once those before it go too it goes with them.
    opened().forget(0, 2, "nonce", [])
    assert sum(b"/log/" in kv.key for kv in keys(client, backend)) == 1
    assert texts(session, 0) == {1: b"-", 2: b"-", 3: b"-", 4: b"-", 5: b"5"}
    assert session.enter(b"6") == 6
    assert session.records(5) == [(6, b"6")]


def test_leaders_who_free_at_once_free_nothing_twice(opened):
    enters, leaders = opened(), [opened() for _ in range(4)]
    for n in range(1, 301):
        enters.enter(b"%d" % n)
    threads = [
        threading.Thread(target=leader.forget, args=(0, 250 + n, "nonce", []))
        for n, leader in enumerate(leaders)
    ]
    for thread in threads:
        thread.start()
    tickets = [enters.enter(b"%d" % n) for n in range(301, 321)]
    for thread in threads:
        thread.join(LIMIT)
    assert tickets == list(range(301, 321))
    found = texts(opened(), 0)
    assert {n for n, text in found.items() if text == b"-"} == set(range(1, 254))
    assert all(found[n] == b"%d" % n for n in range(254, 321))


def test_more_records_than_fit_into_one_answer_come_in_order(client, backend, opened):
    session = opened()
    session.enter(b"1")
    for n in range(2, MAX_RECORDS + 300):
        key = backend.run.key(EPOCH, "log", f"{n * 7919 % 10_007}")
        client.put(key, b"%d" % n, backend.run.lease)
    last = session.enter(b"%d" % (MAX_RECORDS + 300))
    assert last == MAX_RECORDS + 300
    for reader in (session, opened()):
        found: list[tuple[int, bytes | None]] = []
        while more := reader.records(found[-1][0] if found else 0):
            assert len(more) <= MAX_RECORDS
            found += more
        assert found == [(n, b"%d" % n) for n in range(1, last + 1)]
    # As many that are gone.
    session.forget(0, MAX_RECORDS + 100, "nonce", [])
    assert len(session.records(0)) == MAX_RECORDS
    assert len(session.records(MAX_RECORDS)) == 300
    session.wait_records(last - 1, 1, LIMIT)


def test_many_records_are_freed_with_one_look_at_them(counting, request):
    session = EtcdRendezvousBackend(counting, request.node.name).open_session()
    session.attach(EPOCH)
    for n in range(400):
        session.enter(b"%d" % n)
    counting.read = 0
    session.forget(0, 400, "nonce", [])
    assert counting.read <= 2 * 400
    assert session.enter(b"next") == 401
    assert session.records(400) == [(401, b"next")]


def test_a_session_that_returns_to_an_epoch_waits_for_nothing_that_is_there(opened):
    waits, enters = opened(), opened()
    for epoch in ("one", "another"):
        for session in (waits, enters):
            session.attach(epoch)
        enters.enter(b"first")
        waits.wait_records(0, 1, LIMIT)
    for session in (waits, enters):
        session.attach("one")
    assert enters.enter(b"second") == 2
    waits.wait_records(1, 1, LIMIT)
    assert [ticket for ticket, _ in waits.records(0)] == [1, 2]


# ---------------------------------------------------------------- waiting


def test_a_wait_goes_on_after_what_it_waits_for_was_compacted(server, client, opened):
    waits, writes = opened(), opened()
    first = writes.swap(b"1", None)
    waits.listen(first.token)
    began = threading.Event()
    found: list[object] = []

    def wait() -> None:
        began.set()
        told = waits.wait(first.token, LIMIT)
        # It may be told nothing, and has to look then.
        found.append(told or waits.read(first.token))

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait(LIMIT)
    # Nobody talks to the server for a moment, in which this is written and compacted.
    second = writes.swap(b"2", first.token)
    compact(server, client.put(b"/other", b""))
    thread.join(LIMIT)
    assert found == [(b"2", second.token)]


def test_a_watch_that_comes_too_late_says_that_it_is_time_to_read(server, client, opened):
    waits, writes = opened(), opened()
    first = writes.swap(b"1", None)
    second = writes.swap(b"2", first.token)
    compact(server, client.put(b"/other", b""))
    assert waits.wait(first.token, LIMIT) in (None, (b"2", second.token))
    third = writes.swap(b"3", second.token)
    assert waits.wait(second.token, LIMIT) == (b"3", third.token)


def test_a_wait_for_records_counts_those_that_were_compacted(server, client, opened):
    waits, enters = opened(), opened()
    enters.enter(b"1")
    waits.records(0)
    waits.wait_records(0, 1, LIMIT)
    tickets = [enters.enter(b"%d" % n) for n in (2, 3, 4)]
    compact(server, client.put(b"/other", b""))
    waits.wait_records(tickets[0] - 1, 3, LIMIT)
    # One whose watch begins only now, where nothing is left of it.
    late = opened()
    late._arrived = (1, 1)
    late.wait_records(1, 3, LIMIT)
    assert [ticket for ticket, _ in late.records(1)] == [2, 3, 4]


def test_a_wait_for_records_counts_none_that_was_only_freed(opened):
    waits, enters = opened(), opened()
    for n in (1, 2, 3):
        enters.enter(b"%d" % n)
    waits.records(0)
    done = threading.Event()

    def wait() -> None:
        waits.wait_records(3, 1, LIMIT)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    enters.forget(1, 2, "nonce", [])
    enters.forget(0, 1, "nonce", [])
    assert not done.is_set()
    assert enters.enter(b"4") == 4
    assert done.wait(LIMIT)
    thread.join(LIMIT)
    assert waits.records(3) == [(4, b"4")]


def test_a_document_that_is_deleted_ends_a_wait_and_a_write_is_an_error(client, backend, opened):
    waits, writes = opened(), opened()
    first = writes.swap(b"1", None)
    client.delete(backend.run.key("document"))
    assert waits.wait(first.token, LIMIT) is None
    assert waits.read(first.token) is None
    with pytest.raises(RendezvousStateError, match="Start the job again on all nodes"):
        writes.swap(b"2", first.token)


# ---------------------------------------------------------------- the run's lease


def test_all_nodes_know_the_runs_lease(client, backend):
    others = EtcdRendezvousBackend(client, "another run", ttl=600).run.lease
    same = EtcdRendezvousBackend(client, backend.run.root().split("/")[-1] + "x").run.lease
    assert 0 < backend.run.lease < 1 << 63
    assert len({backend.run.lease, others, same}) == 3


def test_every_key_of_a_run_has_a_lease(client, backend, opened):
    session = opened()
    swap = session.swap(b"{}", None)
    session.swap(b"[]", swap.token)
    session.enter(b"1")
    session.enter(b"2")
    session.forget(1, 2, "nonce", [])
    session.beat(0)
    session.publish("nonce", {"1": b"piece"})
    backend.set_state(b"state")
    backend.run.probe()
    found = keys(client, backend)
    assert len(found) == 8
    assert all(kv.lease for kv in found)
    assert {kv.lease for kv in found if b"/beats/" not in kv.key} == {backend.run.lease}


def test_a_lease_of_the_run_that_is_gone_is_made_anew(client, backend, opened):
    session = opened()
    writes: list[Callable[[], object]] = [
        lambda: session.swap(b"{}", None),
        lambda: session.enter(b"1"),
        lambda: session.publish("nonce", {"1": b"piece"}),
        lambda: backend.set_state(b"state"),
        backend.run.probe,
    ]
    for write in writes:
        client.lease_revoke(backend.run.lease)
        assert keys(client, backend) == []
        write()
        assert keys(client, backend)


def test_many_who_make_the_runs_lease_at_once_make_one(client, backend, opened):
    sessions = [opened() for _ in range(8)]
    client.lease_revoke(backend.run.lease)
    tickets: list[int] = []
    threads = [
        threading.Thread(target=lambda s=session: tickets.append(s.enter(b"")))
        for session in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(tickets) == list(range(1, 9))


def test_all_keys_of_a_run_are_gone_after_its_time_to_live(client, request):
    backend = EtcdRendezvousBackend(client, request.node.name, ttl=2)
    session = backend.open_session()
    session.attach(EPOCH)
    swap = session.swap(b"{}", None)
    session.enter(b"1")
    session.publish("nonce", {"1": b"piece"})
    backend.set_state(b"state")
    backend.run.probe()
    assert len(keys(client, backend)) == 5
    eventually(lambda: not keys(client, backend), "keys are left", limit=LIMIT)
    with pytest.raises(RendezvousStateError, match="time to live was over"):
        session.swap(b"[]", swap.token)
    session.close()


def test_keys_of_a_run_live_on_while_somebody_is_alive(client, request):
    backend = EtcdRendezvousBackend(client, request.node.name, ttl=4)
    session = backend.open_session()
    session.attach(EPOCH)
    session.swap(b"{}", None)
    # As long as another lives that was made later, is longer, and that nobody renews.
    client.put(b"/other", b"", client.lease_grant(6).id)
    while client.range(Get(b"/other")).kvs:
        session.beat(0)
        time.sleep(0.05)
    assert session.read(None) is not None
    session.close()


def test_a_run_is_renewed_however_often_its_nodes_connect_anew(client, request, monkeypatch):
    backend = EtcdRendezvousBackend(client, request.node.name, ttl=8)
    renewed: list[bool] = []
    monkeypatch.setattr(backend.run, "renew", lambda: renewed.append(True))
    clock = [time.monotonic()]
    monkeypatch.setattr(session_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for _ in range(30):
        clock[0] += 0.5
        session = backend.open_session()
        session.attach(EPOCH)
        session.beat(0)
        session.close()
    assert 5 <= len(renewed) <= 15


# ---------------------------------------------------------------- a node's lease


def lease_of(session: EtcdSession, slot: int) -> int:
    """The lease under which a slot is."""
    (kv,) = session._client.range(Get(session._slot(slot))).kvs
    return kv.lease


def test_a_slot_is_held_as_long_as_its_lease_lives(client, opened):
    beats, looks = opened(), opened()
    assert looks.beats([0, 1]) == {0: 0, 1: 0}
    beats.beat(1)
    assert looks.beats([0, 1]) == {0: 0, 1: HELD}
    assert looks.beats([1]) == {1: HELD}
    every = range(7)
    assert looks.beats(every) == {slot: HELD if slot == 1 else 0 for slot in every}
    client.lease_revoke(lease_of(beats, 1))
    for slots in ([1], [0, 1], every):
        assert looks.beats(slots)[1] == 0


@pytest.mark.parametrize("slot", [3, 4])
def test_a_lease_that_ended_is_made_anew_with_the_next_beat(client, opened, slot):
    beats, looks = opened(), opened()
    beats.swap(b"{}", None)
    beats.beat(3)
    client.lease_revoke(lease_of(beats, 3))
    assert looks.beats([3]) == {3: 0}
    beats.beat(slot)
    assert looks.beats([slot]) == {slot: HELD}
    beats.beat(3)
    beats.beat(4)
    assert looks.beats([3, 4]) == {3: HELD, 4: HELD}


def test_a_beat_in_another_epoch_is_a_key_of_its_own(opened):
    beats, looks = opened(), opened()
    beats.beat(0)
    beats.attach("another")
    beats.beat(0)
    assert looks.beats([0]) == {0: HELD}
    looks.attach("another")
    assert looks.beats([0]) == {0: HELD}


def test_the_sessions_of_a_node_hold_its_slot_by_one_lease(client, opened):
    # As after an outage, when each of its threads has connected anew and beats at once.
    sessions = [opened() for _ in range(3)]
    threads = [threading.Thread(target=session.beat, args=(0,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    lease = lease_of(sessions[0], 0)
    for session in sessions:
        session.beat(0)
        assert lease_of(session, 0) == lease
        session.close()
    # Of no other is anything left that could take it along.
    assert opened().beats([0]) == {0: HELD}
    client.lease_revoke(lease)
    assert opened().beats([0]) == {0: 0}


@pytest.mark.parametrize("count", [1, 3])
def test_one_session_of_a_node_keeps_its_slot_alive_for_all(client, request, count):
    backend = EtcdRendezvousBackend(client, request.node.name, lease_ttl=2)
    sessions = [backend.open_session() for _ in range(count)]
    for session in sessions:
        session.attach(EPOCH)
        session.beat(0)
    # For longer than any lease of its others would live.
    other = client.lease_grant(3).id
    client.put(b"/other", b"", other)
    while client.range(Get(b"/other")).kvs:
        sessions[0].beat(0)
        assert sessions[0].beats([0]) == {0: HELD}
        time.sleep(0.05)
    for session in sessions:
        session.close()


def test_a_write_that_comes_late_does_not_take_the_slot_along(client, opened, monkeypatch):
    first, second = opened(), opened()
    late: list[tuple[bytes, bytes, int]] = []

    def put(key: bytes, value: bytes, lease: int = 0) -> int:
        late.append((key, value, lease))
        raise seam.TimeoutError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(client, "put", put)
        with pytest.raises(RendezvousConnectionError):
            first.beat(0)
    second.beat(0)
    ((key, value, lease),) = late
    client.put(key, value, lease)
    assert lease_of(second, 0) == lease
    second.beat(0)
    assert second.beats([0]) == {0: HELD}


def test_a_beat_is_one_request(counting, request):
    session = EtcdRendezvousBackend(counting, request.node.name).open_session()
    session.attach(EPOCH)
    session.beat(0)
    counting.calls.clear()
    for _ in range(5):
        session.beat(0)
    assert counting.calls == ["LeaseKeepAlive"] * 5
    session.close()


def test_a_node_whose_lease_ended_sees_whether_etcd_still_has_its_run(client, backend, opened):
    session = opened()
    swap = session.swap(b"{}", None)
    session.beat(0)
    client.delete(backend.run.key("document"))
    client.lease_revoke(lease_of(session, 0))
    with pytest.raises(RendezvousStateError, match="Start the job again on all nodes"):
        session.beat(0)
    assert swap.won


def test_a_node_that_beats_for_the_first_time_sees_that_revisions_began_anew(opened, monkeypatch):
    session = opened()
    swap = session.swap(b"{}", None)
    monkeypatch.setattr(session._client, "put", lambda *_: swap.token)
    with pytest.raises(RendezvousStateError, match="Start the job again on all nodes"):
        session.beat(0)


# ---------------------------------------------------------------- pieces


def test_pieces_of_thousands_of_nodes_are_published_and_freed(client, backend, opened):
    leads, reads = opened(), opened()
    names = [str(n) for n in range(5000)]
    leads.publish("nonce", {name: name.encode() * 30 for name in names})
    assert reads.fetch("nonce", names) == [name.encode() * 30 for name in names]
    assert reads.fetch("nonce", ["7", "none", "8"]) == [b"7" * 30, None, b"8" * 30]
    assert reads.fetch("another", ["7"]) == [None]
    leads.forget(0, 0, "nonce", names)
    assert keys(client, backend) == []


def test_large_pieces_are_published_in_requests_that_etcd_takes(opened):
    leads, reads = opened(), opened()
    large = bytes(MAX_STATE_BYTES // 2 - 1000)
    names = [f"roster-{n}" for n in range(7)]
    leads.publish("nonce", dict.fromkeys(names, large))
    assert reads.fetch("nonce", names) == [large] * 7


# ---------------------------------------------------------------- what cannot be


def test_a_document_that_is_too_large_is_an_error(client, backend, session):
    client.put(backend.run.key("document"), bytes(MAX_STATE_BYTES + 1))
    with pytest.raises(RendezvousStateError, match="more than the"):
        session.read(None)
    with pytest.raises(RendezvousStateError, match="more than the"):
        session.swap(b"{}", None)
    client.delete(backend.run.key("document"))
    with pytest.raises(RendezvousStateError, match="more than the"):
        session.swap(bytes(MAX_STATE_BYTES + 1), None)


def test_a_large_document_that_comes_by_a_watch_is_an_error(client, backend, opened):
    waits, writes = opened(), opened()
    first = writes.swap(b"{}", None)
    client.put(backend.run.key("document"), bytes(MAX_STATE_BYTES + 1))
    with pytest.raises(RendezvousStateError, match="more than the"):
        waits.wait(first.token, LIMIT)


@pytest.mark.parametrize(
    "freed", [b"", b"x", b"-1", b"1.5", b"9" * 18, b"9" * 10_000, b"\xff", b"+1"]
)
def test_a_count_that_is_none_is_an_error(client, backend, opened, freed):
    session = opened()
    session.enter(b"1")
    client.put(backend.run.key(EPOCH, "freed"), freed)
    for call in (
        lambda: session.enter(b"2"),
        lambda: session.records(0),
        lambda: opened().wait_records(0, 9, 0.0),
        lambda: session.forget(0, 1, "nonce", []),
    ):
        with pytest.raises(RendezvousStateError, match=r"freed.*holds no number.*another run id"):
            call()


def test_a_count_that_is_too_large_takes_no_time(client, backend, session):
    session.enter(b"1")
    client.put(backend.run.key(EPOCH, "freed"), b"9999999")
    assert len(session.records(0)) == MAX_RECORDS
    assert session.records(9_999_999) == [(10_000_000, b"1")]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(
        ["document", "state", "probe", "epoch/freed", "epoch/log/x", "epoch/beats/0",
         "epoch/beats/x", "epoch/pieces/nonce/1", "epoch", "epoch/log"]
    ),
    st.binary(max_size=40) | st.sampled_from([b"7", b"-", b"{}", bytes(1 << 20)]),
)  # fmt: skip
def test_any_bytes_in_any_key_are_handed_on_or_an_error_of_state(client, backend, name, data):
    client.delete(backend.run.key(""), prefix_end(backend.run.key("")))
    client.put(backend.run.key(*name.split("/")), data)
    session = backend.open_session()
    session.attach(EPOCH)
    for call in (
        lambda: session.read(None),
        lambda: session.swap(b"{}", None),
        lambda: session.enter(b"record"),
        lambda: session.records(0),
        lambda: session.wait_records(0, 1, 0.0),
        lambda: session.beat(0),
        lambda: session.beats([0, 1, 2, 3, 4]),
        lambda: session.publish("nonce", {"1": b"piece"}),
        lambda: session.fetch("nonce", ["1"]),
        lambda: session.forget(0, 2, "nonce", ["1"]),
        backend.get_state,
        lambda: backend.set_state(b"state"),
        backend.run.probe,
    ):
        refused = _is_refused(call)
        assert not refused or name in ("document", "state", "epoch/freed")
    session.close()


def _is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except RendezvousStateError:
        return True
    return False


# ---------------------------------------------------------------- closing


@pytest.mark.parametrize("which", ["wait", "wait_records"])
def test_a_close_ends_a_wait_of_another_thread(opened, which):
    session = opened()
    swap = session.swap(b"{}", None)
    ended: list[BaseException | None] = []
    began = threading.Event()

    def wait() -> None:
        began.set()
        try:
            if which == "wait":
                session.wait(swap.token, 10 * LIMIT)
            else:
                session.wait_records(0, 1, 10 * LIMIT)
        except RendezvousError as exc:
            ended.append(exc)
        else:
            ended.append(None)

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait(LIMIT)
    session.close()
    session.close()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert isinstance(ended[0], RendezvousConnectionError)


def test_a_closed_session_does_nothing_more(opened):
    session = opened()
    swap = session.swap(b"{}", None)
    session.close()
    for call in (
        lambda: session.read(None),
        lambda: session.wait(swap.token, LIMIT),
        lambda: session.wait_records(0, 1, LIMIT),
        lambda: session.beat(0),
        lambda: session.records(0),
        lambda: session.swap(b"[]", swap.token),
        lambda: session.enter(b""),
        lambda: session.publish("nonce", {"1": b""}),
    ):
        with pytest.raises(RendezvousConnectionError, match="closed"):
            call()
    assert opened().read(None) == (b"{}", swap.token)


def test_a_close_waits_for_no_server_that_does_not_answer(request):
    with EtcdServer(durable=False) as frozen:
        slow = EtcdClient(frozen.endpoint, timeout=2 * LIMIT)
        session = EtcdRendezvousBackend(slow, request.node.name).open_session()
        session.read(None)
        frozen.pause()
        asked = threading.Event()

        def listen() -> None:
            asked.set()
            with contextlib.suppress(RendezvousError):
                session.listen(None)

        thread = threading.Thread(target=listen)
        thread.start()
        asked.wait(LIMIT)
        closing = threading.Thread(target=session.close)
        closing.start()
        closing.join(LIMIT / 2)
        assert not closing.is_alive(), "close() hangs"
        frozen.resume()
        thread.join(2 * LIMIT)
        slow.close()
