"""What repairs share: segments that stay as they are, having seen all that is before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Segment
from vllm_promptcache.contract.unit import Unit


def renew_unseen(
    segments: Iterable[Segment], renew: Callable[[CachedSegment], Sequence[Segment]]
) -> list[Segment]:
    """The segments, those that reuse a unit as ``renew`` has them.

    A segment stays as it is where all before it is reused, of its own unit or of that unit's context:
    nothing is before it that it has not seen.
    """
    renewed: list[Segment] = []
    # The units reused so far, with how far from home they stand; None once anything was new.
    before: dict[tuple[Unit, int], None] | None = {}
    for segment in segments:
        if not isinstance(segment, CachedSegment):
            before = None
            renewed.append(segment)
            continue
        unit, moved = segment.unit, segment.moved
        parts: Sequence[Segment] = (segment,)
        if before is None or any(
            other_moved != moved or (seen is not unit and seen not in unit.context)
            for seen, other_moved in before
        ):
            parts = renew(segment)
        if before is not None:
            if any(isinstance(part, NewSegment) for part in parts):
                before = None
            else:
                before[unit, moved] = None
        renewed += parts
    return renewed
