"""How much of the KV cache a composed prompt needs, so that none waits for blocks that never come."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from vllm_promptcache.blocks.geometry import find_pieces
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.contract.unit import Placement, Unit
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.layout.schema import SchemaLayout


class UnitBlocks(NamedTuple):
    """A unit in the KV cache: its blocks, how many of its kept tokens are in none of them, how many blocks
    encoding it takes besides, and its pieces."""

    num_blocks: int
    num_edge_tokens: int
    num_encoding_blocks: int
    pieces: list[tuple[int, int]]


@dataclass(frozen=True)
class Capacity:
    """The KV blocks of one engine. ``num_blocks`` are those that pins can never take away."""

    block_size: int
    num_blocks: int
    # Worked out when a schema's unit is first asked for.
    _known: WeakKeyDictionary[SchemaLayout, dict[Unit, UnitBlocks]] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any]) -> Capacity:
        """The capacity that ``stats`` tell of: the smallest engine's, where there are several."""
        engines = stats.get("engines", (stats,))
        free = min(engine["blocks_total"] - engine["blocks_pin_limit"] for engine in engines)
        return cls(stats["block_size"], free)

    def max_new_tokens(self, layout: SchemaLayout, plan: Plan, pinned: Container[Placement]) -> int:
        """How many tokens can be generated after a prompt before its blocks run out; at least one.

        ``plan`` is one over ``layout``; ``pinned`` are units whose blocks are pinned for it already.

        Raises:
            RefusedError: the prompt could never be admitted, however long it waited.
        """
        size = self.block_size
        known = self._known.setdefault(layout, {})
        free, scratch = self.num_blocks, 0
        for unit in plan.units:
            if unit.placement not in pinned:
                blocks = known.get(unit) or self._blocks_of(unit, known)
                free -= blocks.num_blocks
                scratch = max(scratch, blocks.num_encoding_blocks)
        if plan.repaired_ranges:
            edges = sum(self._edge_tokens(s, known) for s in plan.segments if isinstance(s, CachedSegment))
        else:
            edges = sum([s.num_tokens % size for s in plan.segments if isinstance(s, CachedSegment)])
        room = free * size - edges - plan.num_new_tokens
        if room < 1 or scratch > free:
            private = -(-(edges + plan.num_new_tokens + 1) // size)
            needed = self.num_blocks - free + max(scratch, private)
            raise RefusedError(
                f"the prompt needs {needed} KV blocks of {size} tokens, with what encoding its modules"
                f" takes; {self.num_blocks} are there for what is not pinned"
            )
        return room

    def _edge_tokens(self, segment: CachedSegment, known: dict[Unit, UnitBlocks]) -> int:
        """Tokens of a segment, which may begin inside a block, that are in no block which it shares."""
        size, num_tokens = self.block_size, segment.num_tokens
        for start, end in self._blocks_of(segment.unit, known).pieces:
            first, last = max(segment.start - start, 0), min(segment.end, end) - start
            num_tokens -= max(last // size - -(-first // size), 0) * size
        return num_tokens

    def _blocks_of(self, unit: Unit, known: dict[Unit, UnitBlocks]) -> UnitBlocks:
        """A unit's blocks, which become known, as do those of its context."""
        if unit not in known:
            size = self.block_size
            starts, ends = find_pieces(unit.position_ids, unit.kept, unit.breaks)
            num_blocks = int(((ends - starts) // size).sum())
            num_edges = int(unit.kept.sum()) - num_blocks * size
            context_edges = sum(self._blocks_of(seen, known).num_edge_tokens for seen in unit.context)
            encoding = -(-(context_edges + unit.num_tokens) // size)
            pieces = list(zip(starts.tolist(), ends.tolist(), strict=True))
            known[unit] = UnitBlocks(num_blocks, num_edges, encoding, pieces)
        return known[unit]
