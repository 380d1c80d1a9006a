"""How much of the KV cache a composed prompt needs, so that none waits for blocks that never come."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from vllm_promptcache.blocks.footprint import (
    NO_CONTEXT,
    ContextTokens,
    UnitFootprint,
    blocks_needed,
    footprint_of,
    num_private_tokens,
)
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit
from vllm_promptcache.contract.explain import num_plain_segments
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.contract.unit import Placement, Unit
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.layout.schema import SchemaLayout

Known = dict[Unit, tuple[UnitGeometry, UnitFootprint, ContextTokens]]


@dataclass(frozen=True)
class Capacity:
    """The KV blocks of one engine. ``num_blocks`` are those that pins can never take away.

    ``window`` is the most states that a window of the model's layers counts, 0 without; where it counts all
    that there can be, no blocks are shared (``shares_blocks`` is false). It ``keeps_modules`` unless the
    model's states cannot be composed, and ``moves_modules`` where units are encoded at home.
    """

    block_size: int
    num_blocks: int
    window: int = 0
    shares_blocks: bool = True
    keeps_modules: bool = True
    moves_modules: bool = False
    # Worked out when a schema's unit is first asked for.
    _known: WeakKeyDictionary[SchemaLayout, Known] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    @classmethod
    def from_stats(cls, stats: Mapping[str, int], num_positions: int) -> Capacity:
        """The capacity that the ``stats`` tell of an engine whose model has so many positions."""
        num_blocks, window = stats["blocks_total"] - stats["blocks_pin_limit"], stats["window"]
        keeps = bool(stats.get("keeps_modules", True))
        moves = bool(stats.get("moves_modules", False))
        return cls(stats["block_size"], num_blocks, window, window < num_positions, keeps, moves)

    def max_new_tokens(self, layout: SchemaLayout | None, plan: Plan, pinned: Container[Placement]) -> int:
        """How many tokens can be generated after a prompt before its blocks run out; 0 where its units could
        never be resident together besides what can be pinned, and it has to be computed without them.

        ``plan`` is one over ``layout``, if it is over a schema; ``pinned`` are units whose blocks are pinned
        for it already.

        Raises:
            RefusedError: nor could it be admitted then, however long it waited.
        """
        size = self.block_size
        known = {} if layout is None else self._known.setdefault(layout, {})
        units = plan.encoded_units if self.moves_modules else plan.placed_units
        placed = [unit for unit, moved in units if moved or unit.placement not in pinned]
        footprints = [self._of(unit, known)[1] for unit in placed]
        edges = self._private_tokens(plan, known)
        if layout is not None:
            # Members of pools that no schema declares come and go.
            for unit in plan.units:
                if unit not in layout.unit_places:
                    known.pop(unit, None)
        private = edges + plan.num_new_tokens
        kept = sum([footprint.num_blocks for footprint in footprints])
        room = (self.num_blocks - kept) * size - private
        if room >= 1 and blocks_needed(footprints, -(-(private + 1) // size)) <= self.num_blocks:
            return room
        num_tokens = plan.num_cached_tokens + plan.num_new_tokens
        if num_tokens >= self.num_blocks * size:
            raise RefusedError(
                f"the prompt of {num_tokens} tokens needs {-(-(num_tokens + 1) // size)} KV blocks of {size}"
                f" tokens; {self.num_blocks} are there for what is not pinned"
            )
        return 0

    def looked_up(self, plan: Plan) -> dict[str, dict[str, int]]:
        """What of a prompt is looked up in the prefix cache: whole blocks of new tokens at its beginning, as
        a plain request's (`plain_prefix`), and whole ones of its private tokens behind those (`private`)."""
        size = self.block_size
        plain = sum(segment.num_tokens for segment in plan.segments[: num_plain_segments(plan.segments)])
        private = self._private_tokens(plan, {}) + plan.num_new_tokens
        # The last token is computed whatever is found.
        blocks = {"plain_prefix": plain // size, "private": (private - 1) // size - plain // size}
        return {name: {"blocks": max(n, 0), "tokens": max(n, 0) * size} for name, n in blocks.items()}

    def _private_tokens(self, plan: Plan, known: Known) -> int:
        """Tokens of a plan's segments that are in no block which it shares, at most."""
        reused = [s for s in plan.segments if isinstance(s, CachedSegment)]
        if not self.shares_blocks:
            return plan.num_cached_tokens
        if plan.repaired_ranges:
            edges = sum(self._edge_tokens(segment, known) for segment in reused)
        else:
            edges = sum([segment.num_tokens % self.block_size for segment in reused])
        num_runs = len(plan.segments) - len(reused)
        return num_private_tokens(plan.num_cached_tokens, edges, num_runs, self.window, self.block_size)

    def _edge_tokens(self, segment: CachedSegment, known: Known) -> int:
        """Tokens of a segment, which may begin inside a block, that are in no block which it shares."""
        size, num_tokens = self.block_size, segment.num_tokens
        geometry = self._of(segment.unit, known)[0]
        for start, end in zip(geometry.piece_starts.tolist(), geometry.piece_ends.tolist(), strict=True):
            first, last = max(segment.start - start, 0), min(segment.end, end) - start
            num_tokens -= max(last // size - -(-first // size), 0) * size
        return num_tokens

    def _of(self, unit: Unit, known: Known) -> tuple[UnitGeometry, UnitFootprint, ContextTokens]:
        """How a unit is laid out, what it takes, and the tokens of its context and its own; all of which
        become known, as do those of its context."""
        stems = [unit]
        while stems[-1] not in known and (stem := stems[-1].stem) is not None:
            stems.append(stem)
        for one in reversed(stems):
            if one not in known:
                known[one] = self._lay_out(one, known)
        return known[unit]

    def _lay_out(self, unit: Unit, known: Known) -> tuple[UnitGeometry, UnitFootprint, ContextTokens]:
        geometry = lay_out_unit(
            unit.position_ids, unit.kept, self.block_size, unit.breaks, in_blocks=self.shares_blocks
        )
        context = NO_CONTEXT if unit.stem is None else known[unit.stem][2]
        context = context.and_those_of(
            self._of(seen, known)[0] for seen in unit.seen if seen is not unit.stem
        )
        return geometry, footprint_of(geometry, context, self.window), context.and_those_of([geometry])
