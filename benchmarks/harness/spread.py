"""Medians with their spread, and ratios pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of ``count`` samples."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        """The spread of at least one sample.

        Raises:
            ValueError: there is none.
        """
        values = np.asarray(list(samples), float)
        if not len(values):
            raise ValueError("no samples")
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(low), float(high), len(values))

    def to_json(self) -> dict[str, float | int]:
        """Plain types, for JSON."""
        return {"median": self.median, "q1": self.low, "q3": self.high, "samples": self.count}

    def text(self, digits: int = 1) -> str:
        """``12.3 (12.1 to 12.9)``."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


# The place of a sample in a run: pairs are samples at the same place.
Place = tuple[int, ...]


def pair_ratios(above: Mapping[Place, float], below: Mapping[Place, float]) -> list[float]:
    """Ratios of the samples that both have at a place, in order of places."""
    return [above[place] / below[place] for place in sorted(above) if place in below]


def ratio_of(above: Mapping[Place, float], below: Mapping[Place, float]) -> Spread | None:
    """The spread of ratios pair by pair, or None where nothing pairs."""
    ratios = pair_ratios(above, below)
    return Spread.of(ratios) if ratios else None


def ratio_over_starts(pairs: Iterable[tuple[Mapping[Place, float], Mapping[Place, float]]]) -> Spread | None:
    """The geometric mean of all starts' medians of ratios, and of their quartiles; None where nothing pairs.

    The server that starts first is slower by some percent for as long as it lives. Over as many starts as
    there are servers each is the first once, and that falls out of the mean.
    """
    found = [ratio for above, below in pairs if (ratio := ratio_of(above, below)) is not None]
    if not found:
        return None
    medians, lows, highs = (
        geometric_mean(v) for v in zip(*((s.median, s.low, s.high) for s in found), strict=True)
    )
    return Spread(medians, lows, highs, sum(s.count for s in found))


def by_place(samples: Iterable[Mapping[str, Any]], value: str) -> dict[Place, float]:
    """``{"place": [0, 1], value: 12.3}`` samples by place."""
    return {tuple(s["place"]): float(s[value]) for s in samples}


def interleave(repeats: Mapping[str, int], rounds: int) -> list[tuple[str, Place]]:
    """Who is measured when: ways in turn, so that neighbours in time make a pair.

    A way with ``repeats`` 3 comes three times a round. Every second turn runs backwards, and each two
    turns begin with another way (A B C, C B A, B C A, A C B, ...), so that no way always follows the same:
    not in the first turns of all rounds either, in which ways with few repeats are.
    """
    ways = list(repeats)
    order: list[tuple[str, Place]] = []
    for index in range(rounds):
        for repeat in range(max(repeats.values(), default=0)):
            turn = index + repeat
            shift = turn // 2 % len(ways)
            turned = [*ways[shift:], *ways[:shift]]
            if turn % 2:
                turned.reverse()
            order += [(way, (index, repeat)) for way in turned if repeat < repeats[way]]
    return order
