"""Rows in a worker's memory: keys and values of tokens, ready to be written into blocks.

Records are all rows of a unit, edge rows those that do not fill a block of one of its placements.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch

from vllm_promptcache.blocks.slot_layout import EdgeRows
from vllm_promptcache.records.packing import pack, unpack

Pair = tuple[torch.Tensor, torch.Tensor]


class RowStore:
    """By name, each layer's key and value rows as handed to the backend's cache update.

    Rows are kept before the backend packs or quantizes them, so nothing here knows a layout. Layers of
    one *kind* hand over rows of one shape, and share a tensor: ``(layers of the kind, rows, KV heads, head
    size)``, or whatever a layer's key and value have behind their first dimension. Tensors live on
    ``device``, or where the model runs; with ``packed_from``, the model's data type, in 8 bits (``packing``).

    Life of a unit's rows: `open`, then a `write` for every layer and row, in any order and over several
    steps, then any number of reads, then `drop`. A unit that is opened again begins anew: an encoding that
    was preempted computes all of its tokens again, so rows that it had written half are thrown away. Reading
    a row that was not written since is a mistake that is not noticed, except where nothing was written.
    """

    def __init__(
        self,
        kinds: Sequence[Hashable],
        device: torch.device | None = None,
        packed_from: torch.dtype | None = None,
    ):
        """``kinds`` are the layers', in the order in which layers are numbered here."""
        self._device = device
        self._packed_from = packed_from
        numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        self.num_layers = len(kinds)
        # By kind, the numbers of its layers; of each layer its kind, and its place among those.
        self.layers_of: list[list[int]] = [[] for _ in numbers]
        self._places: list[tuple[int, int]] = []
        for layer, kind in enumerate(kinds):
            same = self.layers_of[numbers[kind]]
            self._places.append((numbers[kind], len(same)))
            same.append(layer)
        self._rows: dict[Hashable, list[Pair | None]] = {}
        self._num_rows: dict[Hashable, int] = {}

    def open(self, unit: Hashable, num_rows: int) -> None:
        """Begin to keep a unit's rows, anew if some are there; memory is taken when the first are written."""
        self._rows[unit] = [None] * len(self.layers_of)
        self._num_rows[unit] = num_rows

    def drop(self, units: Iterable[Hashable]) -> None:
        """Forget units' rows."""
        for unit in units:
            self._rows.pop(unit, None)
            self._num_rows.pop(unit, None)

    def write(
        self, unit: Hashable, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Keep ``key[i]`` and ``value[i]`` (``(tokens, KV heads, head size)``) as row ``rows[i]``."""
        kind, index = self._places[layer]
        pair = self._rows[unit][kind]
        if self._packed_from is not None:
            key, value = pack(key), pack(value)
        if self._device is not None:
            rows, key, value = rows.to(self._device), key.to(self._device), value.to(self._device)
        if pair is None:
            pair = self._take_memory(unit, kind, key, value)
        pair[0][index, rows] = key
        pair[1][index, rows] = value

    def write_all(
        self, unit: Hashable, kind: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Keep a kind's rows, ``(layers of the kind, tokens, …)``, in a store that packs none."""
        pair = self._rows[unit][kind] or self._take_memory(unit, kind, key[0], value[0])
        pair[0][:, rows] = key
        pair[1][:, rows] = value

    def layer(self, unit: Hashable, layer: int) -> Pair:
        """All rows of one layer, as they were written."""
        kind, index = self._places[layer]
        key, value = (rows[index] for rows in self._pair(unit, kind))
        if self._packed_from is None:
            return key, value
        return unpack(key, self._packed_from), unpack(value, self._packed_from)

    def some_rows(self, unit: Hashable, kind: int, some: slice | torch.Tensor) -> Pair:
        """Some rows of all layers of a kind, ``(layers of the kind, rows, …)``, as they were written."""
        key, value = (rows[:, some] for rows in self._pair(unit, kind))
        if self._packed_from is None:
            return key, value
        return unpack(key, self._packed_from), unpack(value, self._packed_from)

    def all_rows(self, unit: Hashable) -> list[Pair]:
        """What is kept of a unit, a pair for each kind of layers; not to be changed."""
        return [self._pair(unit, kind) for kind in range(len(self.layers_of))]

    def put(self, unit: Hashable, rows: list[Pair]) -> bool:
        """Keep rows as ``all_rows`` gave them; whether they are of layers as these are."""
        shapes = [(len(key), len(value)) for key, value in rows]
        if shapes != [(len(layers), len(layers)) for layers in self.layers_of]:
            return False
        self._rows[unit] = list(rows)
        self._num_rows[unit] = rows[0][0].shape[1]
        return True

    def __contains__(self, unit: Hashable) -> bool:
        return unit in self._rows

    def is_written(self, unit: Hashable) -> bool:
        """Whether every kind of layers has written rows of a unit."""
        return None not in self._rows.get(unit, (None,))

    @property
    def num_bytes(self) -> int:
        """Memory that all rows take."""
        return sum(t.nbytes for pairs in self._rows.values() for pair in pairs if pair for t in pair)

    def gather(self, ranges: Sequence[EdgeRows]) -> Iterator[Pair]:
        """Each layer's key and value rows of several ranges, one after the other: ``(rows, KV heads, head
        size)``. Layer by layer: what is gathered is used while it is in the processor's cache, and before
        anything is written, as rows of a single range are not copied."""
        by_kind = [self._gather_kind(ranges, kind) for kind in range(len(self.layers_of))]
        if len(by_kind) == 1:
            return by_kind[0]
        return (next(by_kind[kind]) for kind, _ in self._places)

    def _gather_kind(self, ranges: Sequence[EdgeRows], kind: int) -> Iterator[Pair]:
        """As ``gather``, of the layers of a kind."""
        pairs = [(self._pair(r.unit, kind), r) for r in ranges]
        keys = [pair[0][:, r.start : r.end].unbind() for pair, r in pairs]
        values = [pair[1][:, r.start : r.end].unbind() for pair, r in pairs]
        if len(ranges) == 1:
            return zip(keys[0], values[0], strict=True)
        return zip(
            map(torch.cat, zip(*keys, strict=True)), map(torch.cat, zip(*values, strict=True)), strict=True
        )

    def gather_layer(self, ranges: Sequence[EdgeRows], layer: int) -> Pair:
        """As ``gather``, of one layer: for rows that are written in the course of a step."""
        kind, index = self._places[layer]
        pairs = [(self._pair(r.unit, kind), r) for r in ranges]
        keys = [pair[0][index, r.start : r.end] for pair, r in pairs]
        values = [pair[1][index, r.start : r.end] for pair, r in pairs]
        return torch.cat(keys), torch.cat(values)

    def _take_memory(self, unit: Hashable, kind: int, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Memory for a kind's rows like these, ``(tokens, …)``."""
        shape = (len(self.layers_of[kind]), self._num_rows[unit])
        pair = (key.new_empty(*shape, *key.shape[1:]), value.new_empty(*shape, *value.shape[1:]))
        self._rows[unit][kind] = pair
        return pair

    def _pair(self, unit: Hashable, kind: int) -> Pair:
        pair = self._rows[unit][kind]
        assert pair is not None, "a unit's rows are asked for before they are computed"
        return pair
