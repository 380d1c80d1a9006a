"""APIs that do not know PML: they say so, rather than answer as if there were none."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from vllm_promptcache.registry.errors import RefusedError
from vllm_promptcache.server.errors import error_response
from vllm_promptcache.server.requests import is_composed


def _refuse(api: str) -> Any:
    message = f"pml works with /v1/chat/completions and /v1/completions, not with {api}"
    return error_response(RefusedError(message, field="pml"))


class RefusingServingChatBatch(OpenAIServingChatBatch):
    """Batched chats: one ``pml`` would belong to several conversations."""

    async def create_batch_chat_completion(self, request: Any, raw_request: Any = None) -> Any:
        """As vLLM's; refuses PML."""
        if is_composed(request):
            return _refuse("/v1/chat/completions/batch")
        return await super().create_batch_chat_completion(request, raw_request)


class RefusingServingResponses(OpenAIServingResponses):
    """The Responses API."""

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        """As vLLM's; refuses PML."""
        if is_composed(request):
            return _refuse("/v1/responses")
        return await super().create_responses(request, raw_request)
