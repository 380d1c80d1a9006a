"""Medians, ratios pair by pair, and the order of samples."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.spread import Spread, by_place, interleave, pair_ratios, ratio_of


def test_spread_is_median_and_quartiles() -> None:
    spread = Spread.of([5, 1, 2, 3, 4])
    assert (spread.median, spread.low, spread.high, spread.count) == (3, 2, 4, 5)
    assert spread.text() == "3.0 (2.0 to 4.0)"
    assert spread.to_json() == {"median": 3.0, "q1": 2.0, "q3": 4.0, "samples": 5}


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Spread.of([])


def test_ratios_are_of_samples_at_the_same_place() -> None:
    above = {(0, 0): 2.0, (0, 1): 6.0, (1, 0): 9.0}
    below = {(0, 0): 1.0, (0, 1): 2.0, (2, 0): 1.0}
    assert pair_ratios(above, below) == [2.0, 3.0]
    assert ratio_of(above, below) == Spread.of([2.0, 3.0])
    assert ratio_of(above, {}) is None


def test_samples_by_place() -> None:
    assert by_place([{"place": [0, 1], "ms": 3}], "ms") == {(0, 1): 3.0}


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 5), min_size=1), st.integers(1, 4))
def test_every_way_comes_as_often_as_asked(repeats: dict[str, int], rounds: int) -> None:
    order = interleave(repeats, rounds)
    assert len(set(order)) == len(order) == rounds * sum(repeats.values())
    for way, count in repeats.items():
        assert sum(w == way for w, _ in order) == rounds * count


def test_pairs_are_neighbours_and_nobody_always_goes_first() -> None:
    order = interleave({"a": 1, "b": 1}, 8)
    turns = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert all(first[1] == second[1] for first, second in turns)
    assert {first[0] for first, _ in turns} == {"a", "b"}


def test_ways_with_few_samples_do_not_always_follow_the_same_ones() -> None:
    order = interleave({"slow": 1, "fast": 8, "other": 8, "slower": 1}, 8)
    firsts = [[way for way, place in order if place == (index, 0)] for index in range(8)]
    for way in ("fast", "other"):
        before = {turn[turn.index(way) - 1] for turn in firsts if turn.index(way)}
        assert len(before) > 1


def test_no_way_always_follows_the_same_one() -> None:
    order = [way for way, _ in interleave(dict.fromkeys("abc", 1), 12)]
    before_a = {first for first, second in pairwise(order) if second == "a"}
    assert {"b", "c"} <= before_a
