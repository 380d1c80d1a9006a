"""How many blocks units take, and which are encoded in the blocks that they keep."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.memory import Memory, Running, encoding_of
from tests.blocks.strategies import World, home_text, worlds
from vllm_promptcache.blocks.composition import Composition, Computed, Reused
from vllm_promptcache.blocks.footprint import (
    NO_CONTEXT,
    UnitFootprint,
    blocks_needed,
    footprint_of,
    num_edge_tokens,
)
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit


@given(worlds(), st.sampled_from([0, 2, 5, 9, 33, 1_000_000]))
def test_footprints_are_what_encoding_takes(world: World, window: int) -> None:
    memory = Memory(world.block_size, window, in_blocks=window < 1_000_000)
    for name, unit in world.units.items():
        composition, _ = encoding_of(name, world.units)
        slot_layout = Running(memory, composition, name).slot_layout
        geometry = memory.store(name, unit)
        context = NO_CONTEXT.and_those_of(memory.geometries[seen.digest] for seen in unit.context)
        found = footprint_of(geometry, context, window)
        private = -(-slot_layout.num_prompt_tokens // world.block_size) - slot_layout.num_shared_blocks
        # Context that stands behind the unit is not gathered: the footprint may be larger, never smaller.
        assert found.num_blocks + found.num_scratch_blocks >= private
        assert found.num_blocks == geometry.num_blocks
        if found.is_in_place:
            stored = np.flatnonzero(geometry.slots >= 0)
            assert (geometry.slots[stored] == slot_layout.offsets[stored]).all() and not slot_layout.edge_rows
            assert found.num_blocks + found.num_scratch_blocks == -(-len(unit.token_ids) // world.block_size)


def test_a_module_of_its_own_is_encoded_in_place_and_one_behind_a_row_is_not() -> None:
    def unit(num_tokens: int, first: int = 0) -> UnitGeometry:
        return lay_out_unit(np.arange(first, first + num_tokens), np.ones(num_tokens, bool), 16)

    alone = footprint_of(unit(100), NO_CONTEXT)
    assert alone == UnitFootprint(6, 1, True)
    assert footprint_of(unit(96), NO_CONTEXT) == UnitFootprint(6, 0, True)
    assert footprint_of(unit(96, 32), NO_CONTEXT.and_those_of([unit(32)])) == UnitFootprint(6, 0, True)
    assert footprint_of(unit(96, 33), NO_CONTEXT.and_those_of([unit(33)])) == UnitFootprint(6, 7, False)
    # A window reaches the context's whole blocks too: they stand in the stream before the unit.
    assert footprint_of(unit(96, 32), NO_CONTEXT.and_those_of([unit(32)]), 8) == UnitFootprint(6, 8, False)
    assert blocks_needed([alone, UnitFootprint(6, 7, False)], 2) == 12 + 7
    assert blocks_needed([alone], 9) == 6 + 9


@given(worlds())
def test_edge_tokens_are_the_rest_of_each_piece(world: World) -> None:
    for unit in world.units.values():
        geometry = lay_out_unit(unit.position_ids, unit.kept, world.block_size, unit.breaks)
        lengths = geometry.piece_ends - geometry.piece_starts
        assert num_edge_tokens(geometry) == int((lengths % world.block_size).sum())


def test_without_reuse_a_composition_has_the_same_tokens() -> None:
    text = home_text(np.arange(6), np.array([2, 3, 4, 9, 10, 11]), np.ones(6, bool))
    items = (Computed(0, 2), Reused("u", 0, 3), Computed(5, 1), Reused("u", 3, 6), Computed(13, 2))
    found = Composition(items).without_reuse({"u": text.position_ids})
    assert found.items == (Computed(0, 6), Computed(9, 3), Computed(13, 2))
