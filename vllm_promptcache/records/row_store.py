"""Rows in a worker's memory: keys and values of tokens, ready to be written into blocks.

Records are all rows of a unit, edge rows those that do not fill a block of one of its placements.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from vllm_promptcache.blocks.slot_layout import EdgeRows
from vllm_promptcache.records.host_memory import host_empty
from vllm_promptcache.records.packing import pack, unpack

Pair = tuple[torch.Tensor, torch.Tensor]


class _Place(NamedTuple):
    """Where a unit's rows are: half-open rows of tensors, one pair a kind, that it may share with others."""

    pairs: list[Pair | None]
    num_rows: int
    start: int
    end: int


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
    Units that are opened together are written together, through the first of them.
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
        self._rows: dict[Hashable, _Place] = {}

    def open(self, unit: Hashable, num_rows: int) -> None:
        """Begin to keep a unit's rows, anew if some are there; memory is taken when the first are written."""
        self.open_together([(unit, num_rows)])

    def open_together(self, units: Sequence[tuple[Hashable, int]]) -> None:
        """As ``open``, for units with so many rows each: the first one's `write` counts rows through all."""
        pairs: list[Pair | None] = [None] * len(self.layers_of)
        num_rows, end = sum(number for _, number in units), 0
        for unit, number in units:
            start, end = end, end + number
            self._rows[unit] = _Place(pairs, num_rows, start, end)

    def drop(self, units: Iterable[Hashable]) -> None:
        """Forget units' rows."""
        for unit in units:
            self._rows.pop(unit, None)

    def write(
        self,
        unit: Hashable,
        layer: int,
        rows: slice | torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        """Keep ``key[i]`` and ``value[i]`` (``(tokens, KV heads, head size)``) as row ``rows[i]``, of a range
        or of numbers."""
        kind, index = self._places[layer]
        place = self._rows[unit]
        pair = place.pairs[kind]
        if isinstance(rows, slice):
            rows = slice(rows.start + place.start, rows.stop + place.start)
        elif place.start:
            rows = rows + place.start
        if self._packed_from is not None:
            key, value = pack(key), pack(value)
        if self._device is not None:
            key, value = key.to(self._device), value.to(self._device)
            rows = rows if isinstance(rows, slice) else rows.to(self._device)
        if pair is None:
            pair = self._take_memory(place, kind, key, value)
        pair[0][index, rows] = key
        pair[1][index, rows] = value

    def write_all(
        self, unit: Hashable, kind: int, rows: slice | torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Keep a kind's rows, ``(layers of the kind, tokens, …)``, in a store that packs none."""
        place = self._rows[unit]
        pair = place.pairs[kind] or self._take_memory(place, kind, key[0], value[0])
        own = slice(place.start, place.end)
        pair[0][:, own][:, rows] = key
        pair[1][:, own][:, rows] = value

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
        num_rows = rows[0][0].shape[1]
        self._rows[unit] = _Place(list(rows), num_rows, 0, num_rows)
        return True

    def __contains__(self, unit: Hashable) -> bool:
        return unit in self._rows

    def is_written(self, unit: Hashable) -> bool:
        """Whether every kind of layers has written rows of a unit."""
        place = self._rows.get(unit)
        return place is not None and all(pair is not None for pair in place.pairs)

    @property
    def num_bytes(self) -> int:
        """Memory that all rows take."""
        tensors = {id(place.pairs): place.pairs for place in self._rows.values()}
        return sum(t.nbytes for pairs in tensors.values() for pair in pairs if pair for t in pair)

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
        found = self._joined(ranges, kind)
        keys = [key[:, start:end].unbind() for (key, _), start, end in found]
        values = [value[:, start:end].unbind() for (_, value), start, end in found]
        if len(found) == 1:
            return zip(keys[0], values[0], strict=True)
        return zip(
            map(torch.cat, zip(*keys, strict=True)), map(torch.cat, zip(*values, strict=True)), strict=True
        )

    def gather_layer(self, ranges: Sequence[EdgeRows], layer: int) -> Pair:
        """As ``gather``, of one layer: for rows that are written in the course of a step."""
        kind, index = self._places[layer]
        found = self._joined(ranges, kind)
        keys = [key[index, start:end] for (key, _), start, end in found]
        values = [value[index, start:end] for (_, value), start, end in found]
        return torch.cat(keys), torch.cat(values)

    def _joined(self, ranges: Sequence[EdgeRows], kind: int) -> list[tuple[Pair, int, int]]:
        """Where ranges are in the tensors of a kind; those that follow each other there are one."""
        found: list[tuple[Pair, int, int]] = []
        for unit, first, last, _ in ranges:
            pairs, _, offset, _ = self._rows[unit]
            pair = pairs[kind]
            assert pair is not None, "a unit's rows are asked for before they are computed"
            start, end = offset + first, offset + last
            if found and found[-1][0] is pair and found[-1][2] == start:
                found[-1] = (pair, found[-1][1], end)
            else:
                found.append((pair, start, end))
        return found

    def _take_memory(self, place: _Place, kind: int, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Memory for a kind's rows like these, ``(tokens, …)``."""
        shape = (len(self.layers_of[kind]), place.num_rows)
        pair = _empty(shape, key), _empty(shape, value)
        place.pairs[kind] = pair
        return pair

    def _pair(self, unit: Hashable, kind: int) -> Pair:
        pairs, num_rows, start, end = self._rows[unit]
        pair = pairs[kind]
        assert pair is not None, "a unit's rows are asked for before they are computed"
        if end - start == num_rows:
            return pair
        return pair[0][:, start:end], pair[1][:, start:end]


def _empty(shape: tuple[int, int], rows: torch.Tensor) -> torch.Tensor:
    """Memory for as many layers and rows as ``shape`` says, where these rows are."""
    whole = (*shape, *rows.shape[1:])
    return host_empty(whole, rows.dtype) if rows.device.type == "cpu" else rows.new_empty(whole)
