"""The checker of histories of one register."""

from __future__ import annotations

import itertools
import random

import pytest

from rdzv.testing.linearizability import Operation, contradiction


def read(client, began, ended, seen):
    return Operation(client, began, ended, seen)


def swap(client, began, ended, expected, new, won, seen=None):
    return Operation(client, began, ended, new if won else seen, expected, new, won)


LINEARIZABLE = {
    "nothing": [],
    "a read of nothing": [read("a", 0, 1, None)],
    "one after another": [swap("a", 0, 1, None, 1, True), swap("b", 2, 3, 1, 2, True)],
    "at once, in the other order": [
        swap("a", 0, 9, 1, 2, True),
        swap("b", 1, 8, None, 1, True),
        read("c", 2, 7, 2),
    ],
    "a loser is told what another wrote": [
        swap("a", 0, 5, None, 1, True),
        swap("b", 1, 6, None, 2, False, seen=1),
    ],
    "a failed write that took effect late": [
        swap("a", 0, 1, None, 1, True),
        swap("b", 2, 3, 1, 2, None),
        read("c", 4, 5, 1),
        read("c", 6, 7, 2),
    ],
    "a failed write that never took effect": [
        swap("a", 0, 1, None, 1, None),
        read("c", 4, 5, None),
    ],
}

CONTRADICTORY = {
    "a stale read": [swap("a", 0, 1, None, 1, True), read("b", 2, 3, None)],
    "two winners": [swap("a", 0, 5, None, 1, True), swap("b", 1, 6, None, 2, True)],
    "a winner that was lost": [
        swap("a", 0, 1, None, 1, True),
        swap("b", 2, 3, None, 2, True),
    ],
    "a read that goes back": [
        swap("a", 0, 1, None, 1, True),
        swap("a", 2, 9, 1, 2, True),
        read("b", 3, 4, 2),
        read("c", 5, 6, 1),
    ],
    "a loser although nothing else was written": [swap("a", 0, 1, None, 1, False, seen=None)],
    "a value from nowhere": [read("a", 0, 1, 7)],
    "a failed write that took effect twice": [
        swap("a", 0, 1, None, 1, None),
        swap("b", 2, 3, 1, 2, True),
        read("c", 4, 5, 1),
    ],
    "a failed write that took effect before it began": [
        read("c", 0, 1, 1),
        swap("a", 2, 3, None, 1, None),
    ],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_what_one_register_explains_is_accepted(name):
    for order in itertools.permutations(LINEARIZABLE[name]):
        assert contradiction(order) is None


@pytest.mark.parametrize("name", CONTRADICTORY)
def test_what_no_register_explains_is_refused(name):
    for order in itertools.permutations(CONTRADICTORY[name]):
        assert contradiction(order)


def make(rng: random.Random, count: int) -> list[Operation]:
    """A history that one register explains: each operation takes effect at one moment."""
    value, history = None, []
    for number in range(count):
        at = 10.0 * number
        began, ended = at - rng.uniform(0, 200), at + rng.uniform(0, 200)
        if rng.random() < 0.4:
            history.append(read(f"{number}", began, ended, value))
            continue
        expected = value if rng.random() < 0.5 else f"old {number}"
        fails = rng.random() < 0.1
        won = None if fails else expected == value
        history.append(swap(f"{number}", began, ended, expected, number, won, seen=value))
        if expected == value:
            value = number
    return history


@pytest.mark.parametrize("seed", range(20))
def test_long_histories_with_much_at_once_are_judged_quickly(seed):
    history = make(random.Random(seed), 300)
    assert contradiction(history) is None
    winners = [each for each in history if each.won]
    middle = winners[len(winners) // 2]
    # Somebody reads what had been replaced long ago.
    assert contradiction([*history, read("late", 10**6, 10**6 + 1, middle.new)])
