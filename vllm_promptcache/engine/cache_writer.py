"""Writes a step's states where its requests and units need them, through each layer's own cache update."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.engine.messages import StepMessage
from vllm_promptcache.engine.row_store import RowStore
from vllm_promptcache.engine.step import Capturing, Injection, Step, TableSlots


class CacheWriter:
    """Captures units' states, and injects edge rows, for layers with a KV cache of their own.

    ``table`` is the block table of a step's batch on the device, ``(requests, blocks)``, and
    ``block_size`` its slots a block.
    """

    def __init__(self, layers: Sequence[Any], device: torch.device):
        self.layers = layers
        self.device = device
        self.row_store = RowStore([compat.shape_of_rows(layer) for layer in layers])

    def take(self, message: StepMessage) -> None:
        """Rows that nobody will ask for again are forgotten, those of units to be encoded are begun."""
        self.row_store.drop(message.dropped)
        for seating in message.seatings.values():
            if seating.capture is not None:
                self.row_store.open(seating.capture.unit, seating.capture.num_rows)

    def on_device(self, array: NDArray[Any]) -> torch.Tensor:
        """An array where the model runs."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def slots_of(self, slots: TableSlots, table: torch.Tensor, block_size: int) -> torch.Tensor:
        """Slots of the KV cache, int64, on the device."""
        blocks = table[self.on_device(slots.requests), self.on_device(slots.slots // block_size)]
        return blocks.to(torch.int64) * block_size + self.on_device(slots.slots % block_size)

    def begin(self, step: Step, table: torch.Tensor, block_size: int) -> AbstractContextManager[None]:
        """Write the step's edge rows; what is returned captures its units, until it is closed."""
        if step.edge_rows is not None:
            self._inject(step.edge_rows, table, block_size)
        if not step.captures:
            return contextlib.nullcontext()
        late = step.late_edge_rows
        late_slots = None if late is None else self.slots_of(late.slots, table, block_size)
        return compat.cache_updates_observed(self.layers, self._observer(step.captures, late, late_slots))

    def _inject(self, injection: Injection, table: torch.Tensor, block_size: int) -> None:
        """Write edge rows into the private blocks of the requests that asked for them."""
        slots = self.slots_of(injection.slots, table, block_size)
        rows = self.row_store.gather(injection.ranges)
        for layer, (key, value) in zip(self.layers, rows, strict=True):
            compat.update_cache(layer, key, value, slots)

    def _observer(
        self, captures: Sequence[Capturing], late: Injection | None, late_slots: torch.Tensor | None
    ) -> Any:
        stored = self.on_device(np.concatenate([c.stored for c in captures]))
        slots = self.on_device(np.concatenate([c.slots for c in captures]))
        kept = [(c.unit, self.on_device(c.kept), self.on_device(c.rows)) for c in captures if len(c.kept)]

        def observe(index: int, update: Any, key: Any, value: Any) -> None:
            if len(stored):
                update(key[stored], value[stored], slots)
            for unit, tokens, rows in kept:
                self.row_store.write(unit, index, rows, key[tokens], value[tokens])
            if late is not None:
                update(*self.row_store.gather_layer(late.ranges, index), late_slots)

        return observe
