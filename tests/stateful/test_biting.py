"""The state machines find what is wrong: a wrong backend each, and each is caught."""

from __future__ import annotations

import pytest
from hypothesis import Phase

from rdzv.dynamic_rendezvous.backend import Swap
from rdzv.testing.memory import MemoryBackend, MemoryServer, MemorySession
from rdzv.testing.stateful import backend_machine, check, session_machine


class SuccessFromEqualBytes(MemoryBackend):
    def set_state(self, state, token=None):
        answer = super().set_state(state, token)
        return answer and (*answer[:2], answer[0] == state)


class TokenFromTheBytes(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        return found and (found[0], hash(found[0]))

    def set_state(self, state, token=None):
        real = super().get_state()
        if real is not None and token == hash(real[0]):
            token = real[1]
        answer = super().set_state(state, token)
        return answer and (answer[0], hash(answer[0]), answer[2])


class NoTokenOverwrites(MemoryBackend):
    def set_state(self, state, token=None):
        found = super().get_state()
        return super().set_state(state, found[1] if found and token is None else token)


class AnyTokenCreates(MemoryBackend):
    def set_state(self, state, token=None):
        return super().set_state(state, token if super().get_state() else None)


class LoserIsToldItsOwnBytes(MemoryBackend):
    def set_state(self, state, token=None):
        answer = super().set_state(state, token)
        return answer and (state, *answer[1:])


class ReadsWhatItReadBefore(MemoryBackend):
    kept = None

    def get_state(self):
        self.kept = self.kept or super().get_state()
        return self.kept


class BytesThroughText(MemoryBackend):
    def set_state(self, state, token=None):
        return super().set_state(state.decode(errors="replace").encode(), token)


class EmptyIsNothing(MemoryBackend):
    def get_state(self):
        found = super().get_state()
        return found if found and found[0] else None


@pytest.mark.parametrize(
    "kind",
    [
        *(SuccessFromEqualBytes, TokenFromTheBytes, NoTokenOverwrites, AnyTokenCreates),
        *(LoserIsToldItsOwnBytes, ReadsWhatItReadBefore, BytesThroughText, EmptyIsNothing),
    ],
)
def test_a_wrong_backend_is_caught(kind):
    def new_run():
        server = MemoryServer()
        keep = kind(server, "run")
        return lambda: kind(keep.server, "run")

    caught(backend_machine(new_run))


def caught(machine) -> None:
    with pytest.raises(AssertionError):
        # It ends with the first failure. Which examples there are depends on what else is imported.
        check(machine, examples=2000, phases=[Phase.generate], report_multiple_bugs=False)


class SwapFromEqualBytes(MemorySession):
    def swap(self, document, token):
        found = super().swap(document, token)
        return Swap(found.document == document, found.document, found.token)


class NoTokenSwaps(MemorySession):
    def swap(self, document, token):
        found = super().read(None)
        return super().swap(document, found[1] if found and token is None else token)


class ReadsAgainWhatItKnows(MemorySession):
    kept = None

    def read(self, known):
        if known is None or self.kept is None or self.kept[1] != known:
            self.kept = super().read(known)
        return self.kept


class WaitBringsWhatIsKnown(MemorySession):
    def wait(self, token, timeout):
        super().wait(token, timeout)
        return self.read(token)


class TicketsAreCountedByEach(MemorySession):
    count = 0

    def enter(self, record):
        self.count += 1
        super().enter(record)
        return self.count


class LogOneTooFar(MemorySession):
    def records(self, after):
        return super().records(after + 1 if after else 0)


class BuryOverwrites(MemorySession):
    def bury(self, ticket):
        self.request(lambda epoch: epoch.records.update({ticket: b"-"}))


class ForgottenIsAHole(MemorySession):
    def forget(self, after, upto, nonce, names):
        super().forget(after, upto, nonce, names)
        self.request(lambda epoch: [epoch.records.pop(t) for t in range(after + 1, upto + 1)])


class ForgetsAllBefore(MemorySession):
    def forget(self, after, upto, nonce, names):
        super().forget(0, upto, nonce, names)


class ForgetsTheWholeNonce(MemorySession):
    def forget(self, after, upto, nonce, names):
        super().forget(after, upto, nonce, ["1", "2", "roster-0"])


class BeatsStopAtTheirLargest(MemorySession):
    def beats(self, slots):
        return {slot: min(count, 127) for slot, count in super().beats(slots).items()}

    def beat(self, slot):
        return {slot: min(count, 127) for slot, count in super().beat(slot).items()}


class BeatsSpillOver(MemorySession):
    def beat(self, slot):
        along = super().beat(slot)
        if along[slot] % 128 == 0:
            self.request(lambda epoch: epoch.beats.update({slot + 1: 1}))
        return along


class SilentSlotsAreLeftOut(MemorySession):
    def beats(self, slots):
        return {slot: count for slot, count in super().beats(slots).items() if count}


class EpochsAreOne(MemorySession):
    def attach(self, epoch):
        super().attach("one")


class PiecesStayWithTheirWriter(MemorySession):
    def publish(self, nonce, pieces):
        self.mine = {**getattr(self, "mine", {}), nonce: dict(pieces)}

    def fetch(self, nonce, names):
        return [getattr(self, "mine", {}).get(nonce, {}).get(name) for name in names]


class PiecesInTheirOwnOrder(MemorySession):
    def fetch(self, nonce, names):
        return super().fetch(nonce, sorted(names))


class NoncesAreOne(MemorySession):
    def publish(self, nonce, pieces):
        super().publish("nonce", pieces)

    def fetch(self, nonce, names):
        return super().fetch("nonce", names)


class CloseRaisesTheSecondTime(MemorySession):
    def close(self):
        assert not self.connection.closed
        super().close()


@pytest.mark.parametrize(
    "kind",
    [
        *(SwapFromEqualBytes, NoTokenSwaps, ReadsAgainWhatItKnows, WaitBringsWhatIsKnown),
        *(TicketsAreCountedByEach, LogOneTooFar, BuryOverwrites, ForgottenIsAHole),
        *(ForgetsAllBefore, ForgetsTheWholeNonce, BeatsStopAtTheirLargest, BeatsSpillOver),
        *(SilentSlotsAreLeftOut, EpochsAreOne, PiecesStayWithTheirWriter),
        *(PiecesInTheirOwnOrder, NoncesAreOne, CloseRaisesTheSecondTime),
    ],
)
def test_a_wrong_session_is_caught(kind):
    def new_run():
        server = MemoryServer()
        keep = MemoryBackend(server, "run")
        return lambda: kind(keep.server, "run")

    caught(session_machine(new_run))
