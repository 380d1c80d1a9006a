"""The front end of the server that a request came to."""

from __future__ import annotations

from fastapi import Request

from vllm_promptcache.frontend.errors import FORBIDDEN, RefusedError
from vllm_promptcache.frontend.service import PromptCacheService

STATE = "prompt_cache"


async def service_of(request: Request) -> PromptCacheService:
    """The service, knowing what other front ends have changed."""
    service: PromptCacheService = getattr(request.app.state, STATE)
    await service.registry.catch_up()
    return service


async def managed(request: Request) -> PromptCacheService:
    """The service, where clients may manage schemas. Raises RefusedError (403)."""
    service = await service_of(request)
    if not service.config.allow_management:
        raise RefusedError("this server's schemas are not managed over the API", FORBIDDEN)
    return service
