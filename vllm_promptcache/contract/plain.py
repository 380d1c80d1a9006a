"""The plain (uncached) form of a plan: the same token IDs at the same positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.contract.plan import CachedSegment, Plan, Segment


def plain_tokens(plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token IDs and position IDs of the whole prompt, each of shape (tokens,), in position order."""
    parts = [_arrays(segment) for segment in plan.segments]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([positions for _, positions in parts])


def _arrays(segment: Segment) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if isinstance(segment, CachedSegment):
        part = slice(segment.start, segment.end)
        return segment.unit.token_ids[part], segment.unit.position_ids[part] + segment.moved
    return np.array(segment.token_ids, np.int64), segment.position_ids
