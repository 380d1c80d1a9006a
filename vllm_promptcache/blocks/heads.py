"""Heads: rows for a range that begins inside a block of its unit.

A shared block cannot be used in part, and what is in it cannot be read back. What is left behind link tokens
begins inside a block: the tokens from there to the end of the block are taken from a *head* instead, the
unit's text up to that block's end, in the same context, encoded once more, of which the rows of the last
block are kept and no blocks at all. States attend to what is before them only, so they are the same. One head
serves all ranges that begin in its last block.

The unit's own blocks serve requests with and without repairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from vllm_promptcache.blocks.composition import Composition, Computed, Reused, UnitText
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit
from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey
from vllm_promptcache.contract.unit import token_after_kept


def head_end(unit: UnitGeometry, start: int) -> int | None:
    """The token index at which a unit's head has to end for a range that begins at a token.

    None where no head is needed: the range begins on a block of the unit, in its edge rows, or nowhere.
    """
    if not 0 <= start < len(unit.slots) or unit.rows[start] >= 0 or unit.slots[start] < 0:
        return None
    offset = int(unit.slots[start]) % unit.block_size
    return start - offset + unit.block_size if offset else None


def head_end_of_link(text: UnitText, unit: UnitGeometry, link_tokens: int) -> int | None:
    """As `head_end`, for what is left behind so many link tokens."""
    return head_end(unit, token_after_kept(text.kept, link_tokens))


def head_text(text: UnitText, end: int) -> UnitText:
    """A unit's text up to token ``end``."""
    breaks = tuple(token for token in text.breaks if token < end)
    arrays = (text.token_ids[:end], text.positions[:end], text.kept[:end])
    return UnitText(*arrays, text.context, breaks, text.home, text.has_stem)


def lay_out_head(text: UnitText, position: int, block_size: int) -> UnitGeometry:
    """The geometry of a head: rows for its last ``block_size`` tokens, all kept, and nothing else."""
    whole = lay_out_unit(text.positions + position, text.kept, block_size, text.breaks)
    nowhere = np.full(len(text.kept), -1, np.int64)
    rows = nowhere.copy()
    rows[-block_size:] = np.arange(block_size)
    first_blocks = np.zeros_like(whole.first_blocks)
    return replace(
        whole, first_blocks=first_blocks, slots=nowhere, rows=rows, num_blocks=0, num_rows=block_size
    )


def take_from_heads(
    composition: Composition,
    units: Mapping[UnitKey, UnitGeometry],
    head_of: Callable[[UnitKey, int], UnitKey],
) -> Composition:
    """The same composition with ranges that begin inside a block taken from heads up to the block's end.

    ``head_of`` names the head of a unit that ends at a token index.
    """
    items: list[Reused | Computed] = []
    for item in composition.items:
        if not isinstance(item, Reused):
            items.append(item)
        elif (end := head_end(units[item.unit], item.start)) is not None:
            items.append(Reused(head_of(item.unit, end), item.start, min(end, item.end)))
            if end < item.end:
                items.append(Reused(item.unit, end, item.end))
        else:
            items.append(item)
    return Composition(tuple(items))


def whole_units(keys: Iterable[UnitKey]) -> set[UnitKey]:
    """The units that keys are of; a head counts with what is behind it."""
    return {key for key in keys if key.part == WHOLE}
