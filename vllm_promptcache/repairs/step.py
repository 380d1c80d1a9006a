"""The contract of repairs: what each says about a prompt's segments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from vllm_promptcache.contract.plan import Segment


class RepairStep(ABC):
    """One step of a repair, and one file of this package.

    A step makes a beginning of a reused segment new, never anything behind a token that stays reused: shared
    blocks can be left at their beginning (`blocks.heads`), not in their middle.
    """

    @abstractmethod
    def renewed(self, segments: Sequence[Segment]) -> list[int]:
        """For each of a prompt's segments, as it is without a repair, how many of its first tokens become
        new; 0 for what is new anyway."""

    def placed(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """The repaired prompt's segments where they stand: as they did, if a step says nothing else."""
        return segments
