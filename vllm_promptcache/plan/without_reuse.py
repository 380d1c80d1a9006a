"""A plan that reuses nothing: the honest baseline of any comparison."""

from __future__ import annotations

import numpy as np

from vllm_promptcache.plan.plain import plain_tokens
from vllm_promptcache.plan.plan import CachedSegment, NewSegment, Plan


def without_reuse(plan: Plan) -> Plan:
    """The same token IDs at the same positions, all of them new.

    Segments at consecutive positions become one, whose source names what it was made of.
    """
    token_ids, position_ids = plain_tokens(plan)
    breaks = np.flatnonzero(np.diff(position_ids) != 1) + 1
    ends = np.cumsum([segment.num_tokens for segment in plan.segments])
    sources = [s.unit.id if isinstance(s, CachedSegment) else s.source for s in plan.segments]
    segments = []
    start = 0
    for end in (*breaks.tolist(), len(token_ids)):
        first, last = np.searchsorted(ends, (start, end - 1), side="right")
        source = ", ".join(dict.fromkeys(sources[first : last + 1]))
        segments.append(NewSegment(token_ids[start:end].tolist(), int(position_ids[start]), source))
        start = end
    return Plan(plan.schema, plan.digest, (), tuple(segments))
