"""How a unit lies in its blocks and edge rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.strategies import World, worlds
from vllm_promptcache.blocks.geometry import find_pieces, lay_out_unit


def naive_pieces(positions: list[int], kept: list[bool], breaks: tuple[int, ...]) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    for token, position in enumerate(positions):
        if not kept[token]:
            continue
        goes_on = token and kept[token - 1] and positions[token - 1] == position - 1
        if goes_on and token not in breaks:
            pieces[-1] = (pieces[-1][0], token + 1)
        else:
            pieces.append((token, token + 1))
    return pieces


@given(worlds(max_units=1))
def test_pieces_are_the_maximal_runs_of_kept_tokens(world: World) -> None:
    for unit in world.units.values():
        starts, ends = find_pieces(unit.position_ids, unit.kept, unit.breaks)
        found = list(zip(starts.tolist(), ends.tolist(), strict=True))
        assert found == naive_pieces(unit.position_ids.tolist(), unit.kept.tolist(), unit.breaks)


def test_a_unit_without_tokens_has_no_pieces() -> None:
    empty = np.empty(0, np.int64)
    geometry = lay_out_unit(empty, np.empty(0, bool), 16)
    assert (len(geometry.piece_starts), geometry.num_blocks, geometry.num_rows) == (0, 0, 0)


@given(worlds(max_units=1))
def test_every_kept_token_is_stored_and_no_slot_is_shared(world: World) -> None:
    size = world.block_size
    for unit in world.units.values():
        geometry = lay_out_unit(unit.position_ids, unit.kept, size, unit.breaks)
        kept = np.flatnonzero(unit.kept)
        stored = geometry.slots >= 0
        rows = geometry.rows >= 0
        assert (stored | rows)[kept].all()
        assert not (stored | rows)[~unit.kept].any()
        assert sorted(geometry.slots[stored].tolist()) == list(range(geometry.num_blocks * size))
        assert sorted(geometry.rows[rows].tolist()) == list(range(geometry.num_rows))


@given(worlds(max_units=1))
def test_each_piece_begins_on_a_block_and_its_last_block_is_kept_as_rows(world: World) -> None:
    size = world.block_size
    for unit in world.units.values():
        geometry = lay_out_unit(unit.position_ids, unit.kept, size, unit.breaks)
        pieces = zip(geometry.piece_starts.tolist(), geometry.piece_ends.tolist(), strict=True)
        for index, (start, end) in enumerate(pieces):
            whole = (end - start) // size * size
            own = geometry.slots[start : start + whole]
            assert own.tolist() == [geometry.first_blocks[index] * size + i for i in range(whole)]
            last = start + (end - start - 1) // size * size
            assert (geometry.rows[last:end] >= 0).all()
            assert (geometry.rows[start:last] < 0).all()
            assert all(geometry.piece_of(token) == index for token in range(start, end))


@given(worlds(max_units=1), st.integers(2, 40))
def test_what_a_window_counts_before_a_pieces_end_is_kept_as_rows(world: World, window: int) -> None:
    """Also before the last token alone in its block, which a prompt computes anew."""
    for unit in world.units.values():
        geometry = lay_out_unit(unit.position_ids, unit.kept, world.block_size, unit.breaks, window)
        for start, end in zip(geometry.piece_starts.tolist(), geometry.piece_ends.tolist(), strict=True):
            for last in range(max(start + 1, end - 1), end + 1):
                tail = min(window - 1, last - start)
                assert (geometry.rows[last - tail : last] >= 0).all()
