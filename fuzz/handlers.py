"""A target for few examples: the whole handler, threads and all, over a hostile backend."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import HashStore

from fuzz.stored import Holder, check_message, state, within
from rdzv import DynamicRendezvousHandler, RendezvousTimeout
from rdzv.errors import RendezvousError

if TYPE_CHECKING:
    from fuzz.source import Source
    from rdzv.dynamic_rendezvous.backend import Token

__all__ = ["handler"]


class _Hostile(Holder):
    """Holds another state after every few calls."""

    def __init__(self, states: list[tuple[int, bytes]]) -> None:
        super().__init__(None)
        self._states = states
        self._calls = 0

    def _next(self) -> None:
        self._calls += 1
        if self._states and self._calls >= self._states[0][0]:
            self._calls = 0
            self.replace(self._states.pop(0)[1])

    def get_state(self) -> tuple[bytes, Token] | None:
        self._next()
        return super().get_state()

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        self._next()
        return super().set_state(state, token)


def handler(source: Source) -> None:
    """Every call of a handler ends in time, with a result or a rendezvous error."""
    backend = _Hostile([(source.number(1, 30), state(source)) for _ in source.times(3)])
    node = DynamicRendezvousHandler.from_backend(
        "run",
        HashStore(),
        backend,
        1,
        2,
        local_addr="127.0.0.1",
        timeout=RendezvousTimeout(*[timedelta(seconds=0.1)] * 4),
        keep_alive_interval=0.05,
        patience=0.5,
    )
    calls = (node.next_rendezvous, node.num_nodes_waiting, node.is_closed, node.set_closed)
    try:
        for call in [node.next_rendezvous, source.pick(calls)]:
            try:
                within(call)
            except RendezvousError as exc:
                check_message(exc)
    finally:
        within(node.leave)
