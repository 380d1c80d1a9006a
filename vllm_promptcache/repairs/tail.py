"""Tails: what a unit holds behind something that its states have not seen is computed anew.

That is the schema's own text behind modules, such as the words that end a message around them, and a
module's text behind an argument or a module inside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.repairs.step import RepairStep


class Tail(RepairStep):
    """New is a segment before which another of its unit stands, with something else between."""

    def renewed(self, segments: Sequence[Segment]) -> list[int]:
        """All tokens of such segments."""
        counts = [0] * len(segments)
        # For each unit where it stands, the index behind the last segment that follows nothing but its own.
        ended: dict[tuple[Unit, int], int] = {}
        for index, segment in enumerate(segments):
            if isinstance(segment, CachedSegment):
                unit = segment.unit, segment.position
                if ended.get(unit, index) < index:
                    counts[index] = segment.num_tokens
                else:
                    ended[unit] = index + 1
        return counts
