"""Questions asked in many ways, each compared with full attention by the distribution of the first token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.advise.case import Case
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.frontend.composer import ComposedPrompt
from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.repairs.repaired import without_reuse

Logprobs = NDArray[np.float32]

# A distribution over the whole vocabulary is large on its way through vLLM: so many are asked for at once.
BATCH = 16


class Engine(Protocol):
    """What is asked: `vllm_promptcache.LLM`."""

    def first_token_logprobs(self, prompts: Sequence[ComposedPrompt]) -> list[Logprobs]:
        """The log-probabilities of each prompt's first token, ``(vocabulary,)``."""
        ...


@dataclass(frozen=True)
class Difference:
    """How far a first token's distribution is from full attention's, in nats, and whether the likeliest
    token is another one."""

    divergence: float
    is_changed: bool


class Comparison:
    """Compares answers to the same questions; ``tell`` hears how many more prompts were asked."""

    def __init__(
        self, engine: Engine, layout: SchemaLayout, cases: Sequence[Case], tell: Callable[[int], None]
    ) -> None:
        self._engine = engine
        self._tell = tell
        self._full = list(self._ask(layout, [without_reuse(case.plan) for case in cases]))

    def differences(self, layout: SchemaLayout, plans: Iterable[tuple[int, Plan]]) -> list[Difference]:
        """One for each plan over a layout, given with the place of its question."""
        places, asked = zip(*plans, strict=True)
        logprobs = self._ask(layout, asked)
        return [_difference(self._full[place], found) for place, found in zip(places, logprobs, strict=True)]

    def _ask(self, layout: SchemaLayout, plans: Iterable[Plan]) -> Iterator[Logprobs]:
        entry = SchemaEntry(layout, "advise")
        prompts = (ComposedPrompt(plan, entry, max_new_tokens=1) for plan in plans)
        while batch := list(islice(prompts, BATCH)):
            yield from self._engine.first_token_logprobs(batch)
            self._tell(len(batch))


def divergence(reference: Logprobs, other: Logprobs) -> float:
    """KL(reference || other) in nats."""
    p, q = reference.astype(np.float64), other.astype(np.float64)
    possible = np.isfinite(p)
    p, q = p[possible], q[possible]
    return max(float(np.sum(np.exp(p) * (p - q))), 0.0)


def _difference(full: Logprobs, found: Logprobs) -> Difference:
    return Difference(divergence(full, found), bool(full.argmax() != found.argmax()))
