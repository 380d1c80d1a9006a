"""Checks of what a request asks for: a wrong one is refused, and harms no other request.

Beyond these checks a position selects a row of the rotary table and a range selects KV slots, without
bounds. They cost a request a few comparisons an item, and a unit's text one pass when it first arrives.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vllm_promptcache.blocks.composition import Composition, Computed, UnitKey, UnitText
from vllm_promptcache.blocks.geometry import UnitGeometry


def check_text(text: UnitText, num_positions: int, vocabulary: int) -> None:
    """Check a unit's text against a model with so many positions and token IDs.

    Raises:
        ValueError: the text is empty, its arrays differ in length, or a token or position is impossible.
    """
    tokens, positions = text.token_ids, text.position_ids
    if not len(tokens) == len(positions) == len(text.kept) > 0:
        raise ValueError(f"a unit of {len(tokens)} tokens, {len(positions)} positions, {len(text.kept)} kept")
    if positions[0] < 0 or positions[-1] >= num_positions or (np.diff(positions) < 1).any():
        raise ValueError(f"a unit's positions do not increase from 0 to {num_positions}")
    if not all(0 < token < len(tokens) for token in text.breaks):
        raise ValueError(f"a unit of {len(tokens)} tokens cannot have breaks at {text.breaks}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"a unit has token IDs that are not among {vocabulary}")


def check_composition(
    composition: Composition, units: Mapping[UnitKey, UnitGeometry], num_positions: int
) -> int:
    """Check a composition over units; returns the position of the first generated token.

    Raises:
        ValueError: positions do not increase, a range is not part of one piece of its unit, the last
            item is not computed, or no position is left to generate at.
    """
    position = 0
    for item in composition.items:
        if isinstance(item, Computed):
            first, num_tokens = item
        else:
            unit, start, end = item
            first, num_tokens = units[unit].stored_range(start, end).first_position, end - start
        if num_tokens < 1 or first < position:
            raise ValueError(f"{item} cannot begin at position {first}: {position} comes next")
        position = first + num_tokens
    if not composition.items or not isinstance(composition.items[-1], Computed):
        raise ValueError("the last token of a composed prompt must be computed")
    if position >= num_positions:
        raise ValueError(f"the prompt ends at position {position}; the model has {num_positions} positions")
    return position
