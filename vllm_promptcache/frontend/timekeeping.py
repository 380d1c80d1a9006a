"""Time: pins and states that have an end go when it has come, whether anybody asks for anything or not."""

from __future__ import annotations

import asyncio

from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.frontend.service import PromptCacheService

SECONDS_BETWEEN_LOOKS = 1.0


async def expire(registry: SchemaRegistry) -> None:
    """Have engines let go of what time has come for, and take over which pins have ended."""
    units = [placement for entry in registry.entries.values() for placement in entry.ending]
    answer = await registry.connection.call("expire", {"units": units})
    over = {unit for unit, pinned in zip(units, answer["pinned"], strict=True) if not pinned}
    if not over:
        return
    async with registry.changing():
        for entry in registry.entries.values():
            if ended := over & entry.ending.keys():
                entry.unpin(ended)
                registry.publish([entry])


async def keep_time(service: PromptCacheService) -> None:
    """Look again and again whether anything is due, where anything may be. It ends with its task."""
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        if has_ends(service):
            await expire(service.registry)


def has_ends(service: PromptCacheService) -> bool:
    """Whether there is anything that goes after some time."""
    if service.config.module_ttl_s is not None or service.marks.has_times:
        return True
    return any(
        entry.ending or entry.ttl is not None or entry.members.have_times
        for entry in service.registry.entries.values()
    )
