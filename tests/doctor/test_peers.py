"""Two doctors: on two machines with a network and a firewall between them, and on one."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from rdzv.doctor.node import Listener
from rdzv.doctor.peer import Peers
from rdzv.dynamic_rendezvous.backend import RendezvousBackend
from rdzv.errors import RendezvousStateError

from .examining import told, two_machines

PORT = 29555
KNOWN = {"peer.reached", "peer.reaches", "peer.left"}


def both(one, two, *more: str):
    """The doctors of two machines, of which the first hosts the store."""
    common = ["--backend=c10d", f"--endpoint={one.address}:29400", "--run-id=job", "--peer"]
    common += ["--limit=2", "--wait=30", "--tries=3", f"--port={PORT}"]
    doctors = [one.doctor(*common, "--host"), two.doctor(*common)]
    return [told(doctor) for doctor in doctors]


def test_two_machines_that_reach_each_other_say_so():
    with two_machines() as (one, two):
        for (code, found), other in zip(both(one, two), (two, one), strict=True):
            assert code == 0, found.text
            assert f"{other.address}:{PORT}" in found["peer.reached"].seen
            assert "peer.reaches" in found


def test_a_firewall_that_lets_one_reach_the_other_and_not_back_is_found_by_both():
    with two_machines() as (one, two):
        two.drops(PORT)
        (code, first), (other_code, second) = both(one, two)
    assert code == other_code == 1
    assert first.errors == ["peer.unreached"]
    assert two.address in first["peer.unreached"].seen
    assert "within 2 s" in first["peer.unreached"].seen
    assert "peer.reaches" in first
    assert second.errors == ["peer.cut-off"]
    assert "firewall" in second["peer.cut-off"].remedy
    assert "peer.reached" in second


# ---------------------------------------------------------------- on one machine


class Memory(RendezvousBackend):
    """A state in memory."""

    name = "memory"

    def __init__(self, state: bytes | None = None) -> None:
        self._lock = threading.Lock()
        self.state, self.version = state, 1 if state else 0

    def get_state(self):
        return None if self.state is None else (self.state, self.version)

    def set_state(self, state, token=None):
        with self._lock:
            won = (token or 0) == self.version
            if won:
                self.state, self.version = state, self.version + 1
            return self.state, self.version, won


def meets(backend, *, address: str = "127.0.0.1", patience: float = 30.0) -> tuple[list[str], bool]:
    listener = Listener()
    peers = Peers(backend, address, listener, 2.0, patience)
    try:
        found = [each.id for each in peers.meet()]
        return found, peers.leave(last=False)
    finally:
        listener.close()


def test_nobody_else_is_an_error_and_leaves_nothing():
    backend = Memory()
    assert meets(backend, patience=0.3) == (["peer.none"], True)
    assert json.loads(backend.state or b"") == {"doctors": {}}


def test_what_a_killed_doctor_left_is_nobody():
    listener = Listener()
    backend = Memory()
    killed = Peers(backend, "127.0.0.1", listener, 2.0, 0.0)
    killed._change()
    assert meets(backend, patience=0.5)[0] == ["peer.none"]
    listener.close()


def three_meet() -> list[tuple[list[str], bool]]:
    backend, start = Memory(), threading.Barrier(3)

    def come(_: int) -> tuple[list[str], bool]:
        start.wait(10)
        return meets(backend, patience=5.0)

    with ThreadPoolExecutor(3) as threads:
        return list(threads.map(come, range(3)))


def test_three_doctors_meet_and_the_last_one_has_to_clean_up():
    came = three_meet()
    if any(found == ["peer.none"] for found, _ in came):
        # Somebody was held up until the others had left.
        came = three_meet()
    for found, _ in came:
        # Who has come late may meet one that is about to leave.
        assert {"peer.reached", "peer.reaches"} <= set(found) <= KNOWN
    assert any(last for _, last in came)


@pytest.mark.parametrize(
    "state",
    [
        b"\x00not json",
        b'{"doctors": 3}',
        b'{"doctors": {"x": {"host": "h", "address": "a", "port": 0, "word": ""}}}',
        msgspec.json.encode({"doctors": {str(n): {} for n in range(100)}}),
        b"[" * (1 << 20) + b"[",
    ],
)
def test_what_doctors_did_not_write_is_refused(state):
    with pytest.raises(RendezvousStateError):
        meets(Memory(state), patience=0.1)
