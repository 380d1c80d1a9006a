"""What a server does by itself, whether anybody asks or not."""

from __future__ import annotations

import asyncio
import contextlib

from vllm.v1.engine.exceptions import EngineDeadError

from vllm_promptcache.frontend.service import PromptCacheService
from vllm_promptcache.frontend.timekeeping import keep_time

_watching: set[asyncio.Task[None]] = set()


def keep_watch(service: PromptCacheService) -> None:
    """Let go of what time has come for, as long as there is an engine."""
    task = asyncio.create_task(_keep_time(service))
    _watching.add(task)  # the loop itself holds tasks weakly
    task.add_done_callback(_watching.discard)


async def _keep_time(service: PromptCacheService) -> None:
    with contextlib.suppress(EngineDeadError):
        await keep_time(service)
