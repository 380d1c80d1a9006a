"""Paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Interval:
    """A mean over ``count`` questions with the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float | int]:
        """Plain types, for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "questions": self.count}

    def text(self, digits: int, scale: float = 1.0, sign: bool = False) -> str:
        """``-0.12 (-0.20 to -0.03)``."""
        form = f"{'+' if sign else ''}.{digits}f"
        mean, low, high = (format(value * scale, form) for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


def interval(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The percentile bootstrap interval of the mean of values, ``(questions,)``.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no values")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (min(_ROWS_AT_ONCE, resamples - done), len(values)))].mean(1)
            for done in range(0, resamples, _ROWS_AT_ONCE)
        ]
    )
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(values.mean()), float(low), float(high), len(values))


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> Interval | None:
    """The interval of the mean of ``a - b`` over the questions that both have; None where there is none."""
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    return interval(np.array([a[key] - b[key] for key in common], np.float64))
