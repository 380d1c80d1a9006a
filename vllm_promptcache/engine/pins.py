"""Pins: units that stay, and how much of the KV cache they may take."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterable

from vllm.v1.core.block_pool import BlockPool

from vllm_promptcache.blocks.footprint import blocks_needed
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.known_units import KnownUnits
from vllm_promptcache.engine.stored_unit import StoredUnit
from vllm_promptcache.records.shares import Shares

# Rows beside the KV cache, of pinned units: at most one for so many tokens that it holds.
PINNED_ROWS_PART = 2


class NoRoomError(ValueError):
    """The KV cache is too small for units besides what is, or can be, pinned."""


class Pins:
    """Pinned units and what is left beside them. ``limit`` is the most blocks that they may take.

    Of it, what one tenant's requests have pinned may take ``tenant_fraction``.
    """

    def __init__(self, known: KnownUnits, block_pool: BlockPool, limit: int, tenant_fraction: float = 1.0):
        self.known = known
        self.limit = limit
        self.num_units = 0
        self.num_blocks = 0
        self._num_usable_blocks = block_pool.num_gpu_blocks - 1
        self._num_rows = 0
        self._shares = Shares(tenant_fraction * limit)
        self._by_requests: set[UnitKey] = set()
        # Of pins that end: seconds after the last use; and when to look at a unit's, once a unit.
        self._ttls: dict[UnitKey, float] = {}
        self._ends: list[tuple[float, int, UnitKey]] = []
        self._entered: dict[UnitKey, float] = {}
        self._numbers = itertools.count()

    def pin(self, keys: Iterable[UnitKey], ttl: float | None = None, *, by_request: bool = False) -> bool:
        """Pin all of the units, or none when that would pass the limit, or when the rows of what is
        pinned would take half as much memory beside the KV cache as it takes itself.

        They are pinned until nobody has used them for ``ttl`` seconds, None for ever; the last call says.
        What is pinned ``by_request`` is counted against its tenant's share.
        """
        keys = list(keys)
        units = [unit for key in dict.fromkeys(keys) if not (unit := self.known[key]).pinned]
        num_blocks = sum(u.geometry.num_blocks for u in units)
        max_rows = self._num_usable_blocks * self.known.block_size // PINNED_ROWS_PART
        if (
            self.num_blocks + num_blocks > self.limit
            or self._num_rows + sum(u.geometry.num_rows for u in units) > max_rows
            or (by_request and units and self._shares.is_over(units[0].key.tenant, num_blocks))
        ):
            return False
        for unit in units:
            self._set(unit, True, by_request=by_request)
        for key in keys:
            self._ttls.pop(key, None)
            if ttl is not None:
                self._ttls[key] = ttl
                self._enter(key, time.monotonic() + ttl)
        return True

    def expire(self, now: float) -> list[UnitKey]:
        """Unpin units whose time is over, and say which."""
        over: list[UnitKey] = []
        while self._ends and self._ends[0][0] <= now:
            end, _, key = heapq.heappop(self._ends)
            if self._entered.get(key) != end:
                continue
            del self._entered[key]
            ttl = self._ttls.get(key)
            if ttl is None:
                continue
            unit = self.known[key]
            end = now + ttl if unit.users else unit.idle_since + ttl
            if end > now:
                self._enter(key, end)
            else:
                over.append(key)
        self.unpin(over)
        return over

    def _enter(self, key: UnitKey, end: float) -> None:
        """Look at a unit's pin at a time, or sooner if that was due."""
        if end < self._entered.get(key, float("inf")):
            self._entered[key] = end
            heapq.heappush(self._ends, (end, next(self._numbers), key))
        if len(self._ends) > 2 * len(self._ttls) + 64:  # those that were let go before
            self._ends = [one for one in self._ends if self._entered.get(one[2]) == one[0]]
            heapq.heapify(self._ends)

    def unpin(self, keys: Iterable[UnitKey]) -> None:
        """Let units go again."""
        for key in keys:
            self._ttls.pop(key, None)
            self._entered.pop(key, None)
            unit = self.known[key]
            if unit.pinned:
                self._set(unit, False, by_request=key in self._by_requests)

    def _set(self, unit: StoredUnit, pinned: bool, *, by_request: bool) -> None:
        unit.pinned = pinned
        unit.idle_since = max(unit.idle_since, time.monotonic())
        sign = 1 if pinned else -1
        self.num_units += sign
        self.num_blocks += sign * unit.geometry.num_blocks
        self._num_rows += sign * unit.geometry.num_rows
        if by_request:
            self._shares.add(unit.key.tenant, sign * unit.geometry.num_blocks)
            (self._by_requests.add if pinned else self._by_requests.discard)(unit.key)
        self.known.settle(unit)

    def check_room(self, units: Iterable[StoredUnit], num_private_blocks: int = 0) -> None:
        """Check that a request on the units, with so many blocks of its own, could be admitted if it were
        alone with all that can be pinned.

        Raises:
            NoRoomError: it would wait for ever, and everyone behind it.
        """
        needed = blocks_needed([u.footprint for u in units if not u.pinned], num_private_blocks)
        room = self._num_usable_blocks - self.limit
        if needed > room:
            raise NoRoomError(
                f"{needed} KV blocks are needed while modules are encoded; {room} are there for what is not"
                " pinned"
            )

    def check_room_alone(self, key: UnitKey) -> None:
        """Check that a unit could be encoded that nobody asks for: with its context, as ``check_room``."""
        unit = self.known[key]
        self.check_room([unit, *(self.known[seen] for seen in unit.context)])
