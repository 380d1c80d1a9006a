"""The workers' edge rows: keys and values that do not fill a block, ready to be written into one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from vllm_promptcache.blocks.composition import UnitKey
from vllm_promptcache.blocks.seats import EdgeRows


class RowStore:
    """Per unit, each layer's key and value rows as handed to the backend's cache update.

    Tensors have shape ``(layers, rows, KV heads, head size)`` and live where the model runs. Rows are
    kept before the backend packs or quantizes them, so nothing here knows a layout.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self._rows: dict[UnitKey, tuple[torch.Tensor, torch.Tensor] | None] = {}
        self._num_rows: dict[UnitKey, int] = {}

    def open(self, unit: UnitKey, num_rows: int) -> None:
        """Begin to keep a unit's rows; memory is taken when the first are written."""
        self._rows[unit] = None
        self._num_rows[unit] = num_rows

    def drop(self, units: Iterable[UnitKey]) -> None:
        """Forget units' rows."""
        for unit in units:
            self._rows.pop(unit, None)
            self._num_rows.pop(unit, None)

    def write(
        self, unit: UnitKey, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Keep ``key[i]`` and ``value[i]`` (``(tokens, KV heads, head size)``) as row ``rows[i]``."""
        pair = self._rows[unit]
        if pair is None:
            shape = (self.num_layers, self._num_rows[unit])
            pair = (key.new_empty(*shape, *key.shape[1:]), value.new_empty(*shape, *value.shape[1:]))
            self._rows[unit] = pair
        pair[0][layer, rows] = key
        pair[1][layer, rows] = value

    def gather(self, ranges: Sequence[EdgeRows]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each layer's key and value rows of several ranges, one after the other: ``(rows, KV heads, head
        size)``. Layer by layer: what is gathered is used while it is in the processor's cache."""
        pairs = [(self._rows[r.unit], r) for r in ranges]
        keys = [pair[0][:, r.start : r.end].unbind() for pair, r in pairs if pair is not None]
        values = [pair[1][:, r.start : r.end].unbind() for pair, r in pairs if pair is not None]
        assert len(keys) == len(ranges), "a unit's rows are asked for before they are computed"
        if len(ranges) == 1:
            return zip(keys[0], values[0], strict=True)
        return zip(
            map(torch.cat, zip(*keys, strict=True)), map(torch.cat, zip(*values, strict=True)), strict=True
        )

    def gather_layer(self, ranges: Sequence[EdgeRows], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``gather``, of one layer: for rows that are written in the course of a step."""
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for rows in ranges:
            pair = self._rows[rows.unit]
            assert pair is not None, "a unit's rows are asked for before they are computed"
            keys.append(pair[0][layer, rows.start : rows.end])
            values.append(pair[1][layer, rows.start : rows.end])
        return torch.cat(keys), torch.cat(values)

    def compare(self, unit: UnitKey, other: UnitKey, layer: int) -> list[tuple[list[float], float]]:
        """How far a unit's rows are from another's of as many, in one layer: of keys, then of values.

        Each is the rows' squared distances, and the sum of the other's squared norms.
        """
        found: list[tuple[list[float], float]] = []
        pair, other_pair = self._rows[unit], self._rows[other]
        assert pair is not None and other_pair is not None, "rows are compared before they are computed"
        for rows, other_rows in zip(pair, other_pair, strict=True):
            mine, others = (r[layer].flatten(1).double() for r in (rows, other_rows))
            distances = (mine - others).square().sum(1)
            found.append((distances.tolist(), float(others.square().sum())))
        return found
