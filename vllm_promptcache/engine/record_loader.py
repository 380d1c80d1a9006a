"""Writes records into units' blocks and edge rows: a step's all at once, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.engine.messages import Load
from vllm_promptcache.records.rotation import Move, Rotation
from vllm_promptcache.records.row_store import RowStore

Some = slice | torch.Tensor


class RecordLoader:
    """Loads units of a step together.

    What goes into blocks is gathered, moved and written layer by layer, for all units at once: a layer's rows
    stay in the processor's cache meanwhile, and the number of calls does not grow with the number of units.
    What becomes edge rows is a few rows of each unit: those are moved for all layers at once.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        device: torch.device,
        records: RowStore,
        edge_rows: RowStore,
        rotation: Rotation | None,
    ):
        """``rotation`` is None for models whose states cannot be moved."""
        self._layers = layers
        self._device = device
        self._records = records
        self._edge_rows = edge_rows
        self._rotation = rotation

    def load(self, loads: Sequence[Load]) -> None:
        """Make units' states from their records, which are in memory."""
        for load in loads:
            self._edge_rows.open(load.unit, load.num_rows)
            self._load_edge_rows(load)
        # States that stay where they were are not turned: that would be all but exact.
        for some in ([load for load in loads if not load.shift], [load for load in loads if load.shift]):
            if some:
                self._load_blocks(some)

    def move(self, positions: NDArray[np.int64], shift: NDArray[np.int64] | int) -> Move:
        """What moves states at positions (int64, ``(tokens,)``) by ``shift``, one number or one for each."""
        assert self._rotation is not None, "states of this model cannot be moved"
        return self._rotation.begin(self._on_device(positions), self._on_device(positions + shift))

    def _load_blocks(self, loads: Sequence[Load]) -> None:
        parts = [(load, np.flatnonzero(load.slots >= 0)) for load in loads]
        slots = np.concatenate([load.slots[stored] for load, stored in parts])
        if not len(slots):
            return
        on_device, move = self._on_device(slots), None
        if loads[0].shift:
            positions = np.concatenate([load.positions[stored] for load, stored in parts])
            shifts = np.concatenate([np.full(len(stored), load.shift) for load, stored in parts])
            move = self.move(positions, shifts)
        sources = [(load.record, _some(stored)) for load, stored in parts if len(stored)]
        for index, layer in enumerate(self._layers):
            pairs = [(self._records.layer(record, index), some) for record, some in sources]
            key, value = (_joined([pair[i][some] for pair, some in pairs]).to(self._device) for i in (0, 1))
            if move is not None:
                key, value = move.apply(index, key, value)
            compat.update_cache(layer, key, value, on_device)

    def _load_edge_rows(self, load: Load) -> None:
        kept = np.flatnonzero(load.rows >= 0)
        if not len(kept):
            return
        rows = _some(load.rows[kept])
        if isinstance(rows, torch.Tensor):
            rows = rows.to(self._device)
        move = self.move(load.positions[kept], load.shift) if load.shift else None
        for kind, layers in enumerate(self._records.layers_of):
            pair = self._records.some_rows(load.record, kind, _some(kept))
            key, value = (each.to(self._device) for each in pair)
            if move is not None:
                key, value = move.apply_to_all(layers, key, value)
            self._edge_rows.write_all(load.unit, kind, rows, key, value)

    def _on_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)


def _some(indices: NDArray[np.int64]) -> Some:
    """Indices of rows; as a slice, which copies nothing, where each follows the one before."""
    if len(indices) and bool((np.diff(indices) == 1).all()):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return torch.from_numpy(indices)


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(tuple(rows))
