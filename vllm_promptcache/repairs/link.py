"""Link tokens: the first tokens of each unit are computed anew for the request (EPIC's LegoLink).

They see everything before them, where the cached ones have seen their own unit and its context only. The
rest of the unit is reused as it was encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit, token_after_kept
from vllm_promptcache.repairs.step import RepairStep


@dataclass(frozen=True)
class Link(RepairStep):
    """New are the first ``num_tokens`` kept tokens of each unit, counted in the whole unit, whether the
    prompt includes them all or not.

    A segment stays as it is where all before it is reused, of its own unit or of that unit's context:
    nothing is before it that it has not seen.
    """

    num_tokens: int

    def renewed(self, segments: Sequence[Segment]) -> list[int]:
        """What each segment holds of them."""
        counts = [0] * len(segments)
        # The units reused so far, with how far from home they stand; None once anything was new.
        before: dict[tuple[Unit, int], None] | None = {}
        # The segment before, if it has seen all that is before it.
        last: CachedSegment | None = None
        for index, segment in enumerate(segments):
            if not isinstance(segment, CachedSegment):
                before = last = None
                continue
            has_seen = before is not None and _has_seen(segment, before, last)
            last = segment if has_seen else None
            if not has_seen:
                end = token_after_kept(segment.unit.kept, self.num_tokens)
                counts[index] = min(max(end - segment.start, 0), segment.num_tokens)
            if counts[index]:
                before = last = None
            elif before is not None:
                before[segment.unit, segment.moved] = None
        return counts


def _has_seen(
    segment: CachedSegment, before: dict[tuple[Unit, int], None], last: CachedSegment | None
) -> bool:
    """Whether a segment has seen all units before it, of which `last` has seen those before itself."""
    unit, moved = segment.unit, segment.moved
    if last is not None and last.unit in (unit, unit.stem):
        return last.moved == moved
    seen = {unit, *unit.context}
    return all(other in seen and by == moved for other, by in before)
