"""A naive paged memory: what each slot holds, and what each query of a step then sees.

It stands for the worker and the attention backend. It knows nothing of how slot layouts and rows are found,
only how they are used: tables of blocks, slots, and causal attention within a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.blocks.strategies import HomeText
from vllm_promptcache.blocks.composition import Composition, Computed, Reused, compose_encoding
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit
from vllm_promptcache.blocks.heads import head_text, lay_out_head
from vllm_promptcache.blocks.rows import Chunk, moved_tokens, positions_of, split_rows
from vllm_promptcache.blocks.slot_layout import SlotLayout, lay_out_slots
from vllm_promptcache.blocks.unit_key import UnitKey

Token = tuple[Any, int]


@dataclass
class Memory:
    """Slots by number, edge rows by unit, and blocks handed out one after the other."""

    block_size: int
    window: int = 0
    in_blocks: bool = True
    slots: dict[int, Token] = field(default_factory=dict)
    rows: dict[UnitKey, dict[int, Token]] = field(default_factory=dict)
    blocks: dict[UnitKey, list[int]] = field(default_factory=dict)
    geometries: dict[UnitKey, UnitGeometry] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def take(self, num_blocks: int) -> list[int]:
        return [next(self.numbers) for _ in range(num_blocks)]

    def slot(self, table: Sequence[int], logical: int) -> int:
        return table[logical // self.block_size] * self.block_size + logical % self.block_size

    def store(self, key: UnitKey, text: HomeText) -> UnitGeometry:
        """Lay a unit out and write all its tokens where the geometry says they are kept."""
        geometry = lay_out_unit(
            text.position_ids, text.kept, self.block_size, text.breaks, self.window, self.in_blocks
        )
        self.geometries[key] = geometry
        self.blocks[key] = self.take(geometry.num_blocks)
        self.rows[key] = {}
        for token in range(len(text.token_ids)):
            slot, row = int(geometry.slots[token]), int(geometry.rows[token])
            if slot >= 0:
                where = self.slot(self.blocks[key], slot)
                assert where not in self.slots, "two tokens in one slot"
                self.slots[where] = (key, token)
            if row >= 0:
                assert row not in self.rows[key], "two tokens in one edge row"
                self.rows[key][row] = (key, token)
        return geometry

    def store_head(self, key: UnitKey, text: HomeText, end: int) -> UnitKey:
        """Keep the rows of a unit's head: the same tokens as the unit's own."""
        head = (key, end)
        geometry = self.geometries[head] = lay_out_head(head_text(text, end), text.home, self.block_size)
        self.blocks[head] = []
        self.rows[head] = {row: (key, token) for token, row in enumerate(geometry.rows.tolist()) if row >= 0}
        return head


class Running:
    """A composed request in a memory: its table, and what its tokens saw so far."""

    def __init__(self, memory: Memory, composition: Composition, name: str, num_generated: int = 0):
        self.memory, self.name = memory, name
        self.slot_layout: SlotLayout = lay_out_slots(
            composition, memory.geometries, memory.block_size, 1_000_000, memory.window
        )
        slot_layout = self.slot_layout
        self.shared = [b for s in slot_layout.shared for b in memory.blocks[s.unit][s.start : s.end]]
        stream = (
            slot_layout.num_prompt_tokens - slot_layout.num_shared_blocks * memory.block_size + num_generated
        )
        self.private = memory.take(-(-stream // memory.block_size))
        self.table = self.shared + self.private
        for edge in slot_layout.edge_rows:
            for row in range(edge.start, edge.end):
                logical = slot_layout.num_shared_blocks * memory.block_size + edge.offset + row - edge.start
                self._write(logical, memory.rows[edge.unit][row])
        self.computed = slot_layout.num_cached_tokens
        self.seen: list[list[Token]] = []
        self.positions: list[int] = []

    def _write(self, logical: int, token: Token) -> None:
        slot = self.memory.slot(self.table, logical)
        assert slot not in self.memory.slots, "two tokens in one slot"
        self.memory.slots[slot] = token

    def chunk(self, scheduled: int) -> Chunk:
        return Chunk(self.computed, scheduled, self.slot_layout)

    def write(self, scheduled: int) -> None:
        """Write a step's new tokens: at their own index, or where they are moved to."""
        chunk = self.chunk(scheduled)
        moved, logical = moved_tokens(chunk)
        elsewhere = dict(zip(moved.tolist(), logical.tolist(), strict=True))
        first_new = self.computed - self.slot_layout.num_cached_tokens
        for index in range(scheduled):
            where = elsewhere.get(index, self.computed + index)
            self._write(where, (self.name, first_new + index))
        self.positions += positions_of(chunk).tolist()


def step(requests: Sequence[tuple[Running, int]], num_plain_tokens: Mapping[int, int] | None = None) -> None:
    """One forward pass over (request, scheduled tokens) pairs; plain requests may stand between them."""
    chunks: list[Chunk] = []
    by_index: dict[int, Running] = {}
    plain = dict(num_plain_tokens or {})
    for request, scheduled in requests:
        while len(chunks) in plain:
            chunks.append(Chunk(7, plain[len(chunks)], None))
        by_index[len(chunks)] = request
        request.write(scheduled)
        chunks.append(request.chunk(scheduled))
    rows = split_rows(chunks)
    if rows is None:
        for index, request in by_index.items():
            chunk = chunks[index]
            _attend(request, chunk.scheduled, chunk.computed + chunk.scheduled, request.table)
    else:
        total = [0] * len(chunks)
        last = -1
        for index, queries, covered, shared, all_shared in zip(
            rows.requests.tolist(),
            rows.query_lens.tolist(),
            rows.seq_lens.tolist(),
            rows.shared_blocks.tolist(),
            rows.all_shared_blocks.tolist(),
            strict=True,
        ):
            assert index >= last, "rows stand in token order"
            last = index
            total[index] += queries
            if index not in by_index:
                assert (queries, covered) == (chunks[index].scheduled, 7 + chunks[index].scheduled)
                assert shared == all_shared == 0
                continue
            request = by_index[index]
            table = request.table[:shared] + request.table[all_shared:]
            _attend(request, queries, covered, table)
        assert total == [c.scheduled for c in chunks]
    for request, scheduled in requests:
        request.computed += scheduled


def _attend(request: Running, queries: int, covered: int, table: list[int]) -> None:
    memory = request.memory
    tokens = [memory.slots.get(memory.slot(table, i)) for i in range(covered)]
    for query in range(queries):
        seen = tokens[: covered - queries + query + 1]
        assert None not in seen, "attention reads a slot that nobody wrote"
        request.seen.append([t for t in seen if t is not None])


def expected_seen(composition: Composition, name: str) -> tuple[list[list[Token]], list[int]]:
    """By definition: each new token sees everything before it in position order, and itself."""
    before: list[Token] = []
    seen: list[list[Token]] = []
    positions: list[int] = []
    new = 0
    for item in composition.items:
        if isinstance(item, Computed):
            for index in range(item.num_tokens):
                before.append((name, new))
                seen.append(list(before))
                positions.append(item.first_position + index)
                new += 1
        else:
            before += [(item.unit, token) for token in range(item.start, item.end)]
    return seen, positions


def encoding_of(key: str, units: Mapping[str, HomeText]) -> tuple[Composition, list[int]]:
    """The request that encodes a unit."""
    text = units[key]
    named = UnitKey(key, text.home)
    context = {seen: units[seen.digest] for seen in text.context_keys(named)}
    composition, token_ids = compose_encoding([(text, text.home)], context)
    items = [i._replace(unit=i.unit.digest) if isinstance(i, Reused) else i for i in composition.items]
    return Composition(tuple(items)), token_ids
