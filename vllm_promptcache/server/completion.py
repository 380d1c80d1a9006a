"""The completions API with PML."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from pydantic import model_validator
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.outputs import RequestOutput

from vllm_promptcache.frontend.admission import engine_input
from vllm_promptcache.frontend.composer import ComposedPrompt
from vllm_promptcache.frontend.reports import Reports
from vllm_promptcache.frontend.service import PromptCacheService
from vllm_promptcache.server.errors import REFUSALS, error_response
from vllm_promptcache.server.marked import note_of, note_plans
from vllm_promptcache.server.requests import (
    completion_prompts,
    is_composed,
    nothing_to_explain,
    options_of,
    pml_of,
    refuse_combinations,
    refuse_many,
)
from vllm_promptcache.server.values import refuse_failed_grammar, refuse_unlike_objects, with_grammar_errors


class PromptCacheCompletionRequest(CompletionRequest):
    """vLLM's request; with PML, ``prompt`` may be empty or missing."""

    @model_validator(mode="before")
    @classmethod
    def validate_prompt_and_prompt_embeds(cls, data: Any) -> Any:
        """Takes the place of vLLM's validator of the same name."""
        if isinstance(data, dict) and data.get("pml") is not None:
            return data
        return CompletionRequest.validate_prompt_and_prompt_embeds(data)  # type: ignore[operator]

    @model_validator(mode="before")
    @classmethod
    def refuse_unlike_objects(cls, data: Any) -> Any:
        """Runs before vLLM's validators."""
        return refuse_unlike_objects(data)


class PromptCacheServingCompletion(OpenAIServingCompletion):
    """vLLM's, which also takes requests with a ``pml`` field; others pass through untouched."""

    def __init__(self, service: PromptCacheService, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._service = service

    async def render_completion_request(self, request: CompletionRequest) -> Any:
        """As vLLM's: the engine's inputs, or an error."""
        try:
            if pml_of(request) is None:
                return await super().render_completion_request(request)
            error = await self._check_model(request)
            if error is not None:
                return error
            self._preflight(request.n or 1)
            prompts = await self._compose(request)
        except REFUSALS as refusal:
            return error_response(refusal)
        note_plans(request, [prompt.plan for prompt in prompts])
        texts = [self._shown_text(request, prompt) for prompt in prompts]
        return [
            engine_input(prompt, text=text, cache_salt=request.cache_salt)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    async def explain(self, request: CompletionRequest) -> list[ComposedPrompt] | ErrorResponse:
        """The composed prompts that a request would run."""
        if not is_composed(request):
            return error_response(nothing_to_explain())
        try:
            return await self._check_model(request) or await self._compose(request)
        except REFUSALS as refusal:
            return error_response(refusal)

    async def _compose(self, request: CompletionRequest) -> list[ComposedPrompt]:
        refuse_combinations(request)
        prompts = completion_prompts(request)
        refuse_many(request, len(prompts))
        adapter = self._maybe_get_adapters(request) is not None
        return await self._service.composer.compose_texts(
            pml_of(request),
            options_of(request),
            prompts,
            adapter=adapter,
            salt=request.cache_salt,
        )

    def _shown_text(self, request: CompletionRequest, prompt: ComposedPrompt) -> str | None:
        if not request.echo or request.return_token_ids:
            return None
        return str(self.renderer.get_tokenizer().decode(prompt.token_ids))

    def completion_stream_generator(
        self,
        request: CompletionRequest,
        engine_inputs: list[Any],
        result_generator: Any,
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """As vLLM's, with what was reused in the last chunk."""
        stream = super().completion_stream_generator
        if not is_composed(request):
            return stream(request, engine_inputs, result_generator, *args, **kwargs)
        reports = Reports(len(engine_inputs), said=note_of(request))
        outputs = reports.watch(with_grammar_errors(request, result_generator))
        lines = stream(request, engine_inputs, outputs, *args, **kwargs)
        return reports.complete_stream(lines)

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], request: CompletionRequest, *args: Any, **kwargs: Any
    ) -> CompletionResponse:
        """As vLLM's, with what was reused in the response."""
        convert = super().request_output_to_completion_response
        if not is_composed(request):
            return convert(final_res_batch, request, *args, **kwargs)
        reports = Reports(len(final_res_batch), said=note_of(request))
        for output in final_res_batch:
            refuse_failed_grammar(request, output)
            reports.take(output)
        response = convert(final_res_batch, request, *args, **kwargs)
        reports.complete(response)
        return response
