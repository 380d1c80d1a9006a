"""Heads: rows for a range that begins or ends inside a block of its unit.

A shared block cannot be used in part, and what is in it cannot be read back. What is left behind link tokens
begins inside a block: the tokens from there to the end of the block are taken from a *head* instead, the
unit's text up to that block's end, in the same context, encoded once more, of which the rows of the last
block are kept and no blocks at all. States attend to what is before them only, so they are the same. One head
serves all ranges that begin in its last block.

What is left between selected tokens begins and ends anywhere: it is taken from the unit's *copy*, the whole
of it encoded once more, of which the rows of all kept tokens are kept and no blocks. The unit's own blocks
serve requests with and without repairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from vllm_promptcache.blocks.composition import Composition, Computed, Reused, UnitText
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit
from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey
from vllm_promptcache.contract.unit import token_after_kept

# Stands for the copy of a unit where the end of a head is asked for.
COPY = -1


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
    return UnitText(*arrays, text.context, breaks, text.home)


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


def lay_out_copy(text: UnitText, position: int, block_size: int) -> UnitGeometry:
    """The geometry of a unit's copy: rows for all of its kept tokens, and nothing else."""
    whole = lay_out_unit(text.positions + position, text.kept, block_size, text.breaks)
    return replace(
        whole,
        first_blocks=np.zeros_like(whole.first_blocks),
        slots=np.full(len(text.kept), -1, np.int64),
        rows=np.where(text.kept, np.cumsum(text.kept) - 1, -1),
        num_blocks=0,
        num_rows=int(text.kept.sum()),
    )


def needs_copy(unit: UnitGeometry, end: int) -> bool:
    """Whether a range that ends before a token needs the unit's copy: it ends inside a block, and what it
    takes of that is in no edge row."""
    if not 0 < end <= len(unit.slots) or unit.rows[end - 1] >= 0 or unit.slots[end - 1] < 0:
        return False
    return (int(unit.slots[end - 1]) + 1) % unit.block_size > 0


def take_from_heads(
    composition: Composition,
    units: Mapping[UnitKey, UnitGeometry],
    head_of: Callable[[UnitKey, int], UnitKey],
) -> Composition:
    """The same composition with what needs them taken from heads and copies: ranges that begin inside a
    block up to the block's end, and all that fills no block of units of which a range ends inside one.

    ``head_of`` names the head of a unit that ends at a token index, or its copy.
    """
    reused = [item for item in composition.items if isinstance(item, Reused)]
    copied = {item.unit for item in reused if needs_copy(units[item.unit], item.end)}
    items: list[Reused | Computed] = []
    for item in composition.items:
        if not isinstance(item, Reused):
            items.append(item)
        elif item.unit in copied:
            items += _around_blocks(item, units[item.unit], head_of(item.unit, COPY))
        elif (end := head_end(units[item.unit], item.start)) is not None:
            items.append(Reused(head_of(item.unit, end), item.start, min(end, item.end)))
            if end < item.end:
                items.append(Reused(item.unit, end, item.end))
        else:
            items.append(item)
    return Composition(tuple(items))


def _around_blocks(item: Reused, unit: UnitGeometry, copy: UnitKey) -> list[Reused]:
    """A range of a unit with its whole blocks from the unit, and what is around them from its copy."""
    size, piece = unit.block_size, unit.piece_of(item.start)
    if piece == len(unit.piece_starts):
        return [item]  # not a range of the unit: whoever seats it says so
    base = int(unit.piece_starts[piece])
    first, last = base - (base - item.start) // size * size, base + (item.end - base) // size * size
    if first >= last:
        return [Reused(copy, item.start, item.end)]
    parts = [Reused(copy, item.start, first), Reused(item.unit, first, last), Reused(copy, last, item.end)]
    return [part for part in parts if part.start < part.end]


def whole_units(keys: Iterable[UnitKey]) -> set[UnitKey]:
    """The units that keys are of, whole or as copies; a head counts with what is behind it."""
    return {key.whole for key in keys if key.part in (WHOLE, COPY)}
