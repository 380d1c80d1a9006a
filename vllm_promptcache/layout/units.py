"""Units and their pieces out of runs of tokens (PML page, "Encoding")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.contract.plan import CachedSegment, NewSegment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.layout.draft import Run
from vllm_promptcache.layout.parts import Piece


def make_unit(id: str, runs: Sequence[Run], context: Sequence[Unit]) -> Unit | None:
    """The unit of runs in position order; None where no token would ever be reused."""
    if not any(run.kept for run in runs):
        return None
    token_ids = np.concatenate([np.asarray(run.token_ids, np.int64) for run in runs])
    position_ids = np.concatenate([np.arange(run.start, run.end, dtype=np.int64) for run in runs])
    kept = np.concatenate([np.full(len(run.token_ids), run.kept) for run in runs])
    for array in (token_ids, position_ids, kept):
        array.flags.writeable = False
    return Unit(id, token_ids, position_ids, kept, tuple(context))


def piece_ranges(unit: Unit, owners: NDArray[np.int64] | None = None) -> Iterator[tuple[int, int]]:
    """The maximal ranges `[start, end)` of a unit's kept tokens without a jump in positions.

    `owners`, of shape (tokens,), splits ranges also where its value changes.
    """
    breaks = np.flatnonzero(
        (np.diff(unit.position_ids) != 1)
        | (unit.kept[1:] != unit.kept[:-1])
        | (False if owners is None else np.diff(owners) != 0)
    )
    edges = [0, *(int(i) + 1 for i in breaks), unit.num_tokens]
    for start, end in pairwise(edges):
        if unit.kept[start]:
            yield start, end


def make_pieces(unit: Unit) -> tuple[Piece, ...]:
    """A unit's kept tokens as ready segments, in position order."""
    return tuple(
        [
            Piece(
                int(unit.position_ids[start]),
                int(unit.position_ids[end - 1]) + 1,
                CachedSegment(unit, start, end),
            )
            for start, end in piece_ranges(unit)
        ]
    )


def new_piece(token_ids: Sequence[int], start: int, source: str) -> Piece:
    """New tokens from position `start` on; at least one."""
    return Piece(start, start + len(token_ids), NewSegment(token_ids, start, source))
