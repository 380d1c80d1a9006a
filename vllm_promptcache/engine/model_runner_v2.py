"""The adapter to vLLM's V2 model runner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm_promptcache import compat
from vllm_promptcache.engine.composing_runner import ComposingRunner
from vllm_promptcache.engine.drafting_v2 import DraftingV2, open_drafting
from vllm_promptcache.engine.step import Batch


class PromptCacheRunnerV2(ComposingRunner):
    """Mixin over vLLM's V2 model runners (``GPUModelRunner`` of ``worker.gpu``, and the CPU's).

    V2 chooses graphs before it prepares inputs, so a step is composed as soon as its batch is known. What is
    persistent in V2 stays: the model takes its positions from one buffer, always, so that graphs that were
    captured with it may be replayed; ``input_batch.positions`` keeps indices, from which V2 computes slots
    and its sampler how many tokens were generated. Decode reads no state of the device: a request's shift
    stands in a tensor by its index among the runner's requests.
    """

    _drafting: DraftingV2 | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; the model then takes positions from a buffer of its own."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        tokens, requests = self.max_num_tokens, self.max_num_reqs  # type: ignore[attr-defined]
        device = self.device  # type: ignore[attr-defined]
        self._model_positions = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._shifts = np.zeros(requests, np.int64)
        self._device_shifts = torch.zeros(requests, dtype=torch.int64, device=device)
        compat.replace_model_positions(
            self.model_state,  # type: ignore[attr-defined]
            self._positions_of_step,
            lambda num_tokens: self._model_positions[:num_tokens],
        )

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; a step can have more rows than requests. Then see to what a drafter computes."""
        with compat.room_for_rows_in_v2():
            super().initialize_kv_cache(*args, **kwargs)
        device = self._cache_writer.device
        self._drafting = open_drafting(self, device, self._model_positions, self._device_shifts)

    def finish_requests(self, scheduler_output: Any) -> None:
        """As vLLM's, first of what it does with a step's output; then take the scheduler's message."""
        super().finish_requests(scheduler_output)  # type: ignore[misc]
        message = self._take_message(scheduler_output)
        if self._drafting is not None and message is not None:
            self._drafting.take(message)

    def add_requests(self, scheduler_output: Any) -> None:
        """As vLLM's; resumed requests come as new ones. Indices are used again: a shift is set each time."""
        super().add_requests(scheduler_output)  # type: ignore[misc]
        indices = self.req_states.req_id_to_index  # type: ignore[attr-defined]
        is_changed = False
        for request in scheduler_output.scheduled_new_reqs:
            index, shift = indices[request.req_id], self._composer.position_shift(request.req_id)
            is_changed |= self._shifts[index] != shift
            self._shifts[index] = shift
        if is_changed:
            self._device_shifts.copy_(self._cache_writer.on_device(self._shifts.copy()), non_blocking=True)

    def gather_batch_req_state(self, scheduler_output: Any, dummy_run: bool) -> Any:
        """As vLLM's; the batch is known now, and no graph is chosen yet."""
        state, uniform = super().gather_batch_req_state(scheduler_output, dummy_run)  # type: ignore[misc]
        if state is None or self._composer.is_idle:
            return state, uniform
        computed = self.req_states.num_computed_tokens_np[state.idx_mapping_np]  # type: ignore[attr-defined]
        batch = Batch(state.req_ids, computed, state.num_scheduled_tokens)
        self._step = self._composer.compose(batch)
        if self._drafting is not None:
            is_shifted = bool(self._shifts[state.idx_mapping_np].any())
            self._drafting.begin(self._step, batch, is_shifted=is_shifted)
        if not self._needs_python():
            return state, uniform
        self._effects.enter_context(compat.no_full_graphs_in_v2(self))
        return state._replace(decode_graph_eligible=False), None

    def prepare_attn(self, input_batch: Any) -> Any:
        """As vLLM's; slots are corrected in place, in V2's own buffers."""
        tables, slot_mappings = super().prepare_attn(input_batch)  # type: ignore[misc]
        if self._step is not None:
            block_size = int(self.block_tables.block_sizes[0])  # type: ignore[attr-defined]
            self._begin_effects(self._step, tables[0], block_size, slot_mappings[0])
            self._effects.enter_context(self._rows_presented())
        return tables, slot_mappings

    def _positions_of_step(self, input_batch: Any, given: torch.Tensor | None) -> torch.Tensor:
        """The positions that the model takes: ``given`` by M-RoPE, ``(dimensions, tokens)``, or by index.

        A composed request is text, all dimensions of which are equal: what is added is the same for all.
        """
        indices = input_batch.positions
        num_tokens = len(indices)
        positions = self._model_positions[:num_tokens]
        positions.copy_(indices)
        step = self._step
        if step is not None:
            if step.shifts is not None:
                self._shift(positions, input_batch)
            if len(step.tokens):
                on_device = self._cache_writer.on_device
                positions[on_device(step.tokens)] = on_device(step.positions)
        if self.speculative_config is not None:  # type: ignore[attr-defined]
            # Drafts are cut by index: those that would stand behind the model's last position are never used.
            positions.clamp_(max=self.max_model_len - 1)  # type: ignore[attr-defined]
        if given is None:
            return positions
        if step is not None:
            given[:, :num_tokens] += positions - indices
        return given

    def _shift(self, positions: torch.Tensor, input_batch: Any) -> None:
        """Add requests' shifts to all their tokens, by what the device knows of the batch."""
        shifts = self._device_shifts[input_batch.idx_mapping]
        num_requests = len(shifts)
        lengths = input_batch.query_start_loc[: num_requests + 1].diff()
        by_token = torch.repeat_interleave(shifts, lengths, output_size=input_batch.num_tokens)
        positions[: input_batch.num_tokens] += by_token
