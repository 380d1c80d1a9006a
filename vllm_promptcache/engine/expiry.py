"""Expiry: what goes because of time alone, looked after between steps, and by calls where there are none."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterable

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import StoredUnit
from vllm_promptcache.engine.tally import Reason

SECONDS_BETWEEN_LOOKS = 0.1


class Expiry:
    """Drops units that nobody used for as many seconds as ``ttl_of`` says, None for never.

    Ends pins whose time is over, too; ``unpinned`` is told of those.
    """

    def __init__(
        self,
        store: ModuleStore,
        ttl_of: Callable[[StoredUnit], float | None],
        unpinned: Callable[[Iterable[UnitKey]], None],
    ):
        self._store = store
        self._unpinned = unpinned
        self._ttl_of = ttl_of
        self._next_look = 0.0
        # When to look at a unit that is idle, once a unit, however often it is used meanwhile.
        self._due: list[tuple[float, int, UnitKey]] = []
        self._entered: set[UnitKey] = set()
        self._numbers = itertools.count()
        store.resident.idle = self._note

    def look(self) -> None:
        """Look whether anything is due, if that was not just done."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self._unpinned(self._store.pins.expire(now))
        while self._due and self._due[0][0] < now:
            _, _, key = heapq.heappop(self._due)
            self._entered.discard(key)
            unit = self._store.known.by_key.get(key)
            if unit is None or not unit.is_idle:
                continue
            ttl = self._ttl_of(unit)
            if ttl is not None and unit.idle_since + ttl < now:
                self._store.resident.evict(unit, Reason.EXPIRED)
            else:
                self._note(unit)

    def _note(self, unit: StoredUnit) -> None:
        """A unit may go from now on."""
        ttl = self._ttl_of(unit)
        if ttl is not None and unit.key not in self._entered:
            self._entered.add(unit.key)
            heapq.heappush(self._due, (unit.idle_since + ttl, next(self._numbers), unit.key))
            known = self._store.known.by_key
            if len(self._due) > 2 * len(known) + 64:  # those that went otherwise
                self._due = [due for due in self._due if due[2] in known]
                heapq.heapify(self._due)
                self._entered = {key for _, _, key in self._due}
