"""For each contract test a backend that is wrong in one way, and what the kit is to say of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from rdzv.errors import RendezvousConnectionError
from rdzv.testing import memory
from rdzv.testing.memory import (
    MemoryBackend,
    MemoryServer,
    MemorySession,
    RosterMemoryBackend,
    WatchingMemoryBackend,
)

LIMIT = 2.0
"""Seconds after which what does not happen on a wrong backend is taken for not happening."""


@dataclass
class Wrong:
    """A wrong backend.

    Args:
        kind: Its class.
        says: A part of what the contract test has to say, or several with "or" between them.
        server: The class of its server.
        capabilities: What its spec declares, where that is not what its class says.
    """

    kind: type[MemoryBackend]
    says: str
    server: type[MemoryServer] = MemoryServer
    capabilities: frozenset[str] | None = None

    def deployment(self):
        return memory.deployment(
            self.kind, server=self.server(), capabilities=self.capabilities, limit=LIMIT
        )


WRONG: dict[str, Wrong] = {}


def wrong(test: str, says: str, **fields: Any):
    """Register a backend class, or one made of a session class, as wrong for a test."""

    def register(cls):
        kind = cls
        if issubclass(cls, MemorySession):
            kind = type(cls.__name__, (RosterMemoryBackend,), {"open_session": _opens(cls)})
        WRONG[f"test_{test}"] = Wrong(kind, says, **fields)
        return cls

    return register


def _opens(session: type[MemorySession]):
    return lambda self: session(self.server, self.run_id)


def unlocked(operation):
    """Make a change of shared state out of two requests."""
    time.sleep(0.003)
    return operation()


# ---------------------------------------------------------------- get and set


@wrong("nothing_before_the_first_write", "returned a state")
class EmptyBytesForNothing(MemoryBackend):
    def get_state(self):
        return super().get_state() or (b"", "v0")


@wrong("what_is_written_is_read_by_all", "is read")
class StripsBlanks(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        return found and (found[0].strip(), found[1])


@wrong("the_largest_state_is_kept", "reads other bytes")
class KeepsTheBeginning(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        return found and (found[0][: 1 << 16], found[1])


@wrong("the_out_of_band_view_agrees", "nothing of it is in the store")
class WritesElsewhere(MemoryBackend):
    def __init__(self, server, run_id):
        super().__init__(server, f"{run_id}-cache")


@wrong("without_a_token_a_write_only_creates", "no token where a state is stored was told")
class OverwritesWithoutToken(MemoryBackend):
    def set_state(self, state, token=None):
        if token is None:
            token = (self.get_state() or (None, None))[1]
        return super().set_state(state, token)


@wrong("a_token_wins_once", "a stale token was told that it won")
class TakesAnyToken(MemoryBackend):
    def set_state(self, state, token=None):
        found = self.get_state()
        return super().set_state(state, token and found and found[1])


@wrong("a_token_of_a_read_wins", "did not win")
class ReadsAnotherToken(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        return found and (found[0], f"read-{found[1]}")


@wrong("a_foreign_token_loses", "where nothing is stored was told that it won")
class CreatesWithAnyToken(MemoryBackend):
    def set_state(self, state, token=None):
        return super().set_state(state, token if self.get_state() else None)


@wrong("a_token_of_the_wrong_type_loses", "raised TypeError")
class TrustsTypes(MemoryBackend):
    def set_state(self, state, token=None):
        return super().set_state(state, None if token is None else "v" + token[1:])


@wrong("the_same_bytes_again_are_a_new_version", "the first A, after A, B, A was told")
class TokensAreHashes(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        return found and (found[0], hashlib.sha256(found[0]).hexdigest())

    def set_state(self, state, token=None):
        with self.server.changed:
            found = MemoryBackend.get_state(self)
            named = found and hashlib.sha256(found[0]).hexdigest()
            result = super().set_state(state, found[1] if found and token == named else token)
            return result and (*self.get_state(), result[2])


@wrong("of_two_that_write_the_same_bytes_one_wins", "they were told: [True, True]")
class ComparesBytes(MemoryBackend):
    def set_state(self, state, token=None):
        result = super().set_state(state, token)
        return result and (*result[:2], result[0] == state)


@wrong("many_writers_are_linearizable", "no order of the operations")
class ReadsThenWrites(MemoryBackend):
    def set_state(self, state, token=None):
        found = self.get_state()
        if token != (found and found[1]):
            return found and (*found, False)
        unlocked(lambda: None)
        found = self.get_state()
        return super().set_state(state, found and found[1])


# ---------------------------------------------------------------- capabilities


@wrong(
    "what_is_declared_is_implemented",
    "declares ['watch'], which",
    capabilities=frozenset({"watch"}),
)
class DeclaresTooMuch(MemoryBackend):
    pass


@wrong(
    "what_is_implemented_is_declared",
    "offers ['watch'], which",
    capabilities=frozenset(),
)
class DeclaresTooLittle(WatchingMemoryBackend):
    pass


@wrong("a_change_by_another_wakes_who_waits", "was to end took longer")
class SleepsThroughChanges(WatchingMemoryBackend):
    def wait_state(self, token, timeout):
        threading.Event().wait(timeout)


@wrong("a_wait_for_what_has_changed_already_ends", "with a stale token took longer")
class WaitsForTheNextChange(WatchingMemoryBackend):
    def wait_state(self, token, timeout):
        found = self.get_state()
        super().wait_state(found and found[1], timeout)


@wrong("a_wait_ends_with_its_time", "times in 1 s")
class NeverWaits(WatchingMemoryBackend):
    def wait_state(self, token, timeout):
        pass


@wrong("a_wait_holds_nobody_else_up", "while one of its threads waits took longer")
class OneCallAtATime(WatchingMemoryBackend):
    def __init__(self, server, run_id):
        super().__init__(server, run_id)
        self.lock = threading.Lock()

    def get_state(self):
        with self.lock:
            return super().get_state()

    def wait_state(self, token, timeout):
        with self.lock:
            super().wait_state(token, timeout)


# ---------------------------------------------------------------- sessions


@wrong("the_document_is_replaced_by_its_token", "a stale token was told that it won")
class SwapsWithAnyToken(MemorySession):
    def swap(self, document, token):
        found = self.read(None)
        return super().swap(document, token and found and found[1])


@wrong("the_same_document_again_is_a_new_version", "an equal, older document was told")
class DocumentTokensAreHashes(MemorySession):
    def read(self, known):
        found = super().read(known)
        return found and (found[0], hashlib.sha256(found[0]).hexdigest())

    def swap(self, document, token):
        with self.connection.server.changed:
            found = MemorySession.read(self, None)
            named = found and hashlib.sha256(found[0]).hexdigest()
            swap = super().swap(document, found[1] if found and token == named else token)
            return type(swap)(swap.won, *self.read(None))


@wrong("many_swaps_are_linearizable", "no order explains who won")
class ReadsThenSwaps(MemorySession):
    def swap(self, document, token):
        found = self.read(None)
        if token != (found and found[1]):
            return super().swap(document, token)
        unlocked(lambda: None)
        found = self.read(None)
        return super().swap(document, found and found[1])


@wrong("tickets_count_from_one", "the first three tickets are [0, 1, 2]")
class CountsFromZero(MemorySession):
    def enter(self, record):
        return super().enter(record) - 1


@wrong("many_arrivals_at_once_each_have_a_ticket", "the tickets are")
class ReadsThenTakesATicket(MemorySession):
    def enter(self, record):
        ticket = self.request(lambda epoch: epoch.tickets) + 1

        def change(epoch):
            epoch.tickets = ticket
            epoch.records[ticket] = record
            return ticket

        return unlocked(lambda: self.request(change))


@wrong("a_ticket_without_a_record_is_a_hole", "records(0) is")
class LeavesHolesOut(MemorySession):
    def records(self, after):
        return [line for line in super().records(after) if line[1] is not None]


@wrong("a_grave_refuses_a_late_record", "is not there")
class LosesRecordsInGraves(MemorySession):
    def enter(self, record):
        def change(epoch):
            epoch.tickets += 1
            epoch.records.setdefault(epoch.tickets, record)
            return epoch.tickets

        return self.request(change, writes=True)


@wrong("burying_spares_a_record_that_has_come", "after that, records(0) is")
class BuriesTheLiving(MemorySession):
    def bury(self, ticket):
        self.request(lambda epoch: epoch.records.update({ticket: b"-"}))


@wrong("what_is_forgotten_is_gone_for_good", "records(0) is")
class ForgetsThatItForgot(MemorySession):
    def forget(self, after, upto, nonce, names):
        def change(epoch):
            epoch.records = {t: r for t, r in epoch.records.items() if not after < t <= upto}

        self.request(change)


@wrong("a_wait_for_records_ends_with_the_last", "that have come took longer")
class SleepsThroughRecords(MemorySession):
    def wait_records(self, after, count, timeout):
        threading.Event().wait(timeout)


@wrong("every_beat_changes_a_number", "left its number at")
class BeatsSaturate(MemorySession):
    def beats(self, slots):
        return {slot: min(100, number) for slot, number in super().beats(slots).items()}


@wrong("what_comes_along_with_a_beat_is_true", "along, and beats() has")
class BringsAlongAnotherNumber(MemorySession):
    def beat(self, slot):
        return {slot: number + 1 for slot, number in super().beat(slot).items()}


@wrong("beats_at_once_are_all_counted", "did not change")
class WritesAllBeatsBack(MemorySession):
    def beat(self, slot):
        counts = self.request(lambda epoch: dict(epoch.beats))
        counts[slot] = counts.get(slot, 0) + 1
        unlocked(lambda: self.request(lambda epoch: epoch.beats.update(counts)))
        return {}


@wrong("pieces_are_read_as_published", "gives other pieces")
class NothingIsEmpty(MemorySession):
    def fetch(self, nonce, names):
        return [piece or b"" for piece in super().fetch(nonce, names)]


@wrong("pieces_are_there_before_the_document_that_names_them", "are not")
class PublishesLater(MemorySession):
    def publish(self, nonce, pieces):
        threading.Timer(0.1, super().publish, (nonce, pieces)).start()


@wrong("epochs_see_nothing_of_each_other", "records(0) is")
class IgnoresEpochs(MemorySession):
    def attach(self, epoch):
        pass


@wrong("a_session_is_closed_at_any_time", "closed twice")
class ClosesOnce(MemorySession):
    def close(self):
        if self.connection.closed:
            raise RuntimeError("closed twice")
        super().close()


@wrong("a_wait_for_records_holds_nobody_else_up", "a beat while another session waits took longer")
class OneSessionAtATime(RosterMemoryBackend):
    def open_session(self):
        lock = self.__dict__.setdefault("lock", threading.RLock())

        class Locked(MemorySession):
            def beat(self, slot):
                with lock:
                    return super().beat(slot)

            def wait_records(self, after, count, timeout):
                with lock:
                    super().wait_records(after, count, timeout)

        return Locked(self.server, self.run_id)


# ---------------------------------------------------------------- rounds


class EachItsOwnStore(MemoryServer):
    def store(self):
        self._store = None
        return super().store()


@wrong("nodes_form_a_round", "is not shared", server=EachItsOwnStore)
class SharesNoStore(MemoryBackend):
    pass


@wrong("the_next_round_follows", "is full or No round of the run")
class RunsFull(MemoryBackend):
    def __init__(self, server, run_id):
        super().__init__(server, run_id)
        self.writes = 0

    def set_state(self, state, token=None):
        self.writes += 1
        if self.writes > 8:
            raise ValueError("The disk is full.")
        return super().set_state(state, token)


@wrong("an_elastic_round_completes_after_the_last_call", "No round of the run")
class LeavesTheLastOut(MemorySession):
    def records(self, after):
        return super().records(after)[:-1]


@wrong("a_newcomer_waits_for_the_next_round", "a new round is due")
class TellsNoChange(MemorySession):
    def wait(self, token, timeout):
        def changed(stored):
            found = stored.document.read()
            return found[1] != token and b'"change"' not in found[0]

        self.connection.wait(changed, timeout)


@wrong("a_spare_takes_the_place_of_one_who_leaves", "a new round is due")
class LosesDepartures(MemorySession):
    def enter(self, record):
        return 10**6 if b'"leave"' in record else super().enter(record)


_ticks = itertools.count()


class BeatsForTheDead(MemorySession):
    def beats(self, slots):
        return {slot: next(_ticks) for slot in slots}

    def beat(self, slot):
        super().beat(slot)
        return {}


wrong("a_dead_leader_is_replaced", "a new round is due")(BeatsForTheDead)
wrong("a_zombie_is_fenced", "a new round is due")(BeatsForTheDead)


@wrong("a_closed_run_stays_closed", "has stored something else")
class CannotClose(MemorySession):
    def swap(self, document, token):
        document = document.replace(b'"closed":true', b'"closed":false')
        return super().swap(document, token)


# ---------------------------------------------------------------- trouble


class RaisesWhatItGets(MemoryBackend):
    def get_state(self):
        return self._raw(super().get_state)

    def set_state(self, state, token=None):
        return self._raw(lambda: MemoryBackend.set_state(self, state, token))

    def _raw(self, call):
        try:
            return call()
        except RendezvousConnectionError as exc:
            raise BrokenPipeError(str(exc)) from exc

    def __init__(self, server, run_id):
        self._raw(lambda: super(RaisesWhatItGets, self).__init__(server, run_id))


wrong("a_server_that_is_gone_is_a_connection_error", "raised BrokenPipeError")(RaisesWhatItGets)
wrong("an_outage_harms_no_round", "cannot be reached")(RaisesWhatItGets)


class ForgetsInAnOutage(MemoryServer):
    def cut(self):
        super().cut()
        self.runs.clear()


@wrong(
    "what_was_stored_is_there_after_an_outage", "get_state returned None", server=ForgetsInAnOutage
)
class LosesItsMemory(MemoryBackend):
    pass


@wrong("writes_take_effect_once_whatever_breaks", "no order of the operations")
class RepeatsWrites(MemoryBackend):
    writes = itertools.count()

    def set_state(self, state, token=None):
        # As one would that sends again what broke, also where nothing has.
        if next(self.writes) % 10 == 0:
            super().set_state(state, token)
        return super().set_state(state, token)


@wrong("a_slow_server_harms_no_round", "No round of the run")
class HasNoPatience(MemoryBackend):
    def get_state(self):
        began = time.monotonic()
        found = super().get_state()
        if time.monotonic() - began > 0.04:
            raise RendezvousConnectionError("The server is too slow.")
        return found


class NeverFreezes(MemoryServer):
    def freeze(self):
        pass


@wrong(
    "a_silent_server_holds_no_call_up_for_ever",
    "succeeded while the server answered nothing",
    server=NeverFreezes,
)
class AnswersItself(MemoryBackend):
    pass


@wrong("bytes_that_are_no_state_are_a_state_error", "raised JSONDecodeError")
class ParsesBlindly(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        if found is not None:
            json.loads(found[0].decode(errors="replace"))
        return found


@wrong("a_state_that_is_damaged_later_is_a_state_error", "No round of the run")
class HidesDamage(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        good = self.server.__dict__.setdefault("good", {})
        if found is not None and found[0].startswith(b"{"):
            good[self.run_id] = found
        return good.get(self.run_id)

    def set_state(self, state, token=None):
        result = super().set_state(state, token)
        return result if result is None or result[2] else (*self.get_state(), False)


@wrong("more_than_1_mib_is_never_parsed", "RecursionError")
class ParsesWhatItWrites(MemoryBackend):
    def set_state(self, state, token=None):
        json.loads(state)
        return super().set_state(state, token)


# ---------------------------------------------------------------- runs


@wrong("runs_with_similar_names_are_apart", "has a state")
class TrimsNames(MemoryBackend):
    def __init__(self, server, run_id):
        super().__init__(server, run_id.strip().lower())


@wrong("rounds_of_many_runs_are_apart", "")
class OneRunForAll(MemoryBackend):
    def __init__(self, server, run_id):
        super().__init__(server, "run")


@wrong("no_connection_outlives_its_node", "all connections of nodes that have left are closed")
class NeverDisconnects(MemoryBackend):
    kept: list[Any] = []  # noqa: RUF012 - shared by all on purpose

    def __init__(self, server, run_id):
        super().__init__(server, run_id)
        self.kept.append(self.connection)


class NeverForgets(MemoryServer):
    def _left(self, run_id):
        self._clients[run_id] -= 1


@wrong("nothing_is_left_of_a_run_that_is_over", "the store keeps", server=NeverForgets)
class LeavesAllBehind(MemoryBackend):
    pass
