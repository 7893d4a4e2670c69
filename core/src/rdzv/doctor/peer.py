"""Two doctors on two machines find each other through the backend and connect to each other.

Each enters itself in the state of a run made for that, with the address that its node would give
to the others; looks for others whose entries change, connects to each, and enters what came of
it. Who leaves last removes everything.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import msgspec

from rdzv.diagnosis import Finding
from rdzv.dynamic_rendezvous.backend import MAX_STATE_BYTES, RendezvousBackend
from rdzv.errors import RendezvousStateError
from rdzv.options import written_host

from .bounded import LateError, reason, within
from .node import PORTS, Listener, greet
from .ports import why_not

__all__ = ["Peers", "peer_run"]

_PAUSE = 0.2
"""Seconds between two looks at the state."""

_LOST = 5.0
"""Seconds after which an entry that does not change is taken for one that was left behind."""

_MOST = 64
"""Nodes that are looked at, at most."""

_SWAPS = 50
"""How often a change is tried against those of others."""

_Text = Annotated[str, msgspec.Meta(max_length=300)]


class _Result(msgspec.Struct):
    """What came of a connection: ``"open"`` or why not, and the system's words."""

    outcome: _Text
    text: _Text = ""


class _Entry(msgspec.Struct):
    """One doctor, by what it knows of itself.

    ``beat`` counts up; ``reached`` says of others, by their names in the state, whether they can
    be reached from there; ``leaving``: it has seen all that it waits for.
    """

    host: _Text
    address: _Text
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    word: _Text
    beat: int = 0
    reached: dict[_Text, _Result] = msgspec.field(default_factory=dict)
    leaving: bool = False


class _State(msgspec.Struct):
    doctors: Annotated[dict[_Text, _Entry], msgspec.Meta(max_length=_MOST)] = msgspec.field(
        default_factory=dict
    )


def peer_run(run_id: str) -> str:
    """The id of the run in which the doctors of a run find each other."""
    return f"rdzv-doctor-{run_id}"


@dataclass
class Peers:
    """One doctor's part in it.

    Args:
        backend: The backend of the run of :func:`peer_run`.
        address: What this node would give to the others.
        listener: Listens on this machine.
        limit: Seconds that one connection, and one operation, may take.
        patience: Seconds to wait for another doctor.
    """

    backend: RendezvousBackend
    address: str
    listener: Listener
    limit: float
    patience: float
    _name: str = field(default_factory=lambda: uuid.uuid4().hex)
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of others: their newest beat, and when it was seen first."""
    _alive: dict[str, _Entry] = field(default_factory=dict)
    """Others whose beats were seen to change, by their newest entries."""
    _now: dict[str, _Entry] = field(default_factory=dict)
    """The others in the newest state."""

    def __post_init__(self) -> None:
        self._me = _Entry(
            socket.gethostname()[:300], self.address, self.listener.port, self.listener.word
        )

    def meet(self) -> Iterator[Finding]:
        """Look for others and connect to them.

        Raises:
            RendezvousError: The backend does not work.
            LateError: It does not answer.
        """
        until = time.monotonic() + self.patience
        self._wait(until, lambda: bool(self._here()))
        if not self._here():
            yield Finding(
                "peer.none",
                "error",
                f"No other doctor of this run came within {self.patience:g} s.",
                "Run the same command with --peer on another node at the same time; endpoint, "
                "--run-id and the prefix among the settings have to be the same.",
            )
        peers: dict[str, _Entry] = {}
        # The others may have more than this one to try.
        until = time.monotonic() + 4 * self.limit + _LOST
        while new := {name: peer for name, peer in self._here().items() if name not in peers}:
            for name, peer in new.items():
                result, took = self._connect(peer)
                self._me.reached[name] = result
                yield _outward(peer, result, took, self.limit)
            peers.update(new)
            self._wait(
                until, lambda: self._answered(peers) or bool(self._here().keys() - peers.keys())
            )
        for name, peer in peers.items():
            last = self._alive.get(name, peer)
            yield _inward(self._me, last, last.reached.get(self._name))

    def leave(self, *, last: bool) -> bool:
        """Take back the own entry, once the others have read it; whether it was the last one.

        Args:
            last: Whether to wait until the others have left, because the store is this process's.
        """
        self._me.leaving = True
        met = set(self._me.reached)

        def read() -> bool:
            those = [entry for name, entry in self._now.items() if name in met]
            return not those if last else all(entry.leaving for entry in those)

        self._wait(time.monotonic() + self.limit + _LOST, read)
        return not self._change(remove=True).doctors

    def _here(self) -> dict[str, _Entry]:
        """Others that are alive and not about to leave."""
        return {
            name: entry
            for name, entry in self._alive.items()
            if name in self._now and not entry.leaving
        }

    def _answered(self, peers: dict[str, _Entry]) -> bool:
        return all(
            self._name in self._alive[name].reached or name not in self._now for name in peers
        )

    def _wait(self, until: float, over: Callable[[], bool]) -> None:
        pause = threading.Event()
        while True:
            self._me.beat += 1
            self._look(self._change())
            if over() or time.monotonic() > until:
                # So that the others have it, too.
                self._change()
                return
            pause.wait(_PAUSE)

    def _look(self, state: _State) -> None:
        now = time.monotonic()
        self._now = {name: one for name, one in state.doctors.items() if name != self._name}
        for name, entry in self._now.items():
            beat, since = self._seen.get(name, (entry.beat, now))
            if entry.beat != beat:
                since = now
            if entry.beat != beat or name in self._alive:
                self._alive[name] = entry
            self._seen[name] = (entry.beat, since)

    def _change(self, *, remove: bool = False) -> _State:
        """Bring the own entry into the state, or take it out, along with dead ones."""
        for _ in range(_SWAPS):
            found = within(self.limit, self.backend.get_state)
            state = _decoded(found[0]) if found else _State()
            now = time.monotonic()
            for name, (beat, since) in self._seen.items():
                entry = state.doctors.get(name)
                if entry is not None and entry.beat == beat and now - since > _LOST:
                    del state.doctors[name]
            state.doctors.pop(self._name, None)
            if not remove:
                if len(state.doctors) >= _MOST:
                    raise RendezvousStateError(f"{_MOST} doctors are there already; try later.")
                state.doctors[self._name] = self._me
            encoded, token = msgspec.json.encode(state), found[1] if found else None
            done = within(self.limit, partial(self.backend.set_state, encoded, token))
            if done is not None and done[2]:
                return state
        raise RendezvousStateError("The state is changed by others all the time.")

    def _connect(self, peer: _Entry) -> tuple[_Result, float]:
        began = time.monotonic()
        try:
            word = within(2 * self.limit, lambda: greet(peer.address, peer.port, self.limit))
        except (OSError, LateError) as exc:
            text = reason(exc)
            outcome = "unresolved" if isinstance(exc, socket.gaierror) else why_not(exc)
            return _Result(outcome, text[:300]), 0.0
        took = time.monotonic() - began
        return _Result("open" if word == peer.word else "other"), took


def _decoded(data: bytes) -> _State:
    if len(data) > MAX_STATE_BYTES:
        raise RendezvousStateError(f"A state of {len(data)} bytes was not written by doctors.")
    try:
        return msgspec.json.decode(data, type=_State)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RendezvousStateError(f"What is stored was not written by doctors: {exc}") from exc


_WHY = {
    "refused": "is refused",
    "timeout": "is not answered",
    "unreachable": "finds no route",
    "unresolved": "fails, since the name does not resolve there",
    "other": "comes to something else than that node's doctor",
}


def _why(result: _Result) -> str:
    told = f" ({result.text})" if result.text and result.outcome != "timeout" else ""
    return _WHY.get(result.outcome, "fails") + told


def _outward(peer: _Entry, result: _Result, took: float, limit: float) -> Finding:
    where = f"{written_host([(peer.address, peer.port)])} of the node {peer.host}"
    if result.outcome == "open":
        text = f"This node reaches {where} ({took * 1000:.1f} ms)."
        return Finding("peer.reached", "ok", text)
    within_ = f" within {limit:g} s" if result.outcome == "timeout" else ""
    return Finding(
        "peer.unreached",
        "error",
        f"This node does not reach {where}: the connection {_why(result)}{within_}.",
        f"On {peer.host} see whether {peer.address} is the address by which this node reaches it "
        "(else give --local-addr there), and let its firewall, and what is between the two, pass "
        f"what this node sends: to {PORTS}.",
    )


def _inward(me: _Entry, peer: _Entry, result: _Result | None) -> Finding:
    mine = written_host([(me.address, me.port)])
    if result is None and peer.leaving:
        return Finding(
            "peer.left",
            "note",
            f"The doctor of the node {peer.host} had met others and left: whether it reaches "
            f"{mine} was not checked.",
        )
    if result is None:
        return Finding(
            "peer.silent",
            "error",
            f"The doctor of the node {peer.host} left without saying whether it reaches {mine}.",
            "Run both again at the same time, and do not end one before the other.",
        )
    if result.outcome == "open":
        return Finding("peer.reaches", "ok", f"The node {peer.host} reaches {mine} of this one.")
    return Finding(
        "peer.cut-off",
        "error",
        f"The node {peer.host} does not reach {mine} of this one: there the connection "
        f"{_why(result)}.",
        f"See whether {me.address} is the address by which {peer.host} reaches this node (else "
        "give --local-addr here), and let this node's firewall, and what is between the two, pass "
        f"what comes in: to {PORTS}.",
    )
