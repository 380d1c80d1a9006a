"""Which engine a composed request goes to."""

import random
from collections import Counter

from vllm_promptcache.frontend.routing import LOAD_FACTOR, LOAD_SLACK, choose_engine, engine_for


def test_the_same_modules_go_to_the_same_engine_in_any_order() -> None:
    units = [("a", 10), ("b", 200), ("c", 30)]
    assert len({choose_engine(order, [0, 0, 0]) for order in (units, units[::-1])}) == 1


def test_the_engine_of_most_tokens_is_chosen() -> None:
    home = {name: choose_engine([(name, 1)], [0, 0]) for name in "abcdefgh"}
    here, there = (next(name for name in home if home[name] == rank) for rank in (0, 1))
    assert choose_engine([(here, 100), (there, 99)], [0, 0]) == 0
    assert choose_engine([(here, 99), (there, 100)], [0, 0]) == 1


def test_modules_are_spread_over_engines() -> None:
    counts = Counter(choose_engine([(f"unit {i}", 1)], [0] * 4) for i in range(4000))
    assert all(800 < counts[rank] < 1200 for rank in range(4))


def test_an_engine_with_more_than_its_share_is_passed_over() -> None:
    rng = random.Random(0)
    loads = [0, 0]
    for _ in range(1000):
        # All requests have the same modules.
        loads[choose_engine([("a", 10)], loads)] += 1
        if rng.random() < 0.9:
            loads[loads.index(max(loads))] -= 1
    assert max(loads) <= LOAD_FACTOR * (sum(loads) + 1) / 2 + LOAD_SLACK + 1


def test_what_travels_says_enough() -> None:
    wire = {"units": [["a", 0], ["b", 40]], "items": [0, 0, 40, -1, 40, 3, 1, 0, 90]}
    assert engine_for(wire, [0, 0, 0, 0]) == choose_engine([("a", 40), ("b", 90)], [0, 0, 0, 0])
