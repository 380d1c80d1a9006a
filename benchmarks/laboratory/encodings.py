"""Encodings: which states there are, and what each sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.laboratory.states import SCHEMA, Bools, Ints, Model, Modules, States


@dataclass(frozen=True, eq=False)
class Company:
    """Tokens that passages see while they are encoded, and no prompt includes: somebody else's text."""

    token_ids: Ints


def encode(model: Model, modules: Modules, name: str, argument: int, company: Company) -> States:
    """The states of all tokens under an encoding."""
    owner, order = modules.owner, np.arange(len(modules.owner))
    before = order[:, None] >= order[None, :]
    of_schema = owner[None, :] == SCHEMA
    own = owner[:, None] == owner[None, :]
    passage = owner[:, None] != SCHEMA
    if name in ("stranger", "prior", "near", "near-stranger"):
        text = company if name.endswith("stranger") else None
        return _encode_in_company(model, modules, argument, text, name.startswith("near"))
    real = ~np.isin(owner, list(modules.left_out))
    passages = range(modules.num_passages)
    neighbours = [max((p for p in range(n) if p not in modules.left_out), default=n) for n in passages]
    next_to = np.array([neighbours[n] if n >= 0 else n for n in owner])
    masks: dict[str, Callable[[], Bools]] = {
        "full": lambda: before & real[None, :],
        # Each passage in sight of the one before it in the prompt.
        "pairs": lambda: before & (own | of_schema | (passage & (next_to[:, None] == owner))),
        "isolated": lambda: before & own,
        "context": lambda: before & (own | of_schema),
        "scaffold": lambda: before & (own | of_schema | passage) & real[None, :],
        "sequence": lambda: before & (own | of_schema | passage),
        # Each passage in sight of so many before it, which are encoded in the same way.
        "chain": lambda: before & (own | of_schema | (passage & (owner[:, None] - owner <= argument))),
    }
    return model.compute(modules.token_ids, modules.position_ids, masks[name]())


def _encode_in_company(
    model: Model, modules: Modules, count: int, company: Company | None, near: bool = False
) -> States:
    """Each passage but the first in sight of the schema and of so many tokens right before it, which no
    prompt includes: somebody else's text, or (no company) the end of the passage before.

    With ``near`` all that stands right behind the schema's text; keys are rotated to their places after.
    """
    head = int(modules.tokens_of(0)[0])
    tokens, groups, places = [modules.token_ids], [modules.owner], [modules.position_ids.copy()]
    for number in range(1, modules.num_passages):
        own = modules.tokens_of(number)
        start = int(modules.position_ids[own[0]])
        before = modules.token_ids[modules.tokens_of(number - 1)] if company is None else company.token_ids
        taken = before[len(before) - min(count, start - head, len(before)) :]
        if near:
            start = head + len(taken)
            places[0][own] = start + np.arange(len(own))
        tokens.append(taken)
        places.append(np.arange(start - len(taken), start))
        groups.append(np.full(len(taken), number))
    token_ids, position_ids, group = map(np.concatenate, (tokens, places, groups))
    earlier = position_ids[:, None] >= position_ids[None, :]
    sees = earlier & ((group[:, None] == group[None, :]) | (group[None, :] == SCHEMA))
    states = model.compute(token_ids, position_ids, sees).at(slice(0, len(modules.token_ids)))
    return model.moved(states, modules.position_ids - places[0])
