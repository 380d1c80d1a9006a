"""The chat completions API with PML."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from vllm_promptcache.frontend.admission import INPUT_KEY, engine_input
from vllm_promptcache.frontend.composer import ComposedPrompt
from vllm_promptcache.frontend.conversation import read_turns
from vllm_promptcache.frontend.reports import Reports
from vllm_promptcache.frontend.service import PromptCacheService
from vllm_promptcache.server.errors import REFUSALS, error_response
from vllm_promptcache.server.marked import (
    MarkingRenderer,
    is_marked,
    marks_of,
    note,
    note_of,
    note_plans,
    problem_of,
)
from vllm_promptcache.server.requests import (
    is_composed,
    nothing_to_explain,
    options_of,
    pml_of,
    refuse_combinations,
)
from vllm_promptcache.server.values import refuse_unlike_objects, with_grammar_errors


class PromptCacheChatRequest(ChatCompletionRequest):
    """vLLM's request; with PML, what vLLM's validators would fail on is refused before them."""

    @model_validator(mode="before")
    @classmethod
    def refuse_unlike_objects(cls, data: Any) -> Any:
        """Runs before vLLM's validators."""
        return refuse_unlike_objects(data)


class PromptCacheServingChat(OpenAIServingChat):
    """vLLM's, which also takes requests with a ``pml`` field; others pass through untouched."""

    def __init__(self, service: PromptCacheService, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._service = service

    async def render_chat_request(self, request: ChatCompletionRequest) -> Any:
        """As vLLM's: the conversation and the engine's input, or an error."""
        note(request)
        try:
            if pml_of(request, needs_pml=False) is None:
                return await self._render_plain(request)
            error = await self._check_model(request)
            if error is not None:
                return error
            self._preflight(request.n or 1)
            return await self._render_composed(request)
        except REFUSALS as refusal:
            return error_response(refusal)

    async def explain(self, request: ChatCompletionRequest) -> list[ComposedPrompt] | ErrorResponse:
        """The composed prompt that a request would run, in a list."""
        rendered = await self.render_chat_request(request)
        if isinstance(rendered, ErrorResponse):
            return rendered
        if not (is_composed(request) or is_marked(request)):
            return error_response(nothing_to_explain())
        return [prompt[INPUT_KEY] for prompt in rendered[1]]

    async def _render_plain(self, request: ChatCompletionRequest) -> Any:
        """A request without PML: vLLM's way, but for marked parts of messages."""
        parts = marks_of(request, self._service.config)
        if parts is None:
            return await super().render_chat_request(request)
        if problem := problem_of(request, parts):
            note(request, marks_ignored=problem)
            return await super().render_chat_request(request)
        error = await self._check_model(request)
        if error is not None:
            return error
        self._preflight(request.n or 1)
        online_renderer = copy.copy(self.online_renderer)
        marking: Any = MarkingRenderer(self.renderer, self._service, request, parts)
        online_renderer.renderer = marking
        return await online_renderer.render_chat(request)

    async def _render_composed(self, request: ChatCompletionRequest) -> Any:
        """vLLM's own rendering, with all of its checks, around another renderer."""
        refuse_combinations(request)
        online_renderer = copy.copy(self.online_renderer)
        online_renderer.renderer = _ComposingRenderer(self, request)  # type: ignore[assignment]
        return await online_renderer.render_chat(request)

    async def compose(
        self, request: ChatCompletionRequest, messages: list[Any], chat_params: Any, cache_salt: str | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """The conversation and the engine's input of a request with PML."""
        conversation, turns = read_turns(messages, self.renderer, chat_params)
        adapter = self._maybe_get_adapters(request) is not None
        prompt = await self._service.composer.compose_chat(
            pml_of(request), options_of(request), turns, adapter=adapter, salt=cache_salt
        )
        note_plans(request, [prompt.plan])
        text = None
        if request.return_prompt_text:
            text = self.renderer.get_tokenizer().decode(prompt.token_ids)
        return conversation, engine_input(prompt, text=text, cache_salt=cache_salt)

    def get_chat_request_role(self, request: ChatCompletionRequest) -> str:
        """As vLLM's; messages may be empty after PML."""
        return super().get_chat_request_role(request) if request.messages else self.response_role

    async def chat_completion_full_generator(
        self, request: ChatCompletionRequest, result_generator: Any, *args: Any, **kwargs: Any
    ) -> ErrorResponse | ChatCompletionResponse:
        """As vLLM's, with what was reused in the response."""
        said = note_of(request)
        if not (is_composed(request) or said):
            return await super().chat_completion_full_generator(request, result_generator, *args, **kwargs)
        reports = Reports(said=said)
        response = await super().chat_completion_full_generator(
            request, reports.watch(with_grammar_errors(request, result_generator)), *args, **kwargs
        )
        if isinstance(response, ChatCompletionResponse):
            reports.complete(response)
        return response

    def chat_completion_stream_generator(
        self, request: ChatCompletionRequest, result_generator: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """As vLLM's, with what was reused in the last chunk."""
        said = note_of(request)
        if not (is_composed(request) or said):
            return super().chat_completion_stream_generator(request, result_generator, *args, **kwargs)
        reports = Reports(said=said)
        lines = super().chat_completion_stream_generator(
            request, reports.watch(with_grammar_errors(request, result_generator)), *args, **kwargs
        )
        return reports.complete_stream(lines)


class _ComposingRenderer:
    """Stands in for vLLM's renderer for one request: its messages become part of a composed prompt."""

    def __init__(self, serving: PromptCacheServingChat, request: ChatCompletionRequest) -> None:
        self._serving = serving
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._serving.renderer, name)

    async def render_chat_async(
        self,
        conversations: list[list[Any]],
        chat_params: Any,
        tok_params: Any = None,
        *,
        prompt_extras: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[list[Any], list[Any]]:
        """As ``BaseRenderer.render_chat_async``, for one conversation."""
        (messages,) = conversations
        cache_salt = (prompt_extras or {}).get("cache_salt")
        conversation, prompt = await self._serving.compose(self._request, messages, chat_params, cache_salt)
        return [conversation], [prompt]
