"""Drafters of V1's model runner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.engine.cache_writer import CacheWriter
from vllm_promptcache.engine.drafting import NOTHING_COMPOSED, Drafting, open_writer
from vllm_promptcache.engine.step import Batch, Step, TableSlots


def open_drafting(runner: Any, device: torch.device) -> DraftingV1 | None:
    """What sees to a V1 runner's drafter; None if it has none with layers like a model's.

    Others draft from what was generated, or by index alone: they see less of composed requests.
    """
    drafter = getattr(runner, "drafter", None)
    if drafter is None or not compat.can_see_through(drafter):
        return None
    writer, is_movable = open_writer(runner, drafter.model, device)
    return DraftingV1(drafter, writer, is_movable=is_movable)


class DraftingV1(Drafting):
    """Wraps the methods by which a drafter sets the inputs of its passes."""

    def __init__(self, drafter: Any, writer: CacheWriter, *, is_movable: bool):
        super().__init__(writer, is_movable=is_movable)
        self._drafter = drafter
        self._shifts = NOTHING_COMPOSED
        self._indices: torch.Tensor | None = None
        compat.see_through_drafter(drafter, self._first_pass, self._next_pass, self.end)

    @property
    def counts_by_index(self) -> bool:
        """Whether the first pass finds slots anew, by the positions that it is given."""
        return bool(self._drafter.needs_extra_input_slots)

    def begin(
        self, step: Step | None, batch: Batch, shifts: NDArray[np.int64], indices: torch.Tensor
    ) -> None:
        """The step that drafts will be made behind, its requests' shifts, and its tokens' indices."""
        self._step, self._shifts, self._starts, self._indices = step, shifts, batch.starts, indices

    def end(self) -> None:
        """Drafts are made, or nobody made any."""
        self._effects.close()
        self._step, self._shifts, self._indices = None, NOTHING_COMPOSED, None

    def _first_pass(self, original: Any, target_positions: torch.Tensor, inputs: dict[str, Any]) -> Any:
        """Set the inputs of a first pass: ``(tokens, indices to sample, attention metadata)``."""
        if not len(self._shifts):
            return original(target_positions=target_positions, **inputs)
        if not self.counts_by_index:
            found = original(target_positions=target_positions, **inputs)
            self._begin_first_pass(found[2], 0)
            return found
        indices = self._indices
        assert indices is not None
        found = original(target_positions=indices[: len(target_positions)], **inputs)
        num_tokens, _, metadata = found
        extra = int(self._drafter.net_num_new_slots_per_request)
        lengths = np.diff(self._starts) + extra
        positions = self._drafter.positions[:num_tokens]
        positions += self._on_device(np.repeat(self._shifts, lengths))
        step = self._step
        if step is not None and len(step.tokens):
            positions[self._on_device(self._placed(step.tokens, extra))] = self._on_device(step.positions)
        positions.clamp_(max=self._drafter.max_model_len - 1)
        if step is not None and len(step.moved):
            slots = self._slots_of(step.moved_slots, metadata)
            metadata.slot_mapping[self._on_device(self._placed(step.moved, extra))] = slots
        self._begin_first_pass(metadata, extra)
        return found

    def _next_pass(self, original: Any, positions: torch.Tensor, *others: Any) -> torch.Tensor:
        """Find the slots of a pass over one token of each request, and their positions."""
        self._effects.close()
        if not self._shifts.any():
            plain: torch.Tensor = original(positions, *others)
            return plain
        shifts = self._on_device(self._shifts)[: len(positions)]
        found: torch.Tensor = original(positions - shifts, *others)
        found += shifts
        return found.clamp_(max=self._drafter.max_model_len - 1)

    def _begin_first_pass(self, metadata: Any, extra: int) -> None:
        table, block_size = metadata.block_table_tensor, int(self._drafter.block_size)
        self._begin_effects(table, block_size, extra, self._drafter.draft_attn_groups)

    def _slots_of(self, slots: TableSlots, metadata: Any) -> torch.Tensor:
        return self._writer.slots_of(slots, metadata.block_table_tensor, int(self._drafter.block_size))
