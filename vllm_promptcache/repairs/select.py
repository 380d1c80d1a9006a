"""Selected tokens: those of each unit that depend most on what stands before it are computed anew.

The idea is CacheBlend's. Here they are chosen once for each unit, by how far its states move when it is
encoded in company, and not for each request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.repairs.unseen import renew_unseen

# For units, the indices of selected tokens: int64, ``(selected,)``, increasing.
Selected = Mapping[Unit, NDArray[np.int64]]


def companies(units: Sequence[Unit]) -> dict[Unit, Unit]:
    """The company of each of a schema's units that has one, of ``units``, all of the schema's.

    That is the unit that ends last of those that end before its first position, stand in no position of
    its context, and are not in it; the first of several.
    """
    ends = [int(unit.position_ids[-1]) for unit in units]
    latest_first = sorted(range(len(units)), key=lambda index: -ends[index])
    found: dict[Unit, Unit] = {}
    for unit in units:
        first = int(unit.position_ids[0])
        before = (units[index] for index in latest_first if ends[index] < first)
        company = next((other for other in before if _is_apart(other, unit.context)), None)
        if company is not None:
            found[unit] = company
    return found


def _is_apart(unit: Unit, context: Iterable[Unit]) -> bool:
    return not any(
        unit is seen or bool(np.isin(unit.position_ids, seen.position_ids, assume_unique=True).any())
        for seen in context
    )


def num_selected(num_kept: int, share: Fraction) -> int:
    """How many of so many kept tokens are selected: the share of them, rounded, a half up."""
    return int(share * num_kept + Fraction(1, 2))


def most_deviant(unit: Unit, deviations: NDArray[np.float64], share: Fraction) -> NDArray[np.int64]:
    """The indices of a unit's selected tokens, increasing, by its kept tokens' deviations ``(kept,)``."""
    kept = np.flatnonzero(unit.kept)
    first = np.argsort(-deviations, kind="stable")[: num_selected(len(kept), share)]
    return np.sort(kept[first]).astype(np.int64)


def renew_selected(segments: Iterable[Segment], selected: Selected) -> list[Segment]:
    """The segments, with the selected tokens of each unit new."""

    def renew(segment: CachedSegment) -> list[Segment]:
        tokens = selected.get(segment.unit)
        if tokens is None:
            return [segment]
        tokens = tokens[np.searchsorted(tokens, segment.start) : np.searchsorted(tokens, segment.end)]
        if not len(tokens):
            return [segment]
        return _renew_tokens(segment, tokens)

    return renew_unseen(segments, renew)


def _renew_tokens(segment: CachedSegment, tokens: NDArray[np.int64]) -> list[Segment]:
    """A segment with some of its tokens new, run by run."""
    last_of_run = np.flatnonzero(np.diff(tokens) != 1)
    starts = tokens[np.concatenate(([0], last_of_run + 1))].tolist()
    ends = (tokens[np.append(last_of_run, len(tokens) - 1)] + 1).tolist()
    parts: list[Segment] = []
    at = segment.start
    for start, end in zip(starts, ends, strict=True):
        if at < start:
            parts.append(segment.part(at, start))
        parts.append(segment.part(start, end).renew(end, "select"))
        at = end
    if at < segment.end:
        parts.append(segment.part(at, segment.end))
    return parts
