"""Units and their pieces out of runs of tokens (PML page, "Encoding")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.layout.draft import ModuleDraft, ParameterDraft, Run
from vllm_promptcache.layout.parts import ModuleLayout, ParameterLayout, Piece, PoolLayout, UnionLayout

_FEW_TOKENS = 64
# One for all modules that have none, so that a prompt over many of them touches less memory.
_NO_PARAMETERS: Mapping[str, ParameterLayout] = {}
_NO_CHILDREN: Mapping[str, ModuleLayout] = {}
_NO_UNIONS: Mapping[str, UnionLayout] = {}


def lay_out_module(
    draft: ModuleDraft,
    unit: Unit | None,
    children: Mapping[str, ModuleLayout] = _NO_CHILDREN,
    unions: Mapping[str, UnionLayout] = _NO_UNIONS,
    union: UnionLayout | None = None,
    pool: PoolLayout | None = None,
) -> ModuleLayout:
    """The layout of a module whose own text is `unit`, or new text where that is None."""
    kept = [run for run in draft.runs if run.kept]
    return ModuleLayout(
        index=draft.index,
        name=draft.node.name,
        path=draft.path,
        start=draft.start,
        end=draft.end,
        cache=draft.cache,
        num_tokens=sum(len(run.token_ids) for run in kept),
        unit=unit,
        pieces=_own_pieces(draft, unit),
        own_end=kept[-1].end if kept else None,
        children=children,
        unions=unions,
        union=union,
        parameters={p.node.name: _parameter(p) for p in draft.parameters} or _NO_PARAMETERS,
        messages=tuple(draft.messages),
        source=draft.node.place.label("schema"),
        pool=pool,
    )


def _own_pieces(draft: ModuleDraft, unit: Unit | None) -> tuple[Piece, ...]:
    if unit is not None:
        return make_pieces(unit)
    return tuple(
        [new_piece(run.token_ids, run.start, run.place.label("schema")) for run in draft.runs if run.kept]
    )


def _parameter(draft: ParameterDraft) -> ParameterLayout:
    node = draft.node
    default = None
    if draft.default:
        default = new_piece(draft.default, draft.start, node.place.label("schema"))
    return ParameterLayout(node.name, draft.start, node.length, node.required, default)


def make_unit(id: str, runs: Sequence[Run], context: Sequence[Unit]) -> Unit | None:
    """The unit of runs in position order; None where no token would ever be reused."""
    if not any(run.kept for run in runs):
        return None
    token_ids = np.concatenate([np.asarray(run.token_ids, np.int64) for run in runs])
    position_ids = np.concatenate([np.arange(run.start, run.end, dtype=np.int64) for run in runs])
    kept = _kept(runs, len(token_ids))
    for array in (token_ids, position_ids, kept):
        array.flags.writeable = False
    return Unit(id, token_ids, position_ids, kept, tuple(context))


def _kept(runs: Sequence[Run], num_tokens: int) -> NDArray[np.bool_]:
    """Of each token of runs whether it is kept; units of few tokens that all are share an array."""
    if num_tokens <= _FEW_TOKENS and all(run.kept for run in runs):
        return _all_kept(num_tokens)
    return np.concatenate([np.full(len(run.token_ids), run.kept) for run in runs])


@cache
def _all_kept(num_tokens: int) -> NDArray[np.bool_]:
    return np.ones(num_tokens, bool)


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


def move_piece(piece: Piece, by: int) -> Piece:
    """The piece so many positions further on."""
    segment = piece.segment
    if isinstance(segment, CachedSegment):
        moved: Segment = replace(segment, position=segment.position + by)
    else:
        moved = replace(segment, first_position=segment.first_position + by)
    return Piece(piece.start + by, piece.end + by, moved)
