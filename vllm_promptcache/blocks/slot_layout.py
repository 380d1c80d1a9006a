"""SlotLayout: where each token of a composed request stands in its block table.

A request's block table is its *shared* blocks, whole blocks of the units it reuses in position order,
followed by its *private* blocks. Keys carry their rotation, so attention does not care about the order
of cached tokens in a table. The private blocks hold the *private tokens* in position order: edge rows
of units, new tokens, then generated tokens. An *offset* is an index among them. vLLM counts a request's
tokens cached first, so token ``i >= num_cached_tokens`` is the new token ``i - num_cached_tokens``, in
position order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.composition import Composition, Computed, Reused
from vllm_promptcache.blocks.geometry import StoredRange, UnitGeometry
from vllm_promptcache.blocks.unit_key import UnitKey


class SharedBlocks(NamedTuple):
    """The half-open range ``[start, end)`` of a unit's own blocks."""

    unit: UnitKey
    start: int
    end: int


class EdgeRows(NamedTuple):
    """The half-open range ``[start, end)`` of a unit's edge rows, to stand at ``offset``."""

    unit: UnitKey
    start: int
    end: int
    offset: int


@dataclass(frozen=True, eq=False)
class SlotLayout:
    """A composed request's tokens in shared blocks, private blocks and rows.

    ``positions`` and ``offsets`` (int64, ``(new tokens,)``) are a new token's position and its offset.
    A *row* is a run of new tokens that sees the same shared blocks and whose private tokens
    before it are the first ones: ``row_starts`` (int64, ``(rows,)``) are the indices of the new
    tokens where rows begin, ``row_shared_blocks`` how many shared blocks each sees. ``item_offsets`` has for
    each item of the composition the offset at which it begins.
    """

    block_size: int
    shared: tuple[SharedBlocks, ...]
    edge_rows: tuple[EdgeRows, ...]
    num_shared_blocks: int
    num_cached_tokens: int
    num_prompt_tokens: int
    positions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    row_starts: NDArray[np.int64]
    row_shared_blocks: NDArray[np.int64]
    item_offsets: tuple[int, ...]

    @cached_property
    def next_position(self) -> int:
        """The position of the first generated token."""
        return int(self.positions[-1]) + 1

    @cached_property
    def position_shift(self) -> int:
        """What to add to a generated token's index to have its position."""
        return self.next_position - self.num_prompt_tokens


def lay_out_slots(
    composition: Composition,
    units: Mapping[UnitKey, UnitGeometry],
    block_size: int,
    num_positions: int,
    window: int = 0,
) -> SlotLayout:
    """Lay a composition out over units laid out for ``block_size``, and check that it is one.

    A window counts states back from a token's own by their index in its row's table. Only private tokens
    are in position order without holes, so where a model has layers with windows, the last ``window`` - 1
    tokens before each run of new tokens are private: as edge rows, also where they fill blocks. What is
    farther away no window reaches, in whatever order it stands.

    Raises:
        ValueError: positions do not increase, or leave none of ``num_positions`` to generate at, a range
            is not part of one piece of its unit or needs an edge row that is not kept, or the last item
            is not computed.
    """
    if not composition.items or isinstance(composition.items[-1], Reused):
        raise ValueError("the last token of a composed prompt must be computed")
    laid_out = _Slots()
    item_offsets: list[int] = []
    position = 0
    for item, tail in zip(composition.items, _tails(composition.items, window), strict=True):
        item_offsets.append(laid_out.offset)
        if isinstance(item, Reused):
            stored = units[item.unit].stored_range(item.start, item.end, tail)
            first, num_tokens = stored.first_position, item.end - item.start
            laid_out.reuse(item.unit, stored)
        else:
            first, num_tokens = item
            laid_out.compute(first, num_tokens)
        position = _next_position(item, position, first, num_tokens, num_positions)
    return laid_out.finished(block_size, tuple(item_offsets))


class _Slots:
    """A slot layout in the making: items are added in position order. ``offset`` is the next one's."""

    def __init__(self) -> None:
        self.offset = 0
        self._shared: list[SharedBlocks] = []
        self._edges: list[EdgeRows] = []
        self._positions: list[NDArray[np.int64]] = []
        self._offsets: list[NDArray[np.int64]] = []
        self._row_starts: list[int] = []
        self._row_shared: list[int] = []
        self._num_shared = self._num_new = 0
        self._row_end = -1  # the offset at which the open row may be continued

    def reuse(self, unit: UnitKey, stored: StoredRange) -> None:
        """Whole blocks are shared; edge rows are private."""
        for start, end in stored.rows:
            self._edges.append(EdgeRows(unit, start, end, self.offset))
            self.offset += end - start
        if stored.blocks is not None:
            start, end = stored.blocks
            self._shared.append(SharedBlocks(unit, start, end))
            self._num_shared += end - start

    def compute(self, first_position: int, num_tokens: int) -> None:
        """New tokens come next: in the open row, unless cached tokens came between."""
        if self.offset != self._row_end or self._row_shared[-1] != self._num_shared:
            self._row_starts.append(self._num_new)
            self._row_shared.append(self._num_shared)
        self._positions.append(np.arange(first_position, first_position + num_tokens))
        self._offsets.append(np.arange(self.offset, self.offset + num_tokens))
        self._num_new += num_tokens
        self._row_end = self.offset = self.offset + num_tokens

    def finished(self, block_size: int, item_offsets: tuple[int, ...]) -> SlotLayout:
        """What was laid out."""
        num_cached = self._num_shared * block_size + self.offset - self._num_new
        return SlotLayout(
            block_size,
            tuple(self._shared),
            tuple(self._edges),
            self._num_shared,
            num_cached,
            num_cached + self._num_new,
            _joined(self._positions),
            _joined(self._offsets),
            np.array(self._row_starts, np.int64),
            np.array(self._row_shared, np.int64),
            item_offsets,
        )


def _joined(runs: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(runs) if len(runs) > 1 else runs[0]


def _tails(items: Sequence[Reused | Computed], window: int) -> list[int]:
    """How many of each reused item's last tokens a window of a later new token counts."""
    tails = [0] * len(items)
    if window > 1:
        reached = 0
        for index in reversed(range(len(items))):
            item = items[index]
            if isinstance(item, Reused):
                tails[index] = min(item.end - item.start, reached)
                reached -= tails[index]
            else:
                reached = window - 1
    return tails


def _next_position(
    item: Reused | Computed, position: int, first: int, num_tokens: int, num_positions: int
) -> int:
    if num_tokens < 1 or first < position:
        raise ValueError(f"{item} cannot begin at position {first}: {position} comes next")
    position = first + num_tokens
    if position >= num_positions:
        raise ValueError(f"the prompt ends at position {position}; the model has {num_positions} positions")
    return position


def edge_rows_from(slot_layout: SlotLayout, offset: int) -> tuple[EdgeRows, ...]:
    """The edge rows that stand at or after an offset; a range across it is cut."""
    if not offset:
        return slot_layout.edge_rows
    after: list[EdgeRows] = []
    for rows in reversed(slot_layout.edge_rows):  # those behind an offset are mostly few
        unit, start, end, first = rows
        if first + end - start <= offset:
            break
        cut = max(offset - first, 0)
        after.append(EdgeRows(unit, start + cut, end, first + cut))
    return tuple(reversed(after))
