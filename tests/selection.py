"""Which tokens of a schema's units are selected, by the definition in docs/semantics.md.

Transformers, float32, explicit positions and masks, as in tests/reference.py; no code of the product.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from tests.reference import Sequence

Unit = dict[str, Any]


def select(model: Any, units: list[Unit], share: str) -> dict[str, set[int]]:
    """The selected tokens of each of a schema's units, which stand as `explain` prints them, by id."""
    return most_deviant(units, {unit["id"]: deviations(model, units, unit) for unit in units}, share)


def most_deviant(units: list[Unit], moved: dict[str, dict[int, float]], share: str) -> dict[str, set[int]]:
    """The selected tokens of units whose tokens' deviations are known."""
    selected: dict[str, set[int]] = {}
    for unit in units:
        found = moved[unit["id"]]
        count = math.floor(Decimal(share) * sum(unit["kept"]) + Decimal("0.5"))
        selected[unit["id"]] = set(sorted(found, key=lambda token: (-found[token], token))[:count])
    return selected


def company_of(units: list[Unit], unit: Unit) -> Unit | None:
    """The unit that ends last of those before a unit, apart from its context; the first of several."""
    by_id = {other["id"]: other for other in units}
    seen = {position for name in unit["context"] for position in by_id[name]["position_ids"]}
    before = [
        other
        for other in units
        if other["position_ids"][-1] < unit["position_ids"][0] and not seen & set(other["position_ids"])
    ]
    return max(before, key=lambda other: other["position_ids"][-1], default=None)


def deviations(model: Any, units: list[Unit], unit: Unit) -> dict[int, float]:
    """How far a unit's kept tokens move in company, by index; nothing where there is none."""
    company = company_of(units, unit)
    if company is None:
        return {}
    alone = _states(model, units, unit, unit["context"])
    moved = _states(model, units, unit, [*unit["context"], company["id"]])
    tokens = [token for token, kept in enumerate(unit["kept"]) if kept]
    found = np.zeros(len(tokens))
    for one, other in zip(alone, moved, strict=True):
        norms = (other[tokens] ** 2).sum(-1)
        found += ((one[tokens] - other[tokens]) ** 2).sum(-1) / norms.mean()
    return dict(zip(tokens, found.tolist(), strict=True))


@torch.inference_mode()
def _states(model: Any, units: list[Unit], unit: Unit, context: list[str]) -> list[np.ndarray]:
    """A unit's keys and values, ``(tokens, heads x size)``, at the second layer in a context."""
    by_id = {other["id"]: other for other in units}
    sequence = Sequence()
    placed: dict[str, list[int]] = {}

    def place(one: Unit, names: list[str]) -> list[int]:
        for name in names:
            if name not in placed:
                placed[name] = place(by_id[name], by_id[name]["context"])
        seen = [
            i for name in names for i, kept in zip(placed[name], by_id[name]["kept"], strict=True) if kept
        ]
        own: list[int] = []
        for token_id, position in zip(one["token_ids"], one["position_ids"], strict=True):
            before = [i for i in seen if sequence.position_ids[i] < position]
            own.append(sequence.append(token_id, position, before + own))
        return own

    own = place(unit, context)
    count = len(sequence.token_ids)
    mask = np.full((count, count), np.finfo(np.float32).min, np.float32)
    for index, seen in enumerate(sequence.sees):
        mask[index, seen] = 0
    output = model(
        input_ids=torch.tensor([sequence.token_ids]),
        position_ids=torch.tensor([sequence.position_ids]),
        attention_mask=torch.from_numpy(mask)[None, None],
        use_cache=True,
    )
    layers = output.past_key_values.layers
    layer = layers[min(1, len(layers) - 1)]
    states = [layer.keys, layer.values]
    return [s[0, :, own].transpose(0, 1).flatten(1).double().numpy() for s in states]
