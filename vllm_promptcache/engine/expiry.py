"""Expiry: what goes because of time alone, looked after between steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.module_store import ModuleStore

SECONDS_BETWEEN_LOOKS = 0.1


class Expiry:
    """Drops units that nobody used for ``ttl_s`` seconds, None for never, and ends pins whose time is over.

    ``unpinned`` is told of those.
    """

    def __init__(
        self, store: ModuleStore, ttl_s: float | None, unpinned: Callable[[Iterable[UnitKey]], None]
    ):
        self._store = store
        self._unpinned = unpinned
        self._ttl_s = ttl_s
        self._next_look = 0.0

    def look(self) -> None:
        """Look whether anything is due, if that was not just done."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        self._unpinned(self._store.pins.expire(now))
        if self._ttl_s is not None:
            self._store.resident.expire(now - self._ttl_s)
