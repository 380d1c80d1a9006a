"""Drafters of V2's model runner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.engine.cache_writer import CacheWriter
from vllm_promptcache.engine.drafting import NOTHING_COMPOSED, Drafting, open_writer
from vllm_promptcache.engine.step import Batch, Step


def open_drafting(
    runner: Any, device: torch.device, positions: torch.Tensor, shifts: torch.Tensor
) -> DraftingV2 | None:
    """What sees to a V2 runner's drafter; None if it has none with layers like a model's.

    ``positions`` (int64, ``(tokens,)``) are those that the model takes of the step before, ``shifts`` (int64,
    ``(requests,)``) what is added to the indices of each of the runner's requests. Drafters of other makes
    count by index alone: they see less of composed requests.
    """
    speculator = runner.speculator
    if speculator is None or not compat.can_see_through_speculator(speculator):
        return None
    writer, is_movable = open_writer(runner, speculator.model, device)
    return DraftingV2(speculator, writer, positions, shifts, is_movable=is_movable)


class DraftingV2(Drafting):
    """Adds to the positions that a drafter's model takes what they are more than indices.

    What is added stands in a buffer, for each token of a pass, and so do the sums: graphs that were captured
    with them may be replayed. Slots stay those of indices; where a first pass has slots of its own, some of
    its tokens have others.
    """

    def __init__(
        self,
        speculator: Any,
        writer: CacheWriter,
        positions: torch.Tensor,
        shifts: torch.Tensor,
        *,
        is_movable: bool,
    ):
        super().__init__(writer, is_movable=is_movable)
        self._speculator = speculator
        self._extra = int(speculator.num_extra_query_per_req)
        self._computed: NDArray[np.integer] = NOTHING_COMPOSED
        self._model_positions, self._device_shifts = positions, shifts
        num_tokens = len(positions) + self._extra * len(shifts)
        self._added = torch.zeros(num_tokens, dtype=torch.int64, device=writer.device)
        self._sums = torch.zeros_like(self._added)
        self._is_shifted = False
        compat.see_through_speculator(speculator, self)

    def begin(self, step: Step | None, batch: Batch, *, is_shifted: bool) -> None:
        """The step that drafts will be made behind; whether some of its requests' positions are not their
        tokens' indices."""
        self._step, self._starts, self._computed = step, batch.starts, batch.computed
        self._is_shifted = is_shifted

    # -- as a ``SpeculatorView`` -----------------------------------------------------------------

    @property
    def needs_python(self) -> bool:
        """See ``SpeculatorView``: graphs capture nothing, and have a row for each request."""
        return self._step is not None and self._step.needs_python

    def begin_first_pass(self, input_batch: Any) -> None:
        """See ``SpeculatorView``."""
        step = self._step
        if step is None and not self._is_shifted:
            return
        if not self._extra:
            indices = input_batch.positions
            num_tokens = len(indices)
            torch.sub(self._model_positions[:num_tokens], indices, out=self._added[:num_tokens])
        else:
            self._add_to_expanded(input_batch, step)
        groups = [g for per_cache_group in self._speculator.attn_groups for g in per_cache_group]
        self._begin_effects(*self._table, self._extra, groups if self._extra else ())

    def begin_next_passes(self, input_batch: Any) -> None:
        """See ``SpeculatorView``."""
        self._effects.close()
        if self._is_shifted:
            shifts = self._device_shifts[input_batch.idx_mapping]
            self._added[: len(shifts)] = shifts
        elif self._step is not None:
            self._added.zero_()

    def correct_slots(self, slots: torch.Tensor) -> None:
        """See ``SpeculatorView``."""
        step = self._step
        if step is not None and len(step.moved):
            moved = self._on_device(self._placed(step.moved, self._extra))
            slots[moved] = self._writer.slots_of(step.moved_slots, *self._table)

    def positions(self, indices: torch.Tensor) -> torch.Tensor:
        """See ``SpeculatorView``."""
        sums = self._sums[: len(indices)]
        torch.add(indices, self._added[: len(indices)], out=sums)
        # What stands behind the model's last position is never used.
        return sums.clamp_(min=0, max=self._speculator.max_model_len - 1)

    def end(self) -> None:
        """See ``SpeculatorView``."""
        self._effects.close()
        if self._step is not None or self._is_shifted:
            self._added.zero_()
        self._step, self._is_shifted = None, False

    # --------------------------------------------------------------------------------------------

    @property
    def _table(self) -> tuple[torch.Tensor, int]:
        """The block table of the step's batch, and its slots a block."""
        tables = self._speculator.block_tables
        return tables.input_block_tables[0], int(tables.block_sizes[0])

    def _add_to_expanded(self, input_batch: Any, step: Step | None) -> None:
        """As the first pass has its tokens: of each request some more at the end."""
        scheduled = np.diff(self._starts)
        lengths = self._on_device(scheduled + self._extra)
        num_tokens = int(self._starts[-1]) + self._extra * len(scheduled)
        shifts = self._device_shifts[input_batch.idx_mapping]
        self._added[:num_tokens] = torch.repeat_interleave(shifts, lengths, output_size=num_tokens)
        if step is not None and len(step.tokens):
            requests = np.searchsorted(self._starts, step.tokens, side="right") - 1
            indices = self._computed[requests] + step.tokens - self._starts[requests]
            placed = self._on_device(self._placed(step.tokens, self._extra))
            self._added[placed] = self._on_device(step.positions - indices)
