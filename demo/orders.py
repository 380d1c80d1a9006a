"""A composed prompt as plain tokens, its modules in any order: what vLLM's prefix cache is given."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlainPrompt:
    """Token IDs of a prompt: what stands before all modules, each module's own, and what stands last."""

    head: tuple[int, ...]
    modules: tuple[tuple[int, ...], ...]
    tail: tuple[int, ...]

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any]) -> PlainPrompt:
        """Takes the answer of `explain` apart.

        A module's arguments belong to it. The schema's own text stands first, but for what comes after
        the first module; the last segment, which is new text, stands last.
        """
        units = {unit["id"]: unit["token_ids"] for unit in plan["units"]}
        root = plan["schema"]
        head: list[int] = []
        modules: dict[str, list[int]] = {}
        tail: list[int] = []
        current = root
        *segments, last = plan["segments"]
        for segment in segments:
            if "unit" in segment:
                current = segment["unit"]
                tokens = units[current][segment["start"] : segment["end"]]
            else:
                tokens = segment["token_ids"]
            if current != root:
                modules.setdefault(current, []).extend(tokens)
            elif modules:
                tail += tokens
            else:
                head += tokens
        tail += last["token_ids"]
        return cls(tuple(head), tuple(tuple(tokens) for tokens in modules.values()), tuple(tail))

    def in_order(self, order: Sequence[int]) -> list[int]:
        """All token IDs, the modules in the given order of their indices."""
        return [*self.head, *[token for index in order for token in self.modules[index]], *self.tail]


def new_orders(num_modules: int, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Up to `count` different orders of so many modules, at random, never the first one."""
    first = tuple(range(num_modules))
    generator = random.Random(seed)
    orders: list[tuple[int, ...]] = []
    while len(orders) < min(count, math.factorial(num_modules) - 1):
        order = tuple(generator.sample(first, num_modules))
        if order != first and order not in orders:
            orders.append(order)
    return orders
