"""Sessions: tickets and records, beats, pieces and the document, as ``Session`` describes them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rdzv.dynamic_rendezvous.backend import HELD
from rdzv.testing.linearizability import Operation, contradiction

from .base import Contract, require
from .deployment import NotOfferedError
from .harness import background, each, eventually, finished, is_connection_error

if TYPE_CHECKING:
    from rdzv.dynamic_rendezvous import Session, Swap, Token

    from .harness import Run

__all__ = ["RosterContract"]

_GONE = b"-"


def _won(session: Session, document: bytes, token: Token | None) -> Swap:
    swap = session.swap(document, token)
    require(swap.won, f"swap with the newest token ({token!r}) did not win: {swap}")
    require(swap.document == document, f"swap won, and returned another document: {swap}")
    return swap


def _has_lost(session: Session, document: bytes, token: Token | None, what: str) -> Swap:
    swap = session.swap(document, token)
    require(not swap.won, f"swap with {what} was told that it won")
    return swap


class RosterContract(Contract):
    """A roster, beats and pieces of their own, beside the document."""

    group = "roster"

    # ------------------------------------------------------------ the document

    def test_the_document_is_replaced_by_its_token(self, run: Run) -> None:
        """A swap wins with the newest token alone; one that lost is told what was stored."""
        one, two = run.sessions(2)
        require(one.read(None) is None, "a new run has a document")
        first = _won(one, b"first", None)
        late = _has_lost(two, b"late", None, "no token where there is a document")
        require(late.document == b"first", f"the swap that lost was told of {late.document!r}")
        second = _won(two, b"second", late.token)
        _has_lost(one, b"stale", first.token, "a stale token")
        require(two.read(second.token) == (b"second", second.token), "the newest is not read")
        found = one.read(first.token)
        require(
            found is not None and found[0] == b"second",
            f"read(known) is to give what is newer than known; it gave {found}",
        )

    def test_the_same_document_again_is_a_new_version(self, run: Run) -> None:
        """Equal documents are different versions: one writer wins, and old tokens stay stale."""
        one, two = run.sessions(2)
        first = _won(one, b"A", None)
        again = _won(two, b"A", two.read(None)[1])  # type: ignore[index]  # there is one
        _has_lost(one, b"A", first.token, "the token of an equal, older document")
        token = _won(one, b"B", again.token).token
        last = _won(two, b"A", token)
        _has_lost(one, b"C", again.token, "the token of the first A, after A, B, A")
        for _ in range(10):
            swaps = each(
                [(one, last.token), (two, last.token)],
                lambda pair: pair[0].swap(b"same", pair[1]),
                run.limit,
                "swap",
            )
            told = [swap.won for swap in swaps]
            require(sorted(told) == [False, True], f"two that wrote the same were told: {told}")
            last = swaps[told.index(True)]

    def test_many_swaps_are_linearizable(self, run: Run) -> None:
        """The swaps that won, of many at once, are a chain: one after another, none lost."""
        sessions = run.sessions(12)
        base = _won(sessions[0], b"base", None)
        began = Operation("base", 0.0, 0.0, b"base", None, b"base", True)

        def write(numbered: tuple[int, Session]) -> list[Operation]:
            number, session = numbered
            history: list[Operation] = []
            known = (b"base", base.token)
            while len(history) < 4:
                new = b"%d, %d" % (number, len(history))
                at = time.monotonic()
                swap = session.swap(new, known[1])
                if swap.won:
                    done = time.monotonic()
                    history.append(Operation(f"{number}", at, done, new, known[0], new, True))
                known = swap.document, swap.token
            return history

        histories = each(enumerate(sessions), write, run.limit, "12 writers")
        every = [began, *(one for history in histories for one in history)]
        stuck = contradiction(every)
        if stuck is not None:
            shown = "; ".join(str(one) for one in stuck[:6])
            require(False, f"no order explains who won. Next would be: {shown}")

    # ------------------------------------------------------------ tickets

    def test_tickets_count_from_one(self, run: Run) -> None:
        """Records get the tickets 1, 2, 3, … and are read by all, in order."""
        one, two = run.sessions(2)
        require(one.records(0) == [], "a new epoch has records")
        given = [b'{"kind": "enter"}', "ü€".encode(), b"x" * 4000]
        tickets = [
            session.enter(data) for session, data in zip((one, two, one), given, strict=True)
        ]
        require(tickets == [1, 2, 3], f"the first three tickets are {tickets}")
        for session in (one, two, run.session()):
            expected = list(enumerate(given, 1))
            require(session.records(0) == expected, f"records(0) is {session.records(0)}")
            require(session.records(2) == expected[2:], f"records(2) is {session.records(2)}")
            require(session.records(3) == [], f"records(3) is {session.records(3)}")

    def test_many_arrivals_at_once_each_have_a_ticket(self, run: Run) -> None:
        """Of many that enter at once each gets a ticket of its own, and none is left out."""
        sessions, times = run.sessions(16), 4

        def enter(numbered: tuple[int, Session]) -> list[tuple[int, bytes]]:
            number, session = numbered
            records = [b"%d.%d" % (number, step) for step in range(times)]
            return [(session.enter(data), data) for data in records]

        arrived = each(enumerate(sessions), enter, run.limit, "16 nodes that enter")
        every = sorted(pair for pairs in arrived for pair in pairs)
        tickets = [ticket for ticket, _ in every]
        require(tickets == list(range(1, 16 * times + 1)), f"the tickets are {tickets}")
        require(sessions[0].records(0) == every, "records(0) is not what was entered, in order")

    def test_a_ticket_without_a_record_is_a_hole(self, run: Run) -> None:
        """A ticket whose record has not come is read as None, and holds nobody up."""
        run.needs("roster")
        if run.deployment.atomic_enter:
            raise NotOfferedError("A ticket and its record are one write (atomic_enter).")
        take = run.deployment.out_of_band("take_ticket")
        one, two = run.sessions(2)
        one.enter(b"first")
        hole = take(run.id, "epoch")
        require(hole == 2, f"the deployment's take_ticket took {hole}; the next ticket was 2")
        require(one.enter(b"third") == 3, "the ticket after a hole is not 3")
        expected = [(1, b"first"), (2, None), (3, b"third")]
        found = run.soon(lambda: two.records(0), "records(0) with a hole")
        require(found == expected, f"records(0) is {found}")
        two.bury(2)
        found = one.records(0)
        require(found[1] == (2, _GONE), f"after the hole was buried, records(0) is {found}")

    def test_a_grave_refuses_a_late_record(self, run: Run) -> None:
        """A record that comes after its ticket was buried or forgotten takes another ticket."""
        leader, late = run.sessions(2)
        leader.enter(b"first")
        leader.bury(2)
        ticket = late.enter(b"late")
        leader.forget(0, ticket + 2, "none", [])
        later = late.enter(b"later")
        require(later > ticket, f"the ticket {later} was given after {ticket}")
        found = dict(leader.records(0))
        require(found.get(later) == b"later", f"the record {later} is not there: {found}")
        others = {found.get(number) for number in range(1, later)}
        require(others <= {_GONE}, f"what was buried or forgotten is not b'-': {found}")

    def test_burying_spares_a_record_that_has_come(self, run: Run) -> None:
        """To bury a ticket that has its record changes nothing."""
        one, two = run.sessions(2)
        one.enter(b"first")
        one.enter(b"second")
        two.bury(2)
        two.bury(1)
        found = one.records(0)
        require(found == [(1, b"first"), (2, b"second")], f"after that, records(0) is {found}")

    def test_what_is_forgotten_is_gone_for_good(self, run: Run) -> None:
        """Forgotten records are read as b"-", their pieces as None; tickets never return."""
        one, two = run.sessions(2)
        for number in range(1, 5):
            one.enter(b"%d" % number)
        one.publish("old", {"1": b"a", "2": b"b"})
        one.publish("new", {"1": b"c"})
        one.forget(0, 2, "old", ["1", "2", "never there"])
        expected = [(1, _GONE), (2, _GONE), (3, b"3"), (4, b"4")]
        require(two.records(0) == expected, f"records(0) is {two.records(0)}")
        require(two.records(2) == expected[2:], f"records(2) is {two.records(2)}")
        require(two.fetch("old", ["1", "2"]) == [None, None], "forgotten pieces are still there")
        require(two.fetch("new", ["1"]) == [b"c"], "pieces of another nonce are gone")
        one.forget(2, 4, "new", ["1"])
        require(one.enter(b"5") == 5, "after all were forgotten the next ticket is not 5")
        require(two.records(4) == [(5, b"5")], f"records(4) is {two.records(4)}")

    def test_a_wait_for_records_ends_with_the_last(self, run: Run) -> None:
        """Who waits for records is woken by the last of them, or when its time is up."""
        waits, enters = run.sessions(2)
        run.soon(lambda: waits.wait_records(0, 1, 0.05), "a wait of 0.05 s")
        for count, burst in ((1, 1), (3, 3)):
            after = len(enters.records(0))
            waiting = background(
                lambda after=after, count=count: waits.wait_records(after, count, 10 * run.limit)  # type: ignore[misc]
            )
            for _ in range(burst):
                enters.enter(b"x")
            finished(waiting, run.limit, "a wait for records that have come")
        run.soon(lambda: waits.wait_records(0, 2, 10 * run.limit), "a wait for what is there")
        began, times = time.monotonic(), 0
        while time.monotonic() - began < 0.75:
            waits.wait_records(4, 1, 0.25)
            times += 1
        require(times < 50, f"waits of 0.25 s for records that do not come returned {times} times")

    # ------------------------------------------------------------ beats

    def test_every_beat_changes_a_number(self, run: Run) -> None:
        """A slot's number is 0 before its first beat, and every beat changes it, alone.

        Of a store that keeps leases, only the first one does, and says that there is a lease.
        """
        one, two = run.sessions(2)
        slots = [0, 1, 2, 3, 8, 9, 10, 17, 18, 64, 1000]
        require(set(two.beats(slots).values()) == {0}, "a slot has a number before any beat")
        for slot in slots:
            before = dict(two.beats(slots))
            one.beat(slot)
            after = dict(two.beats(slots))
            require(set(after) == set(slots), f"beats() of {slots} has {sorted(after)}")
            changed = [other for other in slots if after[other] != before[other]]
            require(changed == [slot], f"a beat of slot {slot} changed the numbers of {changed}")
        last, neighbours = two.beats([3])[3], dict(two.beats([2, 4]))
        leased = last == HELD
        for step in range(300):
            (one if step % 100 else two).beat(3)
            now = two.beats([3])[3]
            require(leased or now != last, f"beat {step} of slot 3 left its number at {now}")
            last = now
        beside = two.beats([2, 4])
        # Nobody renews the lease of slot 2 meanwhile, which may end; slot 4 has none.
        same = beside == neighbours or (leased and beside == {**neighbours, 2: 0})
        require(same, "beats of slot 3 changed the slots beside it")

    def test_what_comes_along_with_a_beat_is_true(self, run: Run) -> None:
        """The counters that come along with a beat are those that beats() has."""
        one, two = run.sessions(2)
        for slot in range(6):
            for _ in range(slot + 1):
                two.beat(slot)
        along = {slot: number for slot, number in one.beat(3).items() if slot != 3}
        found = two.beats(sorted(along)) if along else {}
        require(found == along, f"a beat brought {along} along, and beats() has {found}")

    def test_beats_at_once_are_all_counted(self, run: Run) -> None:
        """Nodes that beat at once never undo each other's beats."""
        sessions = run.sessions(10)
        observer = run.session()
        before = dict(observer.beats(range(10)))
        for _ in range(5):
            each(enumerate(sessions), lambda pair: pair[1].beat(pair[0]), run.limit, "ten nodes")
            now = dict(observer.beats(range(10)))
            silent = [slot for slot in range(10) if now[slot] == before[slot] != HELD]
            require(not silent, f"all beat at once, and the numbers of {silent} did not change")
            before = now

    # ------------------------------------------------------------ pieces

    def test_pieces_are_read_as_published(self, run: Run) -> None:
        """Pieces are read by name under their nonce, in the order asked for; others are None."""
        one, two = run.sessions(2)
        pieces = {"1": b'{"rank": 0}', "roster-0": b"[" + b"1," * 40_000 + b"1]"}
        pieces |= {str(number): b"%d" % number for number in range(2, 200)}
        one.publish("nonce", pieces)
        names = ["roster-0", "1", "199", "200", "1"]
        found = two.fetch("nonce", names)
        require(found == [pieces.get(name) for name in names], "fetch() gives other pieces")
        require(two.fetch("other", ["1"]) == [None], "a piece is found under another nonce")
        require(two.fetch("nonce", []) == [], "fetch() of nothing gives something")

    def test_pieces_are_there_before_the_document_that_names_them(self, run: Run) -> None:
        """Who reads a document reads what the same session published before it was written."""
        leader, other = run.sessions(2)
        token = _won(leader, b"0", None).token
        for number in range(1, 26):
            nonce = f"nonce-{number}"
            before = other.read(token)

            def look(
                nonce: str = nonce, token: Token = token, before: object = before
            ) -> list[bytes | None]:
                eventually(lambda: other.read(token) != before, run.limit, "a newer document")
                return other.fetch(nonce, ["1", "2"])

            looking = background(look)
            leader.publish(nonce, {"1": b"x", "2": b"y" * 2000})
            token = _won(leader, b"%d" % number, token).token
            found = finished(looking, run.limit, "a reader")
            missing = [name for name, piece in zip("12", found, strict=True) if piece is None]
            require(not missing, f"the document is there, the pieces {missing} are not")

    # ------------------------------------------------------------ sessions

    def test_epochs_see_nothing_of_each_other(self, run: Run) -> None:
        """Below another epoch there are no records, beats or pieces, and tickets begin at 1."""
        one, two = run.session("epoch-1"), run.session("epoch-2")
        one.swap(b"document", None)
        one.enter(b"first")
        one.beat(1)
        one.publish("nonce", {"1": b"x"})
        require(two.records(0) == [], f"records(0) is {two.records(0)}")
        require(two.beats([1]) == {1: 0}, f"beats([1]) is {two.beats([1])}")
        require(two.fetch("nonce", ["1"]) == [None], "a piece of another epoch is there")
        require(two.enter(b"other") == 1, "the first ticket of the epoch is not 1")
        require(one.records(0) == [(1, b"first")], f"the first epoch's records: {one.records(0)}")
        found = two.read(None)
        require(found is not None and found[0] == b"document", "the document depends on the epoch")
        two.attach("epoch-1")
        require(two.records(0) == [(1, b"first")], f"attached to it: {two.records(0)}")

    def test_a_session_is_closed_at_any_time(self, run: Run) -> None:
        """Closing never raises: twice, by another thread, or while a wait is under way."""
        waits, other = run.sessions(2)
        token = _won(other, b"first", None).token
        waiting = background(lambda: waits.wait(token, 10 * run.limit))
        for _ in range(2):
            run.soon(waits.close, "close() while another thread waits")
        _won(other, b"second", token)
        try:
            finished(waiting, run.limit, "a wait on a session that was closed, after a change")
        except Exception as exc:
            if not is_connection_error(exc):
                raise
        require(other.enter(b"x") == 1, "another session cannot go on")

    def test_a_wait_for_records_holds_nobody_else_up(self, run: Run) -> None:
        """While one session of a node waits for records, its others beat and write."""
        client = run.client()
        waits, acts = (run.session(backend=client) for _ in range(2))
        waiting = background(lambda: waits.wait_records(0, 1, 10 * run.limit))
        for _ in range(5):
            run.soon(lambda: acts.beat(1), "a beat while another session waits")
        run.soon(lambda: acts.enter(b"x"), "a record while another session waits")
        finished(waiting, run.limit, "a wait for a record that has come")
