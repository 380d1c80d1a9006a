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

# Rows beside the KV cache, of pinned units: at most one for so many tokens that it holds.
PINNED_ROWS_PART = 2


class NoRoomError(ValueError):
    """The KV cache is too small for units besides what is, or can be, pinned."""


class Pins:
    """Pinned units and what is left beside them. ``limit`` is the most blocks that they may take."""

    def __init__(self, known: KnownUnits, block_pool: BlockPool, limit: int):
        self.known = known
        self.limit = limit
        self.num_units = 0
        self.num_blocks = 0
        self._num_usable_blocks = block_pool.num_gpu_blocks - 1
        self._num_rows = 0
        self._until: dict[UnitKey, float] = {}
        # Times at which pins end, also of pins that have another by now.
        self._ends: list[tuple[float, int, UnitKey]] = []
        self._numbers = itertools.count()

    def pin(self, keys: Iterable[UnitKey], until: float | None = None) -> bool:
        """Pin all of the units, or none when that would pass the limit, or when the rows of what is
        pinned would take half as much memory beside the KV cache as it takes itself.

        ``until`` is a time as ``time.monotonic`` counts, None for ever; the last call says.
        """
        keys = list(keys)
        units = [unit for key in dict.fromkeys(keys) if not (unit := self.known[key]).pinned]
        max_rows = self._num_usable_blocks * self.known.block_size // PINNED_ROWS_PART
        if (
            self.num_blocks + sum(u.geometry.num_blocks for u in units) > self.limit
            or self._num_rows + sum(u.geometry.num_rows for u in units) > max_rows
        ):
            return False
        for unit in units:
            self._set(unit, True)
        for key in keys:
            self._until.pop(key, None)
            if until is not None:
                self._until[key] = until
                heapq.heappush(self._ends, (until, next(self._numbers), key))
        return True

    def expire(self, now: float) -> list[UnitKey]:
        """Unpin units whose time is over, and say which."""
        over: list[UnitKey] = []
        while self._ends and self._ends[0][0] <= now:
            until, _, key = heapq.heappop(self._ends)
            if self._until.get(key) == until:
                over.append(key)
        self.unpin(over)
        return over

    def unpin(self, keys: Iterable[UnitKey]) -> None:
        """Let units go again."""
        for key in keys:
            self._until.pop(key, None)
            unit = self.known[key]
            if unit.pinned:
                self._set(unit, False)

    def _set(self, unit: StoredUnit, pinned: bool) -> None:
        unit.pinned = pinned
        unit.idle_since = max(unit.idle_since, time.monotonic())
        sign = 1 if pinned else -1
        self.num_units += sign
        self.num_blocks += sign * unit.geometry.num_blocks
        self._num_rows += sign * unit.geometry.num_rows
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
