"""The model runner: positions apart from slots, edge rows injected, rows for runs in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.blocks.rows import Chunk, Rows, moved_tokens, positions_of, split_rows
from vllm_promptcache.blocks.seats import EdgeRows
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.messages import Seating
from vllm_promptcache.engine.row_store import RowStore


@dataclass(frozen=True, eq=False)
class Capturing:
    """One encoding request's part of a step's tokens, on the device.

    ``stored`` indexes tokens of the step that go into the unit's blocks at ``slots``; ``kept`` those
    that are kept as its edge ``rows``. All int64.
    """

    unit: Any
    stored: torch.Tensor
    slots: torch.Tensor
    kept: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, eq=False)
class Injection:
    """Ranges of edge rows, one after the other, and the slots they go to; int64, None without rows."""

    ranges: tuple[EdgeRows, ...]
    slots: torch.Tensor | None


class PromptCacheRunner:
    """Mixin over vLLM's V1 model runners (``GPUModelRunner`` and ``CPUModelRunner``).

    vLLM computes a token's position and its slot from the same index, its place among the request's
    tokens. For composed requests the index gives the slot; the position comes from the seats.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seated: dict[str, Seating] = {}
        self._newly_seated: list[str] = []
        self._step = contextlib.ExitStack()
        self._rows: Rows | None = None
        self._needs_python = False
        super().__init__(*args, **kwargs)

    def initialize_metadata_builders(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; a step can have more rows than requests."""
        with compat.room_for_rows(self.vllm_config):  # type: ignore[attr-defined]
            super().initialize_metadata_builders(*args, **kwargs)  # type: ignore[misc]

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; then find the layers whose cache updates are captured and injected."""
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        context = self.compilation_config.static_forward_context  # type: ignore[attr-defined]
        names = [n for g in kv_cache_config.kv_cache_groups for n in g.layer_names]
        layers = [context[name] for name in names]
        compat.check_layers(layers)
        self._cache_layers = [x for x in layers if x.kv_sharing_target_layer_name is None]
        self._row_store = RowStore([compat.shape_of_rows(layer) for layer in self._cache_layers])

    def compare_states(self, unit: UnitKey, other: UnitKey) -> list[tuple[list[float], float]]:
        """See ``RowStore.compare``; of the model's second layer, where the first has mixed tokens."""
        return self._row_store.compare(unit, other, min(1, self._row_store.num_layers - 1))

    # -- before the forward pass -----------------------------------------------------------------

    def _update_states(self, scheduler_output: Any) -> Any:
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        for request_id in scheduler_output.finished_req_ids:
            self._seated.pop(request_id, None)
        message = compat.message_of(scheduler_output)
        if message is not None:
            self._row_store.drop(message.dropped)
            self._seated.update(message.seatings)
            self._newly_seated += message.seatings
            for seating in message.seatings.values():
                if seating.capture is not None:
                    self._row_store.open(seating.capture.unit, seating.capture.num_rows)
        return result

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)  # type: ignore[misc]
        if self._seated:
            self._compose_step(num_scheduled_tokens)
        return prepared

    def _compose_step(self, num_scheduled_tokens: NDArray[np.int32]) -> None:
        """Correct a step's positions and slots, write edge rows, plan captures and rows."""
        batch = self.input_batch  # type: ignore[attr-defined]
        computed_tokens = batch.num_computed_tokens_cpu
        decoding: list[tuple[int, int]] = []
        prefilling: list[int] = []
        for index, request_id in enumerate(batch.req_ids):
            seating = self._seated.get(request_id)
            if seating is None:
                continue
            computed, seats = int(computed_tokens[index]), seating.seats
            if computed >= seats.num_prompt_tokens and num_scheduled_tokens[index] == 1:
                if seats.position_shift:  # without gaps a token's index is its position
                    decoding.append((index, computed + seats.position_shift))
            else:
                prefilling.append(index)
        if not (decoding or prefilling):
            return
        starts = self.query_start_loc.np[: len(num_scheduled_tokens) + 1]  # type: ignore[attr-defined]
        if decoding:
            where = self._on_device(starts[[index for index, _ in decoding]])
            positions = np.array([position for _, position in decoding], np.int64)
            self.positions[where] = self._on_device(positions)  # type: ignore[attr-defined]
        chunks: dict[int, Chunk] = {}
        for index in prefilling:
            seats = self._seated[batch.req_ids[index]].seats
            chunks[index] = Chunk(int(computed_tokens[index]), int(num_scheduled_tokens[index]), seats)
            chunk_positions = self._on_device(positions_of(chunks[index]))
            self.positions[starts[index] : starts[index + 1]] = chunk_positions  # type: ignore[attr-defined]
        if prefilling:
            self._compose_prefills(chunks, num_scheduled_tokens, starts)

    def _compose_prefills(
        self,
        chunks: dict[int, Chunk],
        num_scheduled_tokens: NDArray[np.int32],
        starts: NDArray[np.int64],
    ) -> None:
        if any(chunk.has_middle_rows for chunk in chunks.values()):
            computed = self.input_batch.num_computed_tokens_cpu  # type: ignore[attr-defined]
            self._rows = split_rows(
                [
                    chunks.get(index) or Chunk(int(computed[index]), int(scheduled), None)
                    for index, scheduled in enumerate(num_scheduled_tokens)
                ]
            )
            self._move_slots(chunks, starts)
        captures = self._plan_captures(chunks, starts)
        edge_rows, later = self._plan_edge_rows({c.unit for c in captures})
        self._inject_edge_rows(edge_rows)
        if captures:
            observed = compat.cache_updates_observed(self._cache_layers, self._observer(captures, later))
            self._step.enter_context(observed)
        self._needs_python = bool(captures) or self._rows is not None

    def _move_slots(self, chunks: dict[int, Chunk], starts: NDArray[np.int64]) -> None:
        tokens: list[NDArray[np.int64]] = []
        slots: list[NDArray[np.int64]] = []
        for index, chunk in chunks.items():
            moved, logical = moved_tokens(chunk)
            tokens.append(moved + starts[index])
            slots.append(self._slots(index, logical))
        mapping = self.input_batch.block_table[0].slot_mapping.gpu  # type: ignore[attr-defined]
        mapping[self._on_device(np.concatenate(tokens))] = self._on_device(np.concatenate(slots))

    def _plan_edge_rows(self, captured: set[Any]) -> tuple[Injection, Injection]:
        """Where the edge rows go of requests that took their seats: those to write at once, and those of
        units that this step captures, to write as they come."""
        seated, self._newly_seated = self._newly_seated, []
        rows = {request_id: self._seated[request_id].edge_rows for request_id in seated}
        if not captured:
            return self._place(rows), Injection((), None)
        now = {r: tuple(e for e in edges if e.unit not in captured) for r, edges in rows.items()}
        later = {r: tuple(e for e in edges if e.unit in captured) for r, edges in rows.items()}
        return self._place(now), self._place(later)

    def _place(self, edge_rows: Mapping[str, Sequence[EdgeRows]]) -> Injection:
        """Edge rows by request, with their slots in the request's private blocks."""
        slots: list[NDArray[np.int64]] = []
        for request_id, edges in edge_rows.items():
            if edges:
                seats = self._seated[request_id].seats
                index = self.input_batch.req_id_to_index[request_id]  # type: ignore[attr-defined]
                offsets = np.concatenate([np.arange(e.offset, e.offset + e.end - e.start) for e in edges])
                slots.append(self._slots(index, seats.num_shared_blocks * seats.block_size + offsets))
        ranges = tuple(e for edges in edge_rows.values() for e in edges)
        return Injection(ranges, self._on_device(np.concatenate(slots)) if slots else None)

    def _inject_edge_rows(self, injection: Injection) -> None:
        """Write edge rows into the private blocks of the requests that asked for them."""
        if injection.slots is None:
            return
        rows = self._row_store.gather(injection.ranges)
        for layer, (key, value) in zip(self._cache_layers, rows, strict=True):
            layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, injection.slots)

    def _slots(self, index: int, logical: NDArray[np.int64]) -> NDArray[np.int64]:
        table = self.input_batch.block_table[0]  # type: ignore[attr-defined]
        size = int(table.block_size)
        blocks: NDArray[np.int64] = table.get_numpy_array()[index, logical // size].astype(np.int64)
        return blocks * size + logical % size

    def _plan_captures(self, chunks: dict[int, Chunk], starts: NDArray[np.int64]) -> list[Capturing]:
        captures: list[Capturing] = []
        for index, chunk in chunks.items():
            request_id = self.input_batch.req_ids[index]  # type: ignore[attr-defined]
            capture = self._seated[request_id].capture
            if capture is None or chunk.seats is None:
                continue
            first = chunk.computed - chunk.seats.num_cached_tokens
            slots = capture.slots[first : first + chunk.scheduled]
            rows = capture.rows[first : first + chunk.scheduled]
            stored, kept = np.flatnonzero(slots >= 0), np.flatnonzero(rows >= 0)
            arrays = (stored + starts[index], slots[stored], kept + starts[index], rows[kept])
            captures.append(Capturing(capture.unit, *map(self._on_device, arrays)))
        return captures

    def _observer(self, captures: Sequence[Capturing], later: Injection) -> Any:
        stored = torch.cat([c.stored for c in captures])
        slots = torch.cat([c.slots for c in captures])

        def observe(index: int, layer: Any, update: Any, key: Any, value: Any, kv_cache: Any) -> None:
            if len(stored):
                update(layer, key[stored], value[stored], kv_cache, slots)
            for c in captures:
                if len(c.kept):
                    self._row_store.write(c.unit, index, c.rows, key[c.kept], value[c.kept])
            if later.slots is not None:
                update(layer, *self._row_store.gather_layer(later.ranges, index), kv_cache, later.slots)

        return observe

    def _on_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)  # type: ignore[attr-defined]

    # -- the forward pass ------------------------------------------------------------------------

    def _allow_microbatching(self, *args: Any, **kwargs: Any) -> bool:
        if self._needs_python or self._rows is not None:
            return False
        return bool(super()._allow_microbatching(*args, **kwargs))  # type: ignore[misc]

    def _determine_batch_execution_and_padding(self, *args: Any, **kwargs: Any) -> Any:
        with compat.no_full_graphs(self) if self._needs_python else contextlib.nullcontext():
            return super()._determine_batch_execution_and_padding(*args, **kwargs)  # type: ignore[misc]

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        rows = self._rows
        if rows is None:
            return super()._build_attention_metadata(*args, **kwargs)  # type: ignore[misc]
        groups = [g for per_cache_group in self.attn_groups for g in per_cache_group]  # type: ignore[attr-defined]
        with compat.attention_metadata_seen_through(groups, lambda common: self._present(common, rows)):
            return super()._build_attention_metadata(*args, **kwargs)  # type: ignore[misc]

    def _present(self, common: Any, rows: Rows) -> Any:
        """The batch's common attention metadata with one row a run instead of one a request."""
        requests, shared, seq_lens, skipped = (
            self._on_device(a)
            for a in (
                rows.requests,
                rows.shared_blocks,
                rows.seq_lens,
                rows.all_shared_blocks - rows.shared_blocks,
            )
        )
        table = common.block_table_tensor
        columns = torch.arange(table.shape[1], device=table.device).expand(len(requests), -1)
        columns = columns + torch.where(columns >= shared[:, None], skipped[:, None], 0)
        row_table = table[requests].gather(1, columns.clamp_(max=table.shape[1] - 1))
        query_start = np.concatenate(([0], np.cumsum(rows.query_lens))).astype(np.int32)
        upper_bound = torch.from_numpy(rows.seq_lens.astype(np.int32))
        return common.replace(
            query_start_loc=torch.from_numpy(query_start).to(table.device),
            query_start_loc_cpu=torch.from_numpy(query_start),
            seq_lens=seq_lens.to(common.seq_lens.dtype),
            seq_lens_cpu_upper_bound=upper_bound,
            num_reqs=len(rows.requests),
            max_query_len=int(rows.query_lens.max()),
            max_seq_len=int(rows.seq_lens.max()),
            block_table_tensor=row_table,
            is_prefilling=common.is_prefilling[torch.from_numpy(rows.requests)],
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Run a step; whatever it needed of Python is taken back at its end."""
        try:
            return super().execute_model(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._step.close()
            self._rows = None
            self._needs_python = False
