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
from vllm_promptcache.engine.record_keeper import RecordKeeper
from vllm_promptcache.engine.record_loader import RecordLoader
from vllm_promptcache.engine.step import NO_TOKENS, Capturing, Injection, Step, TableSlots
from vllm_promptcache.records.rotation import Move, Rotation
from vllm_promptcache.records.row_store import RowStore


class CacheWriter:
    """Captures units' states, and injects edge rows, for layers with a KV cache of their own.

    ``table`` is the block table of a step's batch on the device, ``(requests, blocks)``, and
    ``block_size`` its slots a block.
    """

    def __init__(
        self, layers: Sequence[Any], device: torch.device, records: RecordKeeper, rotation: Rotation | None
    ):
        """``rotation`` is None for models whose states cannot be moved."""
        self.layers = layers
        self.device = device
        self.records = records
        self.row_store = RowStore([compat.shape_of_rows(layer) for layer in layers])
        self._loader = RecordLoader(layers, device, records.rows, self.row_store, rotation)

    def take(self, message: StepMessage) -> None:
        """As `take_units`; records are begun or forgotten, and units to be loaded written."""
        self.take_units(message)
        if message.orders is not None:
            self.records.obey(message.orders)
        for admission in message.admissions.values():
            if admission.capture is not None:
                self.records.begin(admission.capture.recording)
        if message.loads:
            self._loader.load(message.loads)

    def take_units(self, message: StepMessage) -> None:
        """Rows that nobody will ask for again are forgotten, those of units to be encoded begun."""
        self.row_store.drop(message.dropped)
        for admission in message.admissions.values():
            if admission.capture is not None:
                self.row_store.open_together(admission.capture.units)

    def _move(self, positions: NDArray[np.int64], shift: int) -> Move | None:
        """What moves states at positions by ``shift``; None if they stay."""
        return self._loader.move(positions, shift) if shift else None

    def on_device(self, array: NDArray[Any]) -> torch.Tensor:
        """An array where the model runs."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _range(self, numbers: NDArray[np.int64]) -> slice | torch.Tensor:
        """Numbers that select: a range where they are one, which is copied at once, else on the device."""
        is_range = len(numbers) > 0 and bool((np.diff(numbers) == 1).all())
        return slice(int(numbers[0]), int(numbers[-1]) + 1) if is_range else self.on_device(numbers)

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
        still = [c for c in captures if not c.shift]
        stored: list[tuple[torch.Tensor, torch.Tensor, Move | None]]
        stored = [(self._joined([c.stored for c in still]), self._joined([c.slots for c in still]), None)]
        stored += [
            (self.on_device(c.stored), self.on_device(c.slots), self._move(c.stored_at, c.shift))
            for c in captures
            if c.shift
        ]
        kept = [
            (c.units[0], self._range(c.kept), self._range(c.rows), self._move(c.kept_at, c.shift))
            for c in captures
            if len(c.kept)
        ]
        recorded = [
            (c.record, self._range(c.recorded), self._range(c.record_rows))
            for c in captures
            if c.record is not None
        ]

        def observe(index: int, update: Any, key: Any, value: Any) -> None:
            for tokens, slots, move in stored:
                if len(tokens):
                    update(*_moved(move, index, key[tokens], value[tokens]), slots)
            for unit, some, rows, move in kept:
                states = _moved(move, index, key[some], value[some])
                self.row_store.write(unit, index, rows, *states)
            for record, some, rows in recorded:
                self.records.rows.write(record, index, rows, key[some], value[some])
            if late is not None:
                update(*self.row_store.gather_layer(late.ranges, index), late_slots)

        return observe

    def _joined(self, arrays: Sequence[NDArray[np.int64]]) -> torch.Tensor:
        return self.on_device(np.concatenate(arrays) if arrays else NO_TOKENS)


def _moved(move: Move | None, layer: int, key: Any, value: Any) -> tuple[Any, Any]:
    return (key, value) if move is None else move.apply(layer, key, value)
