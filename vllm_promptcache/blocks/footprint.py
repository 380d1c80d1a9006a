"""How many KV blocks a composed request takes: one arithmetic for who admits it and who runs it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vllm_promptcache.blocks.geometry import UnitGeometry


class UnitFootprint(NamedTuple):
    """The blocks that a unit keeps, and those that encoding it takes besides.

    One that ``is_in_place`` is encoded in the blocks that it then keeps.
    """

    num_blocks: int
    num_scratch_blocks: int
    is_in_place: bool


def footprint_of(
    unit: UnitGeometry, context: Iterable[UnitGeometry], *, is_moved: bool = False
) -> UnitFootprint:
    """The footprint of a unit that is encoded in the context of others.

    The encoding request's private blocks hold what of the context fills no block, then the unit. If there is
    no such part of the context, and the unit's whole blocks are filled by its first tokens in order, then
    these private blocks are what the unit keeps; not if it ``is_moved`` from where it is encoded.
    """
    size, num_tokens = unit.block_size, len(unit.slots)
    edges = sum(num_edge_tokens(seen) for seen in context)
    num_stored = unit.num_blocks * size
    in_order = bool((unit.slots[:num_stored] == np.arange(num_stored)).all())
    is_in_place = not is_moved and edges == 0 and num_stored > 0 and in_order
    scratch = -(-(edges + num_tokens) // size)
    return UnitFootprint(unit.num_blocks, scratch - unit.num_blocks * is_in_place, is_in_place)


def num_edge_tokens(unit: UnitGeometry) -> int:
    """How many of a unit's kept tokens are in none of its whole blocks."""
    kept = int((unit.piece_ends - unit.piece_starts).sum())
    return kept - unit.num_blocks * unit.block_size


def blocks_needed(units: Iterable[UnitFootprint], num_private_blocks: int) -> int:
    """What a request on units that are not resident takes at most, with so many blocks of its own: one unit
    after the other is encoded, and only then is the request admitted."""
    kept = scratch = 0
    for unit in units:
        kept += unit.num_blocks
        scratch = max(scratch, unit.num_scratch_blocks)
    return kept + max(scratch, num_private_blocks)
