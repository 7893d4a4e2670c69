"""Who is alive, by what one observer has seen on its own clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdzv.dynamic_rendezvous.backend import HELD
from rdzv.dynamic_rendezvous.liveness import Silence

PATIENCE = 4.0


def look(silence: Silence, now: float, **counts: int) -> set[str]:
    return silence.observe({node: (0, count) for node, count in counts.items()}, now, 1.0)


def test_a_node_that_was_never_seen_before_is_not_silent():
    silence = Silence(PATIENCE)
    assert look(silence, 10.0, a=7) == set()
    assert silence.of("a") == 0
    assert silence.of("never heard of") == 0
    assert silence.suspects(["a", "never heard of"]) == []


def test_looks_without_change_add_up():
    silence = Silence(PATIENCE)
    for now in (0.0, 1.0, 2.0, 3.5):
        look(silence, now, a=7)
    assert silence.of("a") == 3.5
    assert silence.suspects(["a"]) == ["a"]


def test_a_beat_ends_the_silence_and_is_named():
    silence = Silence(PATIENCE)
    look(silence, 0.0, a=1, b=1)
    look(silence, 1.0, a=1, b=1)
    assert look(silence, 2.0, a=1, b=2) == {"b"}
    assert silence.suspects(["a", "b"]) == ["a"]


def test_a_counter_that_goes_down_is_a_beat_too():
    # A lease made anew may count from the beginning.
    silence = Silence(PATIENCE)
    look(silence, 0.0, a=9)
    assert look(silence, 1.0, a=1) == {"a"}


def test_one_late_look_adds_two_periods_at_most():
    silence = Silence(PATIENCE)
    look(silence, 0.0, a=1)
    look(silence, 3.9, a=1)
    assert silence.of("a") == 2.0


def test_one_look_adds_no_more_than_the_patience():
    silence = Silence(1.5)
    look(silence, 0.0, a=1)
    look(silence, 1.9, a=1)
    assert silence.of("a") == 1.5


def test_a_beat_in_another_place_is_a_beat_although_the_counters_are_equal():
    silence = Silence(PATIENCE)
    silence.observe({"a": (1, 7)}, 0.0, 1.0)
    silence.observe({"a": (1, 7)}, 1.0, 1.0)
    assert silence.observe({"a": (2, 7)}, 2.0, 1.0) == {"a"}
    assert silence.of("a") == 0


def test_who_was_seen_to_beat_has_beaten_until_it_is_silent_for_too_long_or_forgotten():
    silence = Silence(PATIENCE)
    look(silence, 0.0, a=1)
    assert not silence.has_beaten("a", 1.5)
    look(silence, 1.0, a=2)
    look(silence, 2.5, a=2)
    assert silence.has_beaten("a", 1.5)
    assert not silence.has_beaten("a", 1.4)
    assert not silence.has_beaten("never heard of", 1.5)
    look(silence, 3.0)
    look(silence, 3.5, a=2)
    assert not silence.has_beaten("a", 1.5)


def test_a_beat_from_before_a_gap_does_not_tell_that_a_node_lives():
    silence = Silence(PATIENCE)
    look(silence, 0.0, a=1)
    look(silence, 1.0, a=2)
    look(silence, 1000.0, a=2)
    assert not silence.has_beaten("a", 1.5)
    look(silence, 1001.0, a=3)
    assert silence.has_beaten("a", 1.5)


def test_after_a_gap_longer_than_the_patience_everybody_starts_afresh():
    silence = Silence(PATIENCE)
    for now in (0.0, 1.0, 2.0, 3.0):
        look(silence, now, a=1, b=1)
    look(silence, 1000.0, a=1, b=1)
    assert silence.suspects(["a", "b"]) == []


def test_a_node_that_is_no_longer_looked_at_is_forgotten():
    silence = Silence(PATIENCE)
    look(silence, 0.0, a=1)
    look(silence, 1.0, a=1)
    look(silence, 2.0)
    assert silence.of("a") == 0
    look(silence, 3.0, a=1)
    assert silence.of("a") == 0


@given(
    st.lists(st.floats(0.01, 50.0), min_size=1, max_size=40),
    st.floats(0.1, 10.0),
    st.floats(0.1, 3.0),
)
def test_nobody_is_silent_for_longer_than_was_looked(gaps, patience, period):
    silence = Silence(patience)
    now = 5.0
    silence.observe({"a": (0, 1)}, now, period)
    for number, gap in enumerate(gaps, 1):
        now += gap
        silence.observe({"a": (0, 1)}, now, period)
        assert silence.of("a") <= number * min(2 * period, patience) + 1e-6
        assert silence.of("a") <= now - 5.0 + 1e-6
        if gap > max(patience, 2 * period):
            assert silence.of("a") == 0


# ---------------------------------------------------------------- leases


def steady(silence: Silence, upto: int) -> None:
    for second in range(upto + 1):
        look(silence, float(second), a=HELD)


def test_a_lease_is_a_sign_of_life_at_every_look():
    silence = Silence(PATIENCE)
    assert look(silence, 0.0, a=HELD) == set()
    assert look(silence, 1.0, a=HELD) == {"a"}
    assert silence.of("a") == 0
    assert not silence.has_ended("a")


def test_the_end_of_a_lease_is_a_death():
    silence = Silence(PATIENCE)
    steady(silence, 4)
    assert look(silence, 5.0, a=0) == set()
    assert silence.has_ended("a")
    assert silence.of("a") == PATIENCE
    assert silence.suspects(["a"]) == ["a"]
    assert not silence.has_beaten("a", 1.0)
    look(silence, 6.0, a=0)
    assert silence.has_ended("a")


def test_a_lease_that_was_made_anew_is_a_sign_of_life():
    silence = Silence(PATIENCE)
    steady(silence, 4)
    look(silence, 5.0, a=0)
    assert look(silence, 6.0, a=HELD) == {"a"}
    assert not silence.has_ended("a")
    assert silence.of("a") == 0


@given(gap=st.floats(PATIENCE + 0.1, 100.0), looks=st.integers(0, 3))
def test_a_lease_that_ends_after_a_gap_says_no_more_than_that_nobody_renewed_it_since(gap, looks):
    # Whatever kept the observer from looking may have kept the node from renewing it.
    silence = Silence(PATIENCE)
    steady(silence, 4)
    back = now = 4.0 + gap
    for _ in range(looks):
        look(silence, now, a=HELD)
        now += 1.0
    look(silence, now, a=0)
    assert not silence.has_ended("a")
    assert silence.of("a") == pytest.approx(now - back)
    look(silence, now + 1.0, a=0)
    assert silence.of("a") == pytest.approx(now - back + 1.0)


def test_who_never_had_a_lease_is_silent():
    silence = Silence(PATIENCE)
    for second in range(6):
        look(silence, float(second), a=0)
    assert silence.of("a") == 5.0
    assert not silence.has_ended("a")


def test_a_node_that_beats_elsewhere_has_lost_no_lease():
    silence = Silence(PATIENCE)
    for second in range(6):
        silence.observe({"a": (1, HELD)}, float(second), 1.0)
    assert silence.observe({"a": (2, 0)}, 6.0, 1.0) == {"a"}
    assert not silence.has_ended("a")
