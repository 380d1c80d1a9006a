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


class ContextTokens(NamedTuple):
    """How many tokens of a context may be reused, and how many of these are in no whole block."""

    num_kept: int
    num_edges: int

    def and_those_of(self, units: Iterable[UnitGeometry]) -> ContextTokens:
        """With more units in the context."""
        units = tuple(units)
        num_kept, num_edges = sum(map(num_kept_tokens, units)), sum(map(num_edge_tokens, units))
        return ContextTokens(self.num_kept + num_kept, self.num_edges + num_edges)


NO_CONTEXT = ContextTokens(0, 0)


def footprint_of(
    unit: UnitGeometry, context: ContextTokens, window: int = 0, *, is_moved: bool = False
) -> UnitFootprint:
    """The footprint of a unit that is encoded in the context of others.

    The encoding request's private blocks hold what of the context fills no block, or is within a ``window``,
    then the unit. If there is no such part of the context, and the unit's whole blocks are filled by its
    first tokens in order, then these private blocks are what the unit keeps; not if it ``is_moved`` from
    where it is encoded.
    """
    size, num_tokens = unit.block_size, len(unit.slots)
    num_runs = 1 + int(np.count_nonzero(np.diff(unit.position_ids) != 1))
    edges = num_private_tokens(context.num_kept, context.num_edges, num_runs, window, size)
    num_stored = unit.num_blocks * size
    in_order = bool((unit.slots[:num_stored] == np.arange(num_stored)).all())
    is_in_place = not is_moved and edges == 0 and num_stored > 0 and in_order
    scratch = -(-(edges + num_tokens) // size)
    return UnitFootprint(unit.num_blocks, scratch - unit.num_blocks * is_in_place, is_in_place)


def num_private_tokens(num_reused: int, num_edges: int, num_runs: int, window: int, block_size: int) -> int:
    """How many of the reused tokens stand in private blocks, at most.

    ``num_edges`` are in no shared block anyway. Before each of ``num_runs`` runs of new tokens stands what a
    ``window`` counts, and what is in one block with the first of that.
    """
    if window <= 1:
        return num_edges
    return min(num_reused, num_edges + num_runs * (window - 1 + block_size))


def num_kept_tokens(unit: UnitGeometry) -> int:
    """How many tokens of a unit may be reused."""
    return int((unit.piece_ends - unit.piece_starts).sum())


def num_edge_tokens(unit: UnitGeometry) -> int:
    """How many of a unit's kept tokens are in none of its whole blocks."""
    return num_kept_tokens(unit) - unit.num_blocks * unit.block_size


def blocks_needed(units: Iterable[UnitFootprint], num_private_blocks: int) -> int:
    """What a request on units that are not resident takes at most, with so many blocks of its own: one unit
    after the other is encoded, and only then is the request admitted."""
    kept = scratch = 0
    for unit in units:
        kept += unit.num_blocks
        scratch = max(scratch, unit.num_scratch_blocks)
    return kept + max(scratch, num_private_blocks)
