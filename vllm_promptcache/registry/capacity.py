"""How much of the KV cache a composed prompt needs, so that none waits for blocks that never come."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

from vllm_promptcache.blocks.geometry import find_pieces
from vllm_promptcache.plan.plan import CachedSegment, Plan
from vllm_promptcache.plan.unit import Unit
from vllm_promptcache.registry.errors import RefusedError


class _Stored(NamedTuple):
    """How a unit is stored: its blocks, its kept tokens that are in none, and its pieces."""

    num_blocks: int
    num_rows: int
    starts: list[int]
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Capacity:
    """The KV blocks of one engine. ``num_blocks`` are those that pins can never take away."""

    block_size: int
    num_blocks: int
    _stored: WeakKeyDictionary[Unit, _Stored] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    @classmethod
    def from_stats(cls, stats: Mapping[str, int]) -> Capacity:
        """The capacity that the engine's ``stats`` tell of."""
        return cls(stats["block_size"], stats["blocks_total"] - stats["blocks_pin_limit"])

    def max_new_tokens(self, plan: Plan, pinned: Container[str]) -> int:
        """How many tokens can be generated after a prompt before its blocks run out; at least one.

        ``pinned`` are the digests of units whose blocks are pinned for it already.

        Raises:
            RefusedError: the prompt could never be admitted, however long it waited.
        """
        size = self.block_size
        free, scratch = self.num_blocks, 0
        for unit in plan.units:
            if unit.digest not in pinned:
                free -= self._stored_in(unit).num_blocks
                scratch = max(scratch, self._encoding_blocks(unit))
        edges = sum(self._edge_rows(s) for s in plan.segments if isinstance(s, CachedSegment))
        room = free * size - edges - plan.num_new_tokens
        if room < 1 or scratch > free:
            private = -(-(edges + plan.num_new_tokens + 1) // size)
            needed = self.num_blocks - free + max(scratch, private)
            raise RefusedError(
                f"the prompt needs {needed} KV blocks of {size} tokens, with what encoding its modules"
                f" takes; {self.num_blocks} are there for what is not pinned"
            )
        return room

    def _edge_rows(self, segment: CachedSegment) -> int:
        """Tokens of a segment that stand in private blocks: in none that it shares whole."""
        size, stored = self.block_size, self._stored_in(segment.unit)
        rows = segment.num_tokens
        for start, end in stored.pieces[bisect_right(stored.starts, segment.start) - 1 :]:
            if start >= segment.end:
                break
            first, last = max(segment.start - start, 0), min(segment.end, end) - start
            rows -= max(last // size - -(-first // size), 0) * size
        return rows

    def _encoding_blocks(self, unit: Unit) -> int:
        """Blocks that are needed while a unit is encoded, besides those that it then keeps."""
        edges = sum(self._stored_in(context).num_rows for context in unit.context)
        return -(-(edges + unit.num_tokens) // self.block_size)

    def _stored_in(self, unit: Unit) -> _Stored:
        stored = self._stored.get(unit)
        if stored is None:
            starts, ends = find_pieces(unit.position_ids, unit.kept, unit.breaks)
            blocks = int(((ends - starts) // self.block_size).sum())
            num_rows = int(unit.kept.sum()) - blocks * self.block_size
            pieces = tuple(zip(starts.tolist(), ends.tolist(), strict=True))
            stored = self._stored[unit] = _Stored(blocks, num_rows, starts.tolist(), pieces)
        return stored
