"""Rows: how one step's tokens are presented to an attention backend.

Attention is causal within a row: the queries are the last tokens of the row's sequence. A run of new
tokens in the middle of a composed prompt sees fewer blocks than the request's last run, so it becomes a
row of its own, with a table of the shared blocks before it and the private blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.slot_layout import SlotLayout


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one step, in token order; all arrays int64 of shape ``(rows,)``.

    ``requests`` is each row's index in the batch, ``query_lens`` its new tokens, ``seq_lens`` the
    tokens its table covers, ``shared_blocks`` how many of the request's ``all_shared_blocks`` the table
    keeps before the private ones. ``ends_request`` is 1 where a row covers all that its request has then.
    """

    requests: NDArray[np.int64]
    query_lens: NDArray[np.int64]
    seq_lens: NDArray[np.int64]
    shared_blocks: NDArray[np.int64]
    all_shared_blocks: NDArray[np.int64]

    ends_request: NDArray[np.int64]

    def missing(self, query_lens: NDArray[np.integer]) -> NDArray[np.int64]:
        """By row, how many new tokens more it has where requests have ``query_lens``.
        They stand behind the others of a request, in the last of its rows in the step."""
        mine = np.bincount(self.requests, self.query_lens, len(query_lens)).astype(np.int64)
        is_last = np.append(self.requests[1:] != self.requests[:-1], True)
        missing: NDArray[np.int64] = np.where(is_last, (query_lens - mine)[self.requests], 0)
        return missing


@dataclass(frozen=True)
class Chunk:
    """What one request has scheduled in a step: tokens ``[computed, computed + scheduled)``."""

    computed: int
    scheduled: int
    slot_layout: SlotLayout | None

    @property
    def has_middle_rows(self) -> bool:
        """Whether tokens of rows before the request's last one are among those scheduled."""
        slot_layout = self.slot_layout
        return (
            slot_layout is not None
            and self.computed - slot_layout.num_cached_tokens < slot_layout.row_starts[-1]
        )


def positions_of(chunk: Chunk) -> NDArray[np.int64]:
    """The positions of a composed request's scheduled tokens; int64, ``(scheduled,)``."""
    assert chunk.slot_layout is not None
    slot_layout = chunk.slot_layout
    first, end = chunk.computed, chunk.computed + chunk.scheduled
    prompt_end = min(end, slot_layout.num_prompt_tokens)
    prompt = slot_layout.positions[
        first - slot_layout.num_cached_tokens : max(prompt_end - slot_layout.num_cached_tokens, 0)
    ]
    if end == prompt_end:
        return prompt
    generated = np.arange(max(first, prompt_end), end, dtype=np.int64) + slot_layout.position_shift
    return np.concatenate((prompt, generated)) if first < prompt_end else generated


def moved_tokens(chunk: Chunk) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Scheduled tokens whose slot is not the one of their index, and their slots' indices.

    Both int64: indices within the chunk, and logical slot indices in the request's block table. Tokens
    of the last row always stand at their own index: everything private is before them.
    """
    assert chunk.slot_layout is not None
    slot_layout = chunk.slot_layout
    first = chunk.computed - slot_layout.num_cached_tokens
    last = min(first + chunk.scheduled, int(slot_layout.row_starts[-1]))
    if first >= last:
        empty = np.empty(0, np.int64)
        return empty, empty
    logical = slot_layout.num_shared_blocks * slot_layout.block_size + slot_layout.offsets[first:last]
    return np.arange(last - first), logical


def split_rows(chunks: Sequence[Chunk]) -> Rows | None:
    """The rows of a step, or None when each request is one ordinary row."""
    if not any(chunk.has_middle_rows for chunk in chunks):
        return None
    parts: list[tuple[int, int, int, int, int, int]] = []
    for request, chunk in enumerate(chunks):
        if not chunk.has_middle_rows:
            parts.append((request, chunk.scheduled, chunk.computed + chunk.scheduled, 0, 0, 1))
            continue
        assert chunk.slot_layout is not None
        parts += [(request, *row) for row in _split_chunk(chunk, chunk.slot_layout)]
    return Rows(*np.array(parts, np.int64).T)


def _split_chunk(chunk: Chunk, slot_layout: SlotLayout) -> list[tuple[int, int, int, int, int]]:
    first = chunk.computed - slot_layout.num_cached_tokens
    end = first + chunk.scheduled
    rows: list[tuple[int, int, int, int, int]] = []
    bounds = [*slot_layout.row_starts.tolist(), end]
    all_shared = slot_layout.num_shared_blocks
    for index, shared in enumerate(slot_layout.row_shared_blocks.tolist()):
        low, high = max(bounds[index], first), min(bounds[index + 1], end)
        if low >= high:
            continue
        if index == len(slot_layout.row_starts) - 1:
            rows.append((high - low, chunk.computed + chunk.scheduled, all_shared, all_shared, 1))
        else:
            covered = shared * slot_layout.block_size + int(slot_layout.offsets[high - 1]) + 1
            rows.append((high - low, covered, shared, all_shared, 0))
    return rows
