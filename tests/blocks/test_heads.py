"""Heads: what a unit's own blocks and rows do not have, for each token at which a range can begin."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.strategies import World, home_text, worlds
from vllm_promptcache.blocks.composition import Composition, Computed, Reused
from vllm_promptcache.blocks.geometry import lay_out_unit
from vllm_promptcache.blocks.heads import (
    head_end,
    head_end_of_link,
    head_text,
    lay_out_head,
    take_from_heads,
)


@given(worlds(max_units=1))
def test_a_head_has_rows_for_the_rest_of_the_block(world: World) -> None:
    size = world.block_size
    for text in world.units.values():
        unit = lay_out_unit(text.position_ids, text.kept, size, text.breaks)
        for start in np.flatnonzero(text.kept).tolist():
            end = head_end(unit, start)
            if end is None:
                assert unit.rows[start] >= 0 or unit.slots[start] % size == 0
                continue
            assert unit.slots[start] % size > 0
            assert unit.slots[end - 1] == unit.slots[start] // size * size + size - 1
            head = lay_out_head(head_text(text, end), text.home, size)
            assert (head.num_blocks, head.num_rows) == (0, size)
            assert (head.rows[end - size :] == np.arange(size)).all()
            assert (head.rows[: end - size] < 0).all() and (head.slots < 0).all()
            assert text.kept[end - size : end].all()


@given(worlds(max_units=1), st.integers(1, 40))
def test_the_head_of_link_tokens_is_that_of_what_is_left(world: World, link_tokens: int) -> None:
    for text in world.units.values():
        unit = lay_out_unit(text.position_ids, text.kept, world.block_size, text.breaks)
        kept = np.flatnonzero(text.kept).tolist()
        start = kept[link_tokens - 1] + 1 if link_tokens <= len(kept) else len(text.kept)
        expected = head_end(unit, start) if start in kept else None
        assert head_end_of_link(text, unit, link_tokens) == expected


def test_only_ranges_that_begin_inside_a_block_are_taken_from_heads() -> None:
    text = home_text(np.arange(40), np.arange(40), np.ones(40, bool))
    unit = lay_out_unit(text.position_ids, text.kept, 16)
    tail = Computed(40, 1)
    for start, expected in (
        (0, [Reused("u", 0, 40)]),
        (5, [Reused("head of u up to 16", 5, 16), Reused("u", 16, 40)]),
        (16, [Reused("u", 16, 40)]),
        (17, [Reused("head of u up to 32", 17, 32), Reused("u", 32, 40)]),
        (33, [Reused("u", 33, 40)]),
    ):
        composition = Composition((Reused("u", start, 40), tail))
        found = take_from_heads(composition, {"u": unit}, lambda key, end: f"head of {key} up to {end}")
        assert list(found.items) == [*expected, tail]
