"""What a drafter of V1's model runner computes of composed requests: in their slots, at their positions.

A drafter has layers of its own, over the blocks of the model that it drafts for. vLLM finds its slots by
positions, which is right where a token's position is its index. Here it counts by index, and is told
positions on the way into its model. States of units are captured in its layers as in the model's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.engine.cache_writer import CacheWriter
from vllm_promptcache.engine.messages import StepMessage
from vllm_promptcache.engine.record_keeper import RecordKeeper
from vllm_promptcache.engine.record_settings import open_rotation
from vllm_promptcache.engine.row_view import present
from vllm_promptcache.engine.step import Batch, Injection, Step, TableSlots

NOTHING_COMPOSED = np.empty(0, np.int64)


def open_drafting(runner: Any, device: torch.device) -> Drafting | None:
    """What sees to a V1 runner's drafter; None if it has none with layers like a model's.

    Others draft from what was generated, or by index alone: they see less of composed requests.
    """
    drafter = getattr(runner, "drafter", None)
    if drafter is None or not compat.can_see_through(drafter):
        return None
    context = runner.compilation_config.static_forward_context
    layers = [context[name] for name in sorted(compat.drafter_layers(runner))]
    layers = [layer for layer in layers if not compat.shares_cache(layer)]
    kinds = [compat.shape_of_rows(layer) for layer in layers]
    records = RecordKeeper(kinds, runner.dtype, packs=False, folder=None)
    rotation = open_rotation(drafter.model, layers, runner.max_model_len)
    writer = CacheWriter(layers, device, records, None if isinstance(rotation, str) else rotation)
    return Drafting(drafter, writer, is_movable=not isinstance(rotation, str))


class Drafting:
    """Wraps a drafter's passes.

    A drafter runs after the step that it drafts behind: a *first pass* over that step's tokens, of each
    request with ``extra`` tokens more at its end, then passes over one token of each request. Units whose
    states its layers have not computed (of records, and where a step was not drafted behind) it does not see.
    """

    def __init__(self, drafter: Any, writer: CacheWriter, *, is_movable: bool):
        self._drafter = drafter
        self._writer = writer
        self._is_movable = is_movable
        self._step: Step | None = None
        self._shifts = NOTHING_COMPOSED
        self._starts = NOTHING_COMPOSED
        self._indices: torch.Tensor | None = None
        self._effects = contextlib.ExitStack()
        compat.see_through_drafter(drafter, self._first_pass, self._next_pass, self.end)

    @property
    def counts_by_index(self) -> bool:
        """Whether the first pass finds slots anew, by the positions that it is given."""
        return bool(self._drafter.needs_extra_input_slots)

    def take(self, message: StepMessage) -> None:
        """Begin to keep what the drafter's layers compute of units, and forget what will not be asked for."""
        self._writer.take_units(message)

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
            self._begin_effects(found[2], 0)
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
        self._begin_effects(metadata, extra)
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

    def _begin_effects(self, metadata: Any, extra: int) -> None:
        step = self._step
        if step is None:
            return
        placed = dataclasses.replace(
            step,
            captures=tuple(
                dataclasses.replace(
                    capture,
                    stored=self._placed(capture.stored, extra),
                    kept=self._placed(capture.kept, extra),
                    record=None,
                )
                for capture in step.captures
                if not capture.shift or self._is_movable
            ),
            edge_rows=self._there(step.edge_rows),
            late_edge_rows=self._there(
                step.late_edge_rows, {unit for capture in step.captures for unit in capture.units}
            ),
        )
        table, block_size = metadata.block_table_tensor, int(self._drafter.block_size)
        self._effects.enter_context(self._writer.begin(placed, table, block_size))
        if step.rows is not None:
            view = functools.partial(present, rows=step.rows, device=self._writer.device)
            groups: Sequence[Any] = self._drafter.draft_attn_groups
            self._effects.enter_context(compat.attention_metadata_seen_through(groups, view))

    def _there(
        self, injection: Injection | None, coming: frozenset[Any] | set[Any] = frozenset()
    ) -> Injection | None:
        """Edge rows of the units that the drafter's layers have computed, or do in this step."""
        if injection is None:
            return None
        store = self._writer.row_store
        is_there = [rows.unit in coming or store.is_written(rows.unit) for rows in injection.ranges]
        if all(is_there):
            return injection
        lengths = [rows.end - rows.start for rows in injection.ranges]
        chosen = np.repeat(np.array(is_there, bool), lengths)
        ranges = tuple(rows for rows, there in zip(injection.ranges, is_there, strict=True) if there)
        slots = TableSlots(injection.slots.requests[chosen], injection.slots.slots[chosen])
        return Injection(ranges, slots) if ranges else None

    def _placed(self, tokens: NDArray[np.int64], extra: int) -> NDArray[np.int64]:
        """Where tokens of the step stand in a first pass."""
        if not extra:
            return tokens
        return tokens + extra * (np.searchsorted(self._starts, tokens, side="right") - 1)

    def _slots_of(self, slots: TableSlots, metadata: Any) -> torch.Tensor:
        return self._writer.slots_of(slots, metadata.block_table_tensor, int(self._drafter.block_size))

    def _on_device(self, array: NDArray[Any]) -> torch.Tensor:
        return self._writer.on_device(array)
