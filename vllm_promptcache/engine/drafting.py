"""What a drafter's layers hold of composed requests, whichever model runner it is of.

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
from vllm_promptcache.engine.step import Injection, Step, TableSlots

NOTHING_COMPOSED = np.empty(0, np.int64)


def open_writer(runner: Any, model: Any, device: torch.device) -> tuple[CacheWriter, bool]:
    """What writes the states of a runner's drafter, whose ``model`` it is, and whether they can be moved."""
    context = runner.compilation_config.static_forward_context
    layers = [context[name] for name in sorted(compat.drafter_layers(runner))]
    layers = [layer for layer in layers if not compat.shares_cache(layer)]
    kinds = [compat.shape_of_rows(layer) for layer in layers]
    records = RecordKeeper(kinds, runner.dtype, packs=False, folder=None)
    rotation = open_rotation(model, layers, runner.max_model_len)
    is_movable = not isinstance(rotation, str)
    return CacheWriter(layers, device, records, None if isinstance(rotation, str) else rotation), is_movable


class Drafting:
    """Below what sees to the drafters of the two generations of model runners.

    A drafter runs after the step that it drafts behind: a *first pass* over that step's tokens, of each
    request with ``extra`` tokens more at its end, then passes over one token of each request. Units whose
    states its layers have not computed (of records, and where a step was not drafted behind) it does not see.
    """

    def __init__(self, writer: CacheWriter, *, is_movable: bool):
        self._writer = writer
        self._is_movable = is_movable
        self._step: Step | None = None
        self._starts = NOTHING_COMPOSED
        self._effects = contextlib.ExitStack()

    def take(self, message: StepMessage) -> None:
        """Begin to keep what the drafter's layers compute of units, and forget what will not be asked for."""
        self._writer.take_units(message)

    def _begin_effects(
        self, table: torch.Tensor, block_size: int, extra: int, groups: Sequence[Any] = ()
    ) -> None:
        """Write and capture what a first pass has to; attention ``groups`` that build its metadata present
        the step's rows."""
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
        self._effects.enter_context(self._writer.begin(placed, table, block_size))
        if step.rows is not None and groups:
            view = functools.partial(present, rows=step.rows, device=self._writer.device)
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

    def _on_device(self, array: NDArray[Any]) -> torch.Tensor:
        return self._writer.on_device(array)
