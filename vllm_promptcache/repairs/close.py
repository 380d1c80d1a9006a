"""Closing up: what is new behind the last reused token stands right behind it, without a gap.

Modules that a prompt leaves out at the end, and a union's shorter members, leave positions that nothing
takes between what is included and the words behind it. Reused states cannot move; new tokens can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Segment
from vllm_promptcache.repairs.tail import Tail


class Close(Tail):
    """What `Tail` makes new; and what is new behind all that is reused closes up."""

    def placed(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """The segments, those behind the last reused one at consecutive positions from its end on.

        Nothing changes where nothing is reused.
        """
        closed: list[Segment] = list(segments)
        reused = [(index, s) for index, s in enumerate(closed) if isinstance(s, CachedSegment)]
        if not reused:
            return closed
        last, segment_before = reused[-1]
        position = segment_before.end_position
        for index in range(last + 1, len(closed)):
            segment = closed[index]
            assert isinstance(segment, NewSegment)
            closed[index] = replace(segment, first_position=position)
            position += segment.num_tokens
        return closed
