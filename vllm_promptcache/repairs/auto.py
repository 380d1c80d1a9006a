"""The default: tails, but for a module's text behind an argument where that is long.

The words of the schema behind its modules have seen no module, and little is computed to change that. A
module's text behind an argument may be all of the module.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.repairs.step import RepairStep

# A module's text behind an argument is new up to so many tokens.
MAX_TOKENS_BEHIND_ARGUMENTS = 32


class Auto(RepairStep):
    """New is a segment before which another of its unit stands, with a segment of another unit between; of
    the schema's own text, and of few tokens, with anything between."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    def renewed(self, segments: Sequence[Segment]) -> list[int]:
        """All tokens of such segments."""
        counts = [0] * len(segments)
        # For each unit where it stands, how many changes of unit, and how much that is new, came before it.
        first: dict[tuple[Unit, int], tuple[int, int]] = {}
        num_others = num_new = 0
        last: tuple[Unit, int] | None = None
        for index, segment in enumerate(segments):
            if not isinstance(segment, CachedSegment):
                num_new += 1
                continue
            unit = segment.unit, segment.position
            if unit != last:
                num_others, last = num_others + 1, unit
            others_then, new_then = first.setdefault(unit, (num_others, num_new))
            is_cheap = segment.num_tokens <= MAX_TOKENS_BEHIND_ARGUMENTS or segment.unit.id == self._schema
            if others_then < num_others or (new_then < num_new and is_cheap):
                counts[index] = segment.num_tokens
        return counts
