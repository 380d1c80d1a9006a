"""What the prompt cache's workers share."""

from __future__ import annotations

from typing import Any

from vllm_promptcache.blocks.unit_key import UnitKey


class PromptCacheWorking:
    """Mixin over vLLM's workers: what the scheduler's process asks of them besides steps."""

    model_runner: Any

    def compare_module_states(self, unit: UnitKey, other: UnitKey) -> list[tuple[list[float], float]]:
        """How far the states of a unit's copy are from another's; see ``RowStore.compare``."""
        found: list[tuple[list[float], float]] = self.model_runner.compare_states(unit, other)
        return found
