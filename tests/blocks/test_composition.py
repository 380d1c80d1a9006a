"""Compositions, and what a slot layout refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.strategies import World, compositions, worlds
from vllm_promptcache.blocks.composition import Composition, Computed, Reused
from vllm_promptcache.blocks.geometry import lay_out_unit
from vllm_promptcache.blocks.rows import Chunk, moved_tokens, split_rows
from vllm_promptcache.blocks.slot_layout import lay_out_slots


@given(st.data(), worlds())
def test_cached_tokens_come_first_and_each_part_stays_in_order(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    token_ids = list(range(composition.num_tokens))
    is_cached = [isinstance(i, Reused) for i in composition.items for _ in range(_num_tokens(i))]
    ordered = composition.cached_first(token_ids)
    cached = [t for t in token_ids if is_cached[t]]
    assert ordered == cached + [t for t in token_ids if not is_cached[t]]
    assert len(cached) == composition.num_cached_tokens


def _num_tokens(item: Reused | Computed) -> int:
    return item.num_tokens if isinstance(item, Computed) else item.end - item.start


def test_a_prompt_of_another_length_does_not_fit() -> None:
    composition = Composition((Reused("a", 0, 3), Computed(3, 2)))
    with pytest.raises(ValueError, match="5 tokens does not fit a prompt of 6"):
        composition.cached_first([1] * 6)


def test_units_are_named_once_in_order_of_use() -> None:
    composition = Composition((Reused("b", 0, 1), Reused("a", 0, 1), Reused("b", 2, 3), Computed(9, 1)))
    assert composition.unit_keys == ("b", "a")


def test_a_range_that_needs_a_row_which_is_not_kept_is_refused() -> None:
    geometry = lay_out_unit(np.arange(10), np.ones(10, bool), 4)
    with pytest.raises(ValueError, match="not kept as edge rows"):
        lay_out_slots(Composition((Reused("a", 0, 6), Computed(6, 1))), {"a": geometry}, 4, 1000)


def test_new_tokens_at_the_end_alone_are_one_ordinary_row() -> None:
    """The usual prompt costs the runner nothing: no extra rows, no moved slots."""
    units = {n: lay_out_unit(np.arange(b, b + 70), np.ones(70, bool), 16) for n, b in (("a", 0), ("b", 99))}
    slot_layout = lay_out_slots(
        Composition((Reused("a", 0, 70), Reused("b", 0, 70), Computed(200, 5))), units, 16, 1000
    )
    chunk = Chunk(140, 5, slot_layout)
    assert len(slot_layout.row_starts) == 1
    assert split_rows([chunk]) is None
    assert len(moved_tokens(chunk)[0]) == 0


def test_new_text_between_whole_blocks_and_after_them_are_two_rows() -> None:
    geometry = lay_out_unit(np.arange(64), np.ones(64, bool), 16)
    later = lay_out_unit(np.arange(100, 164), np.ones(64, bool), 16)
    items = (Reused("a", 0, 64), Computed(64, 3), Reused("b", 0, 64), Computed(164, 2))
    slot_layout = lay_out_slots(Composition(items), {"a": geometry, "b": later}, 16, 1000)
    rows = split_rows([Chunk(128, 5, slot_layout)])
    assert rows is not None
    assert rows.query_lens.tolist() == [3, 2]
    assert rows.shared_blocks.tolist() == [4, 8]
    assert rows.seq_lens.tolist() == [64 + 3, 128 + 5]
