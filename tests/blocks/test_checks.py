"""What a request may ask to be composed, and what it may not."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.strategies import World, compositions, worlds
from vllm_promptcache.blocks.checks import check_place, check_text
from vllm_promptcache.blocks.composition import Composition, Computed, Reused, UnitText
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit
from vllm_promptcache.blocks.slot_layout import lay_out_slots
from vllm_promptcache.blocks.unit_key import UnitKey


def geometries(world: World) -> dict[UnitKey, UnitGeometry]:
    return {
        name: lay_out_unit(unit.position_ids, unit.kept, world.block_size, breaks=unit.breaks)
        for name, unit in world.units.items()
    }


def check(world: World, composition: Composition, num_positions: int = 100_000) -> int:
    return lay_out_slots(composition, geometries(world), world.block_size, num_positions).next_position


def refusal(world: World, composition: Composition) -> str | None:
    try:
        check(world, composition)
    except ValueError as error:
        return str(error)
    return None


@given(st.data(), worlds())
def test_every_composition_of_a_plan_is_fine(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    for text in world.units.values():
        check_text(text, 100_000, 100_000)
    last = composition.items[-1]
    assert isinstance(last, Computed)
    end = last.first_position + last.num_tokens
    assert check(world, composition, end + 1) == end
    with pytest.raises(ValueError, match="ends at position"):
        check(world, composition, end)


@given(st.data(), worlds(max_sites=6))
def test_items_in_another_order_are_refused(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    items = list(data.draw(st.permutations(composition.items)))
    if tuple(items) != composition.items:
        with pytest.raises(ValueError, match=r"cannot begin|must be computed"):
            check(world, Composition(tuple(items)))


@given(st.data(), worlds(max_units=1), st.integers(-3, 30), st.integers(-3, 30))
def test_ranges_outside_of_a_piece_are_refused(
    data: st.DataObject, world: World, start: int, end: int
) -> None:
    for name, unit in world.units.items():
        composition = Composition((Reused(name, start, end), Computed(10_000, 1)))
        inside = 0 <= start < end <= len(unit.kept)
        part = slice(start, end)
        is_cut = any(start < token < end for token in unit.breaks)
        is_piece = (
            inside and not is_cut and unit.kept[part].all() and (np.diff(unit.position_ids[part]) == 1).all()
        )
        if is_piece:
            refused = refusal(world, composition)
            assert refused is None or refused.endswith("are not kept as edge rows")
        else:
            assert refusal(world, composition) == f"tokens [{start}, {end}) are not within one piece"


def test_units_stand_between_the_first_position_and_the_last() -> None:
    text = UnitText(np.arange(4), np.array([0, 1, 2, 5]), np.ones(4, bool), ())
    check_place(text, 0, 6)
    check_place(text, 94, 100)
    for position, num_positions in ((-1, 100), (95, 100), (0, 5)):
        with pytest.raises(ValueError, match="cannot stand"):
            check_place(text, position, num_positions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": np.arange(3)}, "3 tokens, 4 positions"),
        ({"kept": np.ones(5, bool)}, "5 kept"),
        ({"token_ids": np.array([1, 2, 3, 50])}, "not among 50"),
        ({"token_ids": np.array([1, 2, -3, 4])}, "not among 50"),
        ({"positions": np.array([0, 1, 1, 2])}, "do not increase"),
        ({"positions": np.array([-1, 1, 2, 3])}, "do not increase"),
        ({"positions": np.array([0, 1, 2, 99])}, None),
        ({"breaks": (1, 3)}, None),
        ({"breaks": (0,)}, "cannot have breaks"),
        ({"breaks": (4,)}, "cannot have breaks"),
        ({"positions": np.array([0, 1, 2, 100])}, "do not increase"),
    ],
)
def test_texts(changes: dict[str, Any], message: str | None) -> None:
    fine: dict[str, Any] = {"token_ids": np.arange(4), "positions": np.arange(4), "kept": np.ones(4, bool)}
    text = UnitText(**(fine | changes), context=())
    if message is None:
        check_text(text, 100, 50)
        return
    with pytest.raises(ValueError, match=message):
        check_text(text, 100, 50)


def test_an_empty_text_is_refused() -> None:
    empty = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="0 tokens"):
        check_text(UnitText(empty, empty, np.empty(0, bool), ()), 100, 50)
