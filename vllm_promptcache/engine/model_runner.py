"""The adapter to vLLM's V1 model runner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.engine.composing_runner import ComposingRunner
from vllm_promptcache.engine.drafting_v1 import DraftingV1, open_drafting
from vllm_promptcache.engine.step import Batch, Step


class PromptCacheRunner(ComposingRunner):
    """Mixin over vLLM's V1 model runners (``GPUModelRunner`` and ``CPUModelRunner``).

    V1 has positions and slots ready after ``_prepare_inputs``, where they are corrected, and chooses graphs
    after that.
    """

    _drafting: DraftingV1 | None = None

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; then see to what a drafter computes."""
        super().initialize_kv_cache(*args, **kwargs)
        self._drafting = open_drafting(self, self._cache_writer.device)

    def initialize_metadata_builders(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; a step can have more rows than requests."""
        with compat.room_for_rows(self.vllm_config):  # type: ignore[attr-defined]
            super().initialize_metadata_builders(*args, **kwargs)  # type: ignore[misc]

    def _update_states(self, scheduler_output: Any) -> Any:
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        message = self._take_message(scheduler_output)
        if self._drafting is not None and message is not None:
            self._drafting.take(message)
        return result

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        if self._drafting is not None:
            self._drafting.end()
        if self._composer.is_idle:
            return prepared
        batch = self.input_batch  # type: ignore[attr-defined]
        computed = batch.num_computed_tokens_cpu[: len(batch.req_ids)]
        requests = Batch(batch.req_ids, computed, num_scheduled_tokens)
        step = self._step = self._composer.compose(requests)
        if self._drafting is not None:
            self._begin_drafting(self._drafting, step, requests)
        if step is not None:
            self._correct_positions(step, requests)
            table = batch.block_table[0]
            device_table = table.get_device_tensor(len(batch.req_ids))
            self._begin_effects(step, device_table, int(table.block_size), table.slot_mapping.gpu)
        return prepared

    def _begin_drafting(self, drafting: DraftingV1, step: Step | None, batch: Batch) -> None:
        indices: torch.Tensor = self.positions[: batch.starts[-1]]  # type: ignore[attr-defined]
        shifts = np.array([self._composer.position_shift(r) for r in batch.request_ids], np.int64)
        drafting.begin(step, batch, shifts, indices.clone() if drafting.counts_by_index else indices)

    def _correct_positions(self, step: Step, batch: Batch) -> None:
        """Whatever was computed from token indices is used by then: positions are the model's alone."""
        on_device = self._cache_writer.on_device
        shifts = None if step.shifts is None else on_device(np.repeat(step.shifts, batch.scheduled))
        tokens = on_device(step.tokens) if len(step.tokens) else None
        for positions in self._positions_of_step():
            if shifts is not None:
                positions[..., : len(shifts)] += shifts
            if tokens is not None:
                positions[..., tokens] = on_device(step.positions)
            if self.speculative_config is not None:  # type: ignore[attr-defined]
                # Drafts are cut by index: what stands behind the model's last position is never used.
                positions[..., : batch.starts[-1]].clamp_(max=self.max_model_len - 1)  # type: ignore[attr-defined]

    def _positions_of_step(self) -> Iterator[torch.Tensor]:
        """Where V1 keeps positions: ``(tokens,)``, and for M-RoPE ``(dimensions, tokens)`` besides. A
        composed request is text, all dimensions of which are equal."""
        yield self.positions  # type: ignore[attr-defined]
        if self.uses_mrope:  # type: ignore[attr-defined]
            yield self.mrope_positions.gpu  # type: ignore[attr-defined]

    def _allow_microbatching(self, *args: Any, **kwargs: Any) -> bool:
        return not self._needs_python() and bool(super()._allow_microbatching(*args, **kwargs))  # type: ignore[misc]

    def _determine_batch_execution_and_padding(self, *args: Any, **kwargs: Any) -> Any:
        with compat.no_full_graphs(self) if self._needs_python() else contextlib.nullcontext():
            return super()._determine_batch_execution_and_padding(*args, **kwargs)  # type: ignore[misc]

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with self._rows_presented():
            return super()._build_attention_metadata(*args, **kwargs)  # type: ignore[misc]
