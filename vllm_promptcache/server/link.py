"""The API server's link to the engine process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_PAUSE_S = 0.05


class AsyncEngineLink:
    """Calls over vLLM's engine client; long work runs in a thread."""

    def __init__(self, engine_client: Any) -> None:
        self._core = engine_client.engine_core

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One of the scheduler's ``prompt_cache`` operations.

        Sent at once: a request that is sent later reaches the engine later.
        """
        answer: dict[str, Any] = await self._core.call_utility_async("prompt_cache", operation, payload)
        return answer

    async def pause(self) -> None:
        """Wait a moment; the engine runs by itself."""
        await asyncio.sleep(_PAUSE_S)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in a thread."""
        return await asyncio.to_thread(function)
