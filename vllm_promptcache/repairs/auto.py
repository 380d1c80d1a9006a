"""The default: what a unit holds behind other modules is computed anew, what it holds behind an argument not.

The words of the schema behind its modules have seen no module, and little is computed to change that. A
module's text behind an argument may be all of the module.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.repairs.step import RepairStep


class Auto(RepairStep):
    """New is a segment before which another of its unit stands, with a segment of another unit between; of
    the schema's own text, with anything between."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    def renewed(self, segments: Sequence[Segment]) -> list[int]:
        """All tokens of such segments."""
        counts = [0] * len(segments)
        # For each unit where it stands, how much of others was there when it last stood behind its own.
        seen: dict[tuple[Unit, int], tuple[int, int]] = {}
        num_others = num_new = 0
        last: tuple[Unit, int] | None = None
        for index, segment in enumerate(segments):
            if not isinstance(segment, CachedSegment):
                num_new += 1
                continue
            unit = segment.unit, segment.position
            if unit != last:
                num_others += 1
                last = unit
            is_own = segment.unit.id == self._schema
            now = num_others, num_new if is_own else 0
            if seen.setdefault(unit, now) != now:
                counts[index] = segment.num_tokens
        return counts
