"""Metrics of answers and distributions."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """As SQuAD's own evaluation does: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def first_line(text: str) -> str:
    """The answer in what a model wrote: its first line that is not empty."""
    return text.strip().partition("\n")[0].strip()


def f1(answer: str, golds: Iterable[str]) -> float:
    """The best F1 over words against any right answer."""
    return max(_f1(normalize(answer).split(), normalize(gold).split()) for gold in golds)


def _f1(answer: Sequence[str], gold: Sequence[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold))


def exact_match(answer: str, golds: Iterable[str]) -> float:
    """1 where the answer is one of the right ones, after normalising."""
    return float(normalize(answer) in {normalize(gold) for gold in golds})


def containment(answer: str, golds: Iterable[str]) -> float:
    """1 where a right answer's words stand in the answer, one after another."""
    padded = f" {normalize(answer)} "
    return float(any(f" {normalize(gold)} " in padded for gold in golds))


@dataclass(frozen=True, eq=False)
class Distribution:
    """A distribution over a vocabulary by its likeliest tokens.

    ``token_ids`` int64 and ``logprobs`` float32, both ``(tokens,)``; ``rest`` is the log-probability of
    all other tokens together.
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    rest: float

    @classmethod
    def of(cls, logprobs: NDArray[np.float32], num_tokens: int) -> Distribution:
        """The ``num_tokens`` likeliest of all log-probabilities, ``(vocabulary,)``."""
        num_tokens = min(num_tokens, len(logprobs))
        token_ids = np.sort(np.argpartition(-logprobs, num_tokens - 1)[:num_tokens])
        return cls.at(logprobs, token_ids)

    @classmethod
    def at(cls, logprobs: NDArray[np.float32], token_ids: NDArray[np.int64]) -> Distribution:
        """A distribution by given tokens of its vocabulary."""
        others = np.delete(logprobs, token_ids)
        rest = float(np.logaddexp.reduce(others.astype(np.float64))) if len(others) else -np.inf
        return cls(token_ids, logprobs[token_ids], rest)


def divergence(reference: Distribution, logprobs: NDArray[np.float32]) -> float:
    """KL(reference || other), in nats, over the reference's tokens and the rest as one more outcome.

    Never more than over the whole vocabulary, and less by what the rest could tell.
    """
    other = Distribution.at(logprobs, reference.token_ids)
    p = np.append(reference.logprobs.astype(np.float64), reference.rest)
    q = np.append(other.logprobs.astype(np.float64), other.rest)
    shown = np.isfinite(p)
    return max(float(np.sum(np.exp(p[shown]) * (p[shown] - q[shown]))), 0.0)
