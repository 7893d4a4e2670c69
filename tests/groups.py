"""The nodes of a run, each with threads and connections of its own, and what they come to."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, cast

from rdzv import RendezvousHandler, RendezvousParameters, get_rendezvous_handler
from rdzv.dynamic_rendezvous import DynamicRendezvousHandler
from rdzv.errors import RendezvousError, RendezvousStateError

from .local_servers import LIMIT, eventually

Place = tuple[int, int, int]
"""Round, rank and world size."""


class Group:
    """The nodes of one run; a subclass says on what.

    Args:
        endpoint: Where they find the store.
        settings: Their settings, where they are not those of all tests.
    """

    backend: ClassVar[str]
    usual: ClassVar[dict[str, Any]]
    """The settings of all tests on that backend, beside those of all."""

    def __init__(self, endpoint: str, **settings: Any) -> None:
        self.endpoint = endpoint
        self.run_id = uuid.uuid4().hex
        everywhere = {"local_addr": "127.0.0.1", "last_call_timeout": 0.3, "read_timeout": 2}
        self.settings: dict[str, Any] = {**everywhere, **self.usual, **settings}
        self.handlers: list[RendezvousHandler] = []

    def parameters(self, least: int, most: int, **settings: Any) -> RendezvousParameters:
        given = {**self.settings, **settings}
        return RendezvousParameters(self.backend, self.endpoint, self.run_id, least, most, **given)

    def add(self, count: int, least: int, most: int, **settings: Any) -> list[RendezvousHandler]:
        made = [
            get_rendezvous_handler(self.parameters(least, most, **settings)) for _ in range(count)
        ]
        self.handlers += made
        return made

    def formed(self, count: int, least: int, most: int) -> list[RendezvousHandler]:
        """So many new nodes, in a round."""
        # Where fewer would do, the others have time to come, however late their threads begin.
        patient = {"last_call_timeout": 2} if count > least else {}
        handlers = self.add(count, least, most, **patient)
        assert_one_group(places(joining(*handlers)), count)
        return handlers

    def shutdown(self) -> None:
        threads = [threading.Thread(target=one.shutdown, daemon=True) for one in self.handlers]
        for thread in threads:
            thread.start()
        for thread in threads:
            # It has the run's close_timeout for what it has to say.
            thread.join(2 * LIMIT)
            assert not thread.is_alive(), "shutdown() hangs"


def joining(*handlers: RendezvousHandler) -> list[Future[Place]]:
    """Have them join at once; each ends with its place or with its error."""

    def join(handler: RendezvousHandler, future: Future[Place]) -> None:
        try:
            info = handler.next_rendezvous()
        except Exception as exc:  # noqa: BLE001 - the test looks at it.
            future.set_exception(exc)
        else:
            number = cast("DynamicRendezvousHandler", handler).round
            future.set_result((number, info.rank, info.world_size))

    futures: list[Future[Place]] = [Future() for _ in handlers]
    for handler, future in zip(handlers, futures, strict=True):
        threading.Thread(target=join, args=(handler, future), daemon=True).start()
    return futures


def places(futures: Iterable[Future[Place]]) -> list[Place]:
    return [future.result(2 * LIMIT) for future in futures]


def assert_one_group(found: Sequence[Place], size: int) -> int:
    """They are all nodes of one round, which is returned."""
    assert {(number, world) for number, _, world in found} == {(found[0][0], size)}
    assert sorted(rank for _, rank, _ in found) == list(range(size))
    return found[0][0]


def settled(handlers: Sequence[RendezvousHandler], futures: Sequence[Future[Place]]) -> int:
    """Act as torch's agents, which join again when told to, until all nodes are in one round.

    Those who are told that the state was lost are not in it. Of one round there is one group.

    Returns:
        The round, or 0 where nobody is in one.
    """
    going = list(futures)
    ended: set[int] = set()
    seen: dict[int, dict[int, int]] = {}

    def all_are() -> bool:
        numbers, busy = set(), False
        for node, handler in enumerate(handlers):
            if node in ended:
                continue
            if not going[node].done():
                busy = True
                continue
            try:
                number, rank, _ = going[node].result()
                waiting = handler.num_nodes_waiting()
            except RendezvousStateError:
                ended.add(node)
                continue
            assert seen.setdefault(number, {}).setdefault(rank, node) == node
            numbers.add(number)
            if waiting:
                going[node] = joining(handler)[0]
                busy = True
        return not busy and len(numbers) <= 1

    eventually(all_are, "the nodes do not come to one round", 2 * LIMIT)
    left = [one for node, one in enumerate(going) if node not in ended]
    return assert_one_group(places(left), len(left)) if left else 0


def refuses(handler: RendezvousHandler, error: type[RendezvousError]) -> bool:
    """Whether a node has learnt of an error."""
    try:
        handler.num_nodes_waiting()
    except error:
        return True
    return False
