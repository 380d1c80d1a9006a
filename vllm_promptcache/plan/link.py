"""Link tokens: the first tokens of each unit are computed anew for the request (EPIC's LegoLink).

They see everything before them, where the cached ones have seen their own unit and its context only. The
rest of the unit is reused as it was encoded.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_promptcache.plan.plan import CachedSegment, Segment
from vllm_promptcache.plan.unit import Unit, token_after_kept


def renew_heads(segments: Iterable[Segment], num_tokens: int) -> list[Segment]:
    """The segments, with the first ``num_tokens`` kept tokens of each unit new.

    Tokens are counted in the whole unit, whether the prompt includes them all or not. A segment stays as
    it is where all before it is reused, of its own unit or of that unit's context: nothing is before it
    that it has not seen.
    """
    renewed: list[Segment] = []
    # The units reused so far; None once anything was new.
    before: dict[Unit, None] | None = {}
    for segment in segments:
        if not isinstance(segment, CachedSegment):
            before = None
            renewed.append(segment)
            continue
        unit = segment.unit
        cut = segment.start
        if before is None or any(seen is not unit and seen not in unit.context for seen in before):
            cut = min(max(token_after_kept(unit.kept, num_tokens), segment.start), segment.end)
        if cut > segment.start:
            before = None
            renewed.append(segment.renew(cut, "link"))
        elif before is not None:
            before[unit] = None
        if cut < segment.end:
            renewed.append(CachedSegment(unit, cut, segment.end))
    return renewed
