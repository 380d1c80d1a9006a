"""Which units are resident, in which physical blocks, who uses them, and which of them may go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.blocks.slot_layout import SharedBlocks
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.eviction import EvictionPolicy
from vllm_promptcache.engine.known_units import KnownUnits
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit
from vllm_promptcache.engine.tally import Reason, Tally
from vllm_promptcache.engine.unit_events import UnitEvents
from vllm_promptcache.records.shares import Shares

MAX_KNOWN_UNITS = 20_000
# Rows beside the KV cache, of units that nobody asks for now: at most one for so many tokens that it holds.
KEPT_ROWS_PART = 4


class ResidentUnits:
    """Owns the units' references to physical blocks of one KV cache group.

    Invariant: every allocated unit holds exactly one reference to each of its blocks, so that
    free + module blocks + requests' own blocks + the null block is the whole pool.

    ``gained`` and ``lost`` are called when a unit's states are there, and when they no longer are, ``idle``
    when one may go from now on. No call takes longer the more units are known. A tenant whose units hold more
    than ``tenant_fraction`` of the blocks, rows or units that there may be is the first to lose some.
    """

    def __init__(
        self,
        known: KnownUnits,
        block_pool: BlockPool,
        policy: Callable[[Shares], EvictionPolicy],
        tenant_fraction: float = 1.0,
    ):
        self.known = known
        self.block_pool = block_pool
        num_blocks = block_pool.num_gpu_blocks - 1
        self.max_kept_rows = num_blocks * known.block_size // KEPT_ROWS_PART
        self.tally = Tally()
        self.idle: Callable[[StoredUnit], None] = _ignore
        # For whom blocks are looked for, and how many for units: its own go first if they pass its share.
        self.asker: tuple[str | None, int] = (None, 0)
        self.gained: Callable[[StoredUnit], None] = _ignore
        self.lost: Callable[[StoredUnit], None] = _ignore
        self.events = UnitEvents(block_pool, known.block_size)
        self.num_kept_rows = 0
        self.num_resident = 0
        self.num_encoding = 0
        self.num_blocks = 0
        self._dropped: list[UnitKey] = []
        # Units that may go: those with blocks, those that nobody holds, and of the latter those with rows.
        self.block_shares = Shares(tenant_fraction * num_blocks)
        self.row_shares = Shares(tenant_fraction * self.max_kept_rows)
        self._unit_shares = Shares(tenant_fraction * MAX_KNOWN_UNITS)
        self._with_blocks, self._with_rows = policy(self.block_shares), policy(self.row_shares)
        self._unheld = policy(self._unit_shares)
        known.settle = self.settle

    # -- coming ----------------------------------------------------------------------------------

    def begin(self, unit: StoredUnit) -> None:
        """Somebody is about to provide the unit's states."""
        assert unit.residency is Residency.ABSENT
        unit.residency = Residency.ENCODING
        self.num_encoding += 1
        self._count_rows(unit, 1)
        while self.num_kept_rows > self.max_kept_rows and len(self._with_rows):
            self.evict(self.known[next(iter(self._with_rows))], Reason.ROWS)

    def allocate(self, unit: StoredUnit, blocks: Sequence[KVCacheBlock] | None = None) -> None:
        """Take the unit's blocks from the pool, where the caller has checked that they are free; or share
        ``blocks`` with a request that writes the unit's states where it computes them."""
        assert unit.residency is Residency.ENCODING and not unit.blocks
        if blocks is None:
            unit.blocks = self.block_pool.get_new_blocks(unit.geometry.num_blocks)
        else:
            self.block_pool.touch(blocks)
            unit.blocks = list(blocks)
        assert len(unit.blocks) == unit.geometry.num_blocks
        self._count_blocks(unit, len(unit.blocks))

    def finish(self, unit: StoredUnit) -> None:
        """The step being scheduled writes the last of the unit's states: others in it may read them.

        Each layer writes all keys and values of a step before it reads any. Whoever provides the states
        uses the unit until the step is on its way: its blocks must not be another's in the same step.
        """
        assert unit.residency is Residency.ENCODING and len(unit.blocks) == unit.geometry.num_blocks
        unit.residency = Residency.RESIDENT
        self.num_encoding -= 1
        self.num_resident += 1
        unit.users += 1
        self.events.stored(unit)
        self.gained(unit)

    def take_back(self, unit: StoredUnit) -> None:
        """What was written so far is gone with the unit's blocks, and will be provided again."""
        assert unit.has_states
        if unit.residency is Residency.RESIDENT:  # in the step that would have finished it
            unit.users -= 1
            assert not unit.users, "a request was admitted on a unit whose encoding was taken back"
            unit.residency = Residency.ENCODING
            self.num_resident -= 1
            self.num_encoding += 1
            self.lost(unit)
        self._free_blocks(unit)

    def give_up(self, unit: StoredUnit) -> None:
        """Nobody is about to provide the unit's states any more."""
        assert unit.residency is Residency.ENCODING and not unit.blocks
        self.num_encoding -= 1
        self._gone(unit)

    # -- in use ----------------------------------------------------------------------------------

    def shared_blocks(self, ranges: Iterable[SharedBlocks]) -> list[KVCacheBlock]:
        """The physical blocks of shared ranges, in order."""
        return [b for r in ranges for b in self.known[r.unit].blocks[r.start : r.end]]

    def use(self, keys: Iterable[UnitKey]) -> None:
        """A running request rests on the units: they must not go."""
        for key in keys:
            unit = self.known[key]
            assert unit.residency is Residency.RESIDENT
            unit.users += 1
            if unit.users == 1:
                self.settle(unit)

    def end_use(self, keys: Iterable[UnitKey]) -> None:
        """The request is over, or preempted."""
        for key in keys:
            unit = self.known[key]
            unit.users -= 1
            assert unit.users >= 0
            if not unit.users:
                unit.idle_since = time.monotonic()
                self.settle(unit)

    # -- going -----------------------------------------------------------------------------------

    def settle(self, unit: StoredUnit) -> None:
        """Put a unit where it belongs after a change: among those that may go, or away."""
        key, is_idle = unit.key, unit.is_idle
        _put(self._with_blocks, key, is_idle and bool(unit.blocks))
        is_unheld = is_idle and not unit.holders
        _put(self._unheld, key, is_unheld)
        _put(self._with_rows, key, is_unheld and bool(unit.geometry.num_rows))
        if is_idle:
            self.idle(unit)
        if is_unheld and unit.retired:
            self.evict(unit, Reason.WITHDRAWN)
        elif not (unit.holders or unit.pinned or unit.users or unit.has_states):
            if key in self.known:
                self.known.forget(unit)
        elif is_unheld and len(self.known) > MAX_KNOWN_UNITS:
            # Units too short to fill a block are not reclaimed for blocks: bound their number.
            self.evict(self.known[next(iter(self._unheld))], Reason.NUMBER)

    @property
    def has_idle_blocks(self) -> bool:
        """Whether any unit with blocks may go."""
        return bool(len(self._with_blocks))

    def give_way(self, num_blocks: int) -> None:
        """Drop units, in the policy's order, until so many blocks have become free or none is left; but none
        of which a live request is composed."""
        while num_blocks > 0:
            unit = next((u for key in self._in_order() if not (u := self.known[key]).requesters), None)
            if unit is None:
                return
            num_blocks -= len(unit.blocks)
            self.evict(unit, Reason.PREFIX)

    def reclaim(self, protected: Set[UnitKey]) -> Iterator[UnitKey]:
        """Drop units with blocks that are not pinned, used or protected, in the policy's order: one at
        each step, and nothing before the first."""
        while True:
            key = next((key for key in self._in_order() if key not in protected), None)
            if key is None:
                return
            self.evict(self.known[key], Reason.BLOCKS)
            yield key

    def _in_order(self) -> Iterator[UnitKey]:
        tenant, num_blocks = self.asker
        if num_blocks and self.block_shares.is_over(tenant, num_blocks):
            yield from self._with_blocks.of(tenant)
        yield from self._with_blocks

    def evict(self, unit: StoredUnit, reason: Reason) -> None:
        """Drop a unit's states, which nobody uses."""
        assert unit.residency is Residency.RESIDENT and not unit.users
        self.tally.count_eviction(unit.key.tenant, reason)
        for order in (self._with_blocks, self._unheld, self._with_rows):
            order.evicted(unit.key)
        self._free_blocks(unit)
        self.num_resident -= 1
        heads = self.known.heads_of(unit.key)
        self._gone(unit)
        # A head has no blocks that are wanted: it goes with its unit, if nobody waits for it.
        for key in heads:
            self.discard(key)

    def discard(self, key: UnitKey) -> None:
        """Drop a unit's states, if it has any that nobody uses or holds."""
        unit = self.known.by_key.get(key)
        if unit is not None and unit.is_idle and not unit.holders:
            self.evict(unit, Reason.WITHDRAWN)

    def drop_all(self) -> None:
        """Drop every unit's states that no running request rests on, pinned ones too.

        They are encoded again on demand: for when the weights or the KV cache have changed.
        """
        for unit in list(self.known.by_key.values()):
            if unit.residency is Residency.RESIDENT and not unit.users:
                self.evict(unit, Reason.RESET)

    def take_dropped(self) -> tuple[UnitKey, ...]:
        """Units that went since the last call and are not coming again."""
        dropped, self._dropped = self._dropped, []
        return tuple(k for k in dropped if k not in self.known or not self.known[k].has_states)

    @property
    def has_dropped(self) -> bool:
        """Whether the workers are still to be told of units that went."""
        return bool(self._dropped)

    def _gone(self, unit: StoredUnit) -> None:
        """The unit's states are gone; the workers are told to drop its rows."""
        unit.residency = Residency.ABSENT
        self._count_rows(unit, -1)
        self._dropped.append(unit.key)
        self.lost(unit)
        self.settle(unit)

    def _free_blocks(self, unit: StoredUnit) -> None:
        self.events.removed(unit)
        self._count_blocks(unit, -len(unit.blocks))
        self.block_pool.free_blocks(reversed(unit.blocks))
        unit.blocks = []

    def _count_blocks(self, unit: StoredUnit, number: int) -> None:
        self.num_blocks += number
        self.block_shares.add(unit.key.tenant, number)

    def _count_rows(self, unit: StoredUnit, sign: int) -> None:
        self.num_kept_rows += sign * unit.geometry.num_rows
        self.row_shares.add(unit.key.tenant, sign * unit.geometry.num_rows)
        self._unit_shares.add(unit.key.tenant, sign)


def _put(order: EvictionPolicy, key: UnitKey, may_go: bool) -> None:
    if may_go:
        order.offered(key)
    else:
        order.taken(key)


def _ignore(unit: StoredUnit) -> None:
    """Nobody waits."""
