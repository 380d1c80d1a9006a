"""Registered schemas whose words are of another date than the one that the chat template says now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.registry import SchemaRegistry

logger = logging.getLogger("vllm.promptcache")


class Renewal:
    """Lays registered schemas out again when the chat template says another date: a new version of each,
    which is encoded as it is used, or pinned as the old one was."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()

    async def renew(self, name: str, stamp: str) -> None:
        """Renew a schema, if there is one of that name and it was not looked at since the template says what
        it says now: ``stamp``, which is empty for one that says no date.

        Raises PMLError where it does not fit the model any more.
        """
        if not self._is_old(name, stamp):
            return
        async with self._turn:
            if not self._is_old(name, stamp):
                return
            registry, entry = self._registry, self._registry.entries[name]
            (layout,) = await registry.connection.run(partial(registry.builder.build, [entry.layout.node]))
            held = [unit for unit in entry.layout.units if unit.placement in entry.pinned]
            pinned = {unit.id: entry.ending.get(unit.placement) for unit in held}
            registered = await registry.register_layouts([layout], source=entry.source, ttl=entry.ttl)
            (new,) = registered.entries
            if new is not entry:
                new.num_requests = entry.num_requests
                await self._pin_again(new, pinned)
            new.stamp = stamp

    def _is_old(self, name: str, stamp: str) -> bool:
        entry = self._registry.entries.get(name)
        return entry is not None and entry.stamp != stamp

    async def _pin_again(self, entry: SchemaEntry, pinned: Mapping[str, float | None]) -> None:
        """Pin units by their names, with the times after which their pins end, as far as there is room."""
        async with self._registry.changing():
            for ttl in set(pinned.values()):
                units = [unit for unit in entry.layout.units if unit.id in pinned and pinned[unit.id] == ttl]
                placements = [unit.placement for unit in units]
                try:
                    await self._registry.hold(placements, ttl)
                except RefusedError as refusal:
                    logger.warning("Prompt cache: schema %r is pinned no more: %s.", entry.name, refusal)
                    break
                entry.pin(placements, ttl)
            self._registry.publish([entry])
