"""What a backend must offer, and what it may offer beyond that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "HELD",
    "MAX_RECORDS",
    "MAX_STATE_BYTES",
    "MAX_TICKETS",
    "RendezvousBackend",
    "Session",
    "SessionBackend",
    "Swap",
    "Token",
    "WatchingBackend",
    "capabilities_of",
]

Token = Any
"""An opaque fencing token: it names one version of the shared state."""

HELD = -1
"""The number of a slot whose node holds a lease at this moment, in :meth:`.Session.beats`."""

MAX_RECORDS = 4096
"""As many records at least are in one answer of :meth:`Session.records`, if there are more."""

MAX_TICKETS = 10**7
"""No run gives out as many tickets: a number above it was not written by rdzv."""

MAX_STATE_BYTES = 1 << 20
"""Nothing larger than this is parsed, whatever a store holds (bytes)."""


class RendezvousBackend(ABC):
    """Holds the shared state of one run behind a compare-and-set.

    This is torch's own interface: a backend written for torch runs under rdzv
    as it is, and the other way round. A backend that offers no more than this
    is served with the roster inside the state (see ``roster.py``), which is
    meant for tens of nodes.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the backend."""

    @abstractmethod
    def get_state(self) -> tuple[bytes, Token] | None:
        """Read the state.

        Returns:
            The state and its fencing token, or ``None`` where there is none yet.

        Raises:
            RendezvousConnectionError: The backend cannot be reached.
            RendezvousStateError: What the backend holds is not a state.
        """

    @abstractmethod
    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """Write the state if it is still the one that ``token`` names.

        Args:
            state: The new state.
            token: The token of the state to replace; ``None`` creates the state
                only where there is none.

        Returns:
            The state that is stored now, its token, and whether it was this
            call that stored it; ``None`` where nothing is stored.

        Raises:
            RendezvousConnectionError: The backend cannot be reached; whether
                the write took effect is unknown.
            RendezvousStateError: What the backend holds is not a state.
        """


class WatchingBackend(RendezvousBackend):
    """A backend of get and set that can also say when the state has changed."""

    @abstractmethod
    def wait_state(self, token: Token, timeout: float) -> None:
        """Return once the state may no longer be the one that ``token`` names.

        Waits for ``timeout`` seconds at most. It is called by threads that do
        nothing else, while others call the other methods. Returning for nothing
        does no harm; a change that was missed is found later, by reading.

        Raises:
            RendezvousConnectionError: The backend cannot be reached.
        """


@dataclass(frozen=True)
class Swap:
    """The outcome of one compare-and-set: who won, and what is stored now."""

    won: bool
    document: bytes
    token: Token
    failovers: int = 0
    """How often the store may have lost acknowledged writes of this run since it began.

    A session of a store that can fail over refuses the first swap after each, and says so by
    this number: the rounds that follow are numbered above all that may have been lost.
    """


class Session(ABC):
    """One connection to the shared state of one run, used by one thread at a time.

    The document is the run's small shared state. The *roster* is a log that
    only grows: each arrival, return and departure of a node is one record under
    the next ticket. Both are kept apart from the nodes' beats, so that a sign of
    life never contends with an arrival. All but :meth:`read`, :meth:`swap` and
    :meth:`wait` work below the epoch given to :meth:`attach`.

    Every method raises ``RendezvousConnectionError`` where the store cannot be
    reached (the outcome of a write is then unknown) and ``RendezvousStateError``
    where it holds what cannot be. Bytes are handed back as they were read.
    """

    @abstractmethod
    def read(self, known: Token | None) -> tuple[bytes, Token] | None:
        """The document and its token, or ``None`` where there is none.

        ``known`` is the newest token that the caller has seen: what is returned
        is not older, and newer where there is a newer one. What a session has told of
        the store, it also reads from then on: who sees a document finds what was
        published before it.
        """

    @abstractmethod
    def swap(self, document: bytes, token: Token | None) -> Swap:
        """Replace the document named by ``token`` (``None``: create it), atomically.

        Exactly one of several writers with one token is told that it won. One that lost is
        told of a version that was stored after the one that ``token`` names; it need not
        be the newest any more. Where there is none although ``token`` names one, the
        store has lost it: ``RendezvousStateError``.
        """

    def listen(self, known: Token | None) -> None:  # noqa: B027 - not every store has to
        """Get ready to wait: this session is the one that does, and its first wait is to be quick.

        ``known`` is the newest token that the caller has seen by now, ``None`` for none.
        """

    @abstractmethod
    def wait(self, token: Token, timeout: float) -> tuple[bytes, Token] | None:
        """Return once the document may differ from ``token``, or after ``timeout`` seconds.

        Returns:
            A newer document and its token, where the store sent it along; ``None``
            says no more than that it is time to read.
        """

    @abstractmethod
    def attach(self, epoch: str) -> None:
        """Work below ``epoch`` from now on, a random name of this life of the run."""

    @abstractmethod
    def enter(self, record: bytes) -> int:
        """Append ``record`` to the roster; returns its ticket (1, 2, 3, …)."""

    @abstractmethod
    def records(self, after: int) -> list[tuple[int, bytes | None]]:
        """The records with a ticket above ``after``, in order: all, or the first ``MAX_RECORDS``.

        ``None`` stands for a ticket that was given out and whose record has not
        come. A record that was buried or forgotten is ``b"-"``.
        """

    @abstractmethod
    def wait_records(self, after: int, count: int, timeout: float) -> None:
        """Return once ticket ``after + count`` has a record, or after ``timeout`` seconds."""

    @abstractmethod
    def bury(self, ticket: int) -> None:
        """Fill the hole at ``ticket``, so that a record that comes late is refused."""

    @abstractmethod
    def beat(self, slot: int) -> Mapping[int, int]:
        """Give a sign of life of the node in ``slot``.

        A slot belongs to one node for the life of the run; slots count up from 0.

        Returns:
            Counters of other slots, as :meth:`beats` has them, that came along
            with the answer: a look that costs nothing. Empty where none did.
        """

    @abstractmethod
    def beats(self, slots: Sequence[int]) -> Mapping[int, int]:
        """A number for each of ``slots`` that changes with every beat (0 where none came).

        A store that keeps leases says :data:`.HELD` instead for as long as the lease lives that
        the last beat renewed, and 0 when it has ended: that is the node's end.
        """

    @abstractmethod
    def publish(self, nonce: str, pieces: Mapping[str, bytes]) -> None:
        """Store ``pieces`` under ``nonce``, in effect before any later :meth:`swap` here."""

    @abstractmethod
    def fetch(self, nonce: str, names: Sequence[str]) -> list[bytes | None]:
        """The pieces published under ``nonce``, ``None`` for one that is not there."""

    @abstractmethod
    def forget(self, after: int, upto: int, nonce: str, names: Sequence[str]) -> None:
        """Free the records in ``(after, upto]`` and the pieces ``names`` of ``nonce``.

        A forgotten ticket must still refuse a record that comes late. ``upto`` may lie beyond the
        newest ticket.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection. Never raises, may be called from any thread."""


class SessionBackend(RendezvousBackend):
    """A backend that keeps roster, beats and document apart, and so serves thousands."""

    @abstractmethod
    def open_session(self) -> Session:
        """Open an independent connection to this run.

        Raises:
            RendezvousConnectionError: The store cannot be reached.
        """

    def set_liveness(self, interval: float, attempts: int) -> None:
        """Learn how soon a death is to be noticed; called before the first session is opened.

        Args:
            interval: Seconds from one beat of a node to its next.
            attempts: How many of them in a row have to be missed before it counts as lost.

        Raises:
            ValueError: The store cannot keep that, with what it can.
        """

    @property
    def is_host(self) -> bool:
        """Whether this process hosts the store, so that its end is everybody's."""
        return False


def capabilities_of(backend: RendezvousBackend) -> frozenset[str]:
    """What a backend offers beyond get and set, as its class says.

    ``"watch"``: changes are waited for instead of being looked for;
    ``"roster"``: the roster is kept apart from the document, in sessions, which
    can all be waited on.
    """
    if isinstance(backend, SessionBackend):
        return frozenset({"roster", "watch"})
    return frozenset({"watch"} if isinstance(backend, WatchingBackend) else ())
