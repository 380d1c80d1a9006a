"""Everything is computed anew: the honest baseline of any comparison."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.repairs.step import RepairStep


class Full(RepairStep):
    """Nothing is reused."""

    def renewed(self, segments: Sequence[Segment]) -> list[int]:
        """All tokens."""
        return [segment.num_tokens if isinstance(segment, CachedSegment) else 0 for segment in segments]
