"""How one unit's kept tokens lie in its own KV blocks and in its captured edge rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Prompts ask for few different ranges of a unit; the rest would be somebody trying them all.
MAX_KNOWN_RANGES = 1024


class StoredRange(NamedTuple):
    """How a range of a unit's tokens is stored: whole ``blocks``, and edge ``rows`` around them.

    Half-open ranges of the unit's own blocks, or None, and of its edge rows. ``first_position`` is the
    position of the range's first token.
    """

    first_position: int
    blocks: tuple[int, int] | None
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class UnitGeometry:
    """Where each token of a unit is stored, for one block size.

    A *piece* is a maximal run of kept tokens at consecutive positions without a break of the unit in
    it: nothing can come to stand inside it, so it is reused whole. Each piece fills whole blocks from
    its own block boundary on. Tokens past a piece's last whole block are *edge rows*: key and value rows
    kept beside the blocks and written into each request's private blocks. A piece's last block is kept
    as rows even when it is full, so that a prompt can drop the piece's last token and compute it anew.
    For models with windows so are the blocks before it that hold the last tokens which a window counts.

    Arrays over tokens have shape ``(tokens,)``, arrays over pieces ``(pieces,)``, all int64.
    ``position_ids`` are the unit's.
    ``piece_starts`` and ``piece_ends`` are token indices, half-open; ``first_blocks`` counts in the
    unit's own blocks. ``slots`` is a token's offset within the unit's blocks in slots, ``rows`` its
    index among the unit's edge rows; -1 where it has none.
    """

    block_size: int
    position_ids: NDArray[np.int64]
    piece_starts: NDArray[np.int64]
    piece_ends: NDArray[np.int64]
    first_blocks: NDArray[np.int64]
    slots: NDArray[np.int64]
    rows: NDArray[np.int64]
    num_blocks: int
    num_rows: int
    _ranges: dict[tuple[int, int, int], StoredRange] = field(default_factory=dict, repr=False)

    def stored_range(self, start: int, end: int, tail: int = 0) -> StoredRange:
        """How the tokens ``[start, end)`` are stored, at least the last ``tail`` of them as edge rows;
        worked out once, as prompts ask for the same.

        Raises:
            ValueError: the range is not part of one piece, or needs an edge row that is not kept.
        """
        found = self._ranges.get((start, end, tail))
        if found is None:
            found = self._find_range(start, end, tail)
            if len(self._ranges) >= MAX_KNOWN_RANGES:
                self._ranges.clear()
            self._ranges[start, end, tail] = found
        return found

    def _find_range(self, start: int, end: int, tail: int) -> StoredRange:
        piece = self.piece_of(start) if 0 <= start < end <= len(self.slots) else len(self.piece_starts)
        if (
            piece == len(self.piece_starts)
            or not self.piece_starts[piece] <= start < end <= self.piece_ends[piece]
        ):
            raise ValueError(f"tokens [{start}, {end}) are not within one piece")
        position, base, size = int(self.position_ids[start]), int(self.piece_starts[piece]), self.block_size
        first, last = -(-(start - base) // size), (end - tail - base) // size
        if first >= last or not self.num_blocks:
            return StoredRange(position, None, (self._rows_of(start, end),))
        own = int(self.first_blocks[piece])
        around = ((start, base + first * size), (base + last * size, end))
        return StoredRange(
            position, (own + first, own + last), tuple(self._rows_of(*r) for r in around if r[0] < r[1])
        )

    def _rows_of(self, start: int, end: int) -> tuple[int, int]:
        first, last = int(self.rows[start]), int(self.rows[end - 1])
        if first < 0 or last - first != end - 1 - start:
            raise ValueError(f"tokens [{start}, {end}) are not kept as edge rows")
        return first, last + 1

    def piece_of(self, token: int) -> int:
        """The index of the piece that holds a kept token."""
        return int(np.searchsorted(self.piece_ends, token, side="right"))


def find_pieces(
    position_ids: NDArray[np.int64], kept: NDArray[np.bool_], breaks: Sequence[int] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end token indices of a unit's pieces, each of shape ``(pieces,)``."""
    if not len(position_ids):
        empty = np.empty(0, np.int64)
        return empty, empty
    starts_run = np.empty(len(position_ids), bool)
    starts_run[0] = True
    starts_run[1:] = (np.diff(position_ids) != 1) | ~kept[:-1]
    starts_run[list(breaks)] = True
    starts = np.flatnonzero(starts_run & kept)
    bounds = np.append(np.flatnonzero(starts_run | ~kept), len(kept))
    ends = bounds[np.searchsorted(bounds, starts, side="right")]
    return starts.astype(np.int64), ends.astype(np.int64)


def lay_out_unit(
    position_ids: NDArray[np.int64],
    kept: NDArray[np.bool_],
    block_size: int,
    breaks: Sequence[int] = (),
    window: int = 0,
    in_blocks: bool = True,
) -> UnitGeometry:
    """Lay a unit's tokens (``(tokens,)`` arrays) out in blocks of ``block_size`` tokens.

    ``window`` is the most states that a layer's window counts, 0 without windows: see `lay_out_slots`. Where
    it counts all that there can be no block is ever shared, and none are filled: ``in_blocks`` is false.
    """
    starts, ends = find_pieces(position_ids, kept, breaks)
    lengths = ends - starts
    whole = lengths // block_size if in_blocks else np.zeros_like(lengths)
    first_blocks = np.concatenate(([0], np.cumsum(whole)))[:-1].astype(np.int64)
    slots = np.full(len(kept), -1, np.int64)
    is_row = np.zeros(len(kept), bool)
    for start, end, blocks, first in zip(starts, ends, whole, first_blocks, strict=True):
        stored = int(blocks) * block_size
        slots[start : start + stored] = first * block_size + np.arange(stored)
        first_row = (end - start - 1) // block_size * block_size
        if window > 1:  # the last tokens of a range that ends in the last block, or where it begins
            first_row = max((first_row + 1 - window) // block_size * block_size, 0)
        is_row[start + first_row : end] = True
    rows = np.where(is_row, np.cumsum(is_row) - 1, -1)
    return UnitGeometry(
        block_size, position_ids, starts, ends, first_blocks, slots, rows, int(whole.sum()), int(is_row.sum())
    )
