"""Checks of what a request asks for: a wrong one is refused, and harms no other request.

Beyond these checks a position selects a row of the rotary table and a range selects KV slots, without
bounds. They cost a request a few comparisons an item, and a unit's text one pass when it first arrives.
"""

from __future__ import annotations

import numpy as np

from vllm_promptcache.blocks.composition import UnitText


def check_text(text: UnitText, num_positions: int, vocabulary: int) -> None:
    """Check a unit's text against a model with so many positions and token IDs.

    Raises:
        ValueError: the text is empty, its arrays differ in length, or a token or position is impossible.
    """
    tokens, positions = text.token_ids, text.positions
    if not len(tokens) == len(positions) == len(text.kept) > 0:
        raise ValueError(f"a unit of {len(tokens)} tokens, {len(positions)} positions, {len(text.kept)} kept")
    if positions[0] != 0 or positions[-1] >= num_positions or (np.diff(positions) < 1).any():
        raise ValueError(f"a unit's positions do not increase from 0 to {num_positions}")
    if not all(0 < token < len(tokens) for token in text.breaks):
        raise ValueError(f"a unit of {len(tokens)} tokens cannot have breaks at {text.breaks}")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"a unit has token IDs that are not among {vocabulary}")


def check_place(text: UnitText, position: int, num_positions: int) -> None:
    """Check that a unit may stand at a position of a model with so many.

    Raises:
        ValueError: it begins before the first position, or ends behind the last one.
    """
    if position < 0 or position + int(text.positions[-1]) >= num_positions:
        raise ValueError(f"a unit of {len(text.positions)} tokens cannot stand at position {position}")
