"""Link tokens: the first tokens of each unit are computed anew for the request (EPIC's LegoLink).

They see everything before them, where the cached ones have seen their own unit and its context only. The
rest of the unit is reused as it was encoded.
"""

from __future__ import annotations

from itertools import takewhile

from vllm_promptcache.plan.plan import CachedSegment, NewSegment, Plan, Segment


def link(plan: Plan, num_tokens: int) -> Plan:
    """The plan with the first ``num_tokens`` kept tokens of each included unit computed anew.

    Tokens are counted in the whole unit, whether the prompt includes them all or not. What stands at the
    very beginning of the prompt is left alone: with nothing before it, it would be computed the same.
    """
    first = plan.segments[0]
    beginning = (
        len(list(takewhile(lambda s: isinstance(s, CachedSegment) and s.unit is first.unit, plan.segments)))
        if isinstance(first, CachedSegment)
        else 0
    )
    segments: list[Segment] = [*plan.segments[:beginning]]
    for segment in plan.segments[beginning:]:
        segments += [segment] if isinstance(segment, NewSegment) else _link(segment, num_tokens)
    return Plan(plan.schema, plan.digest, plan.units, tuple(segments))


def _link(segment: CachedSegment, num_tokens: int) -> list[Segment]:
    unit, start = segment.unit, segment.start
    cut = min(max(unit.token_after_kept(num_tokens), start), segment.end)
    parts: list[Segment] = []
    if cut > start:
        first = int(unit.position_ids[start])
        parts.append(NewSegment(unit.token_list[start:cut], first, f"link:{unit.id}"))
    if cut < segment.end:
        parts.append(CachedSegment(unit, cut, segment.end))
    return parts
