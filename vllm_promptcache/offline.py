"""``LLM``: vLLM's class for scripts, with schemas and prompts in PML."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import vllm
from numpy.typing import NDArray
from vllm import RequestOutput, SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.renderers.params import ChatParams

from vllm_promptcache.config import CONFIG_KEY, PromptCacheConfig
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.repair import Repair
from vllm_promptcache.frontend.admission import engine_input
from vllm_promptcache.frontend.composer import ComposedPrompt
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.conversation import read_turns
from vllm_promptcache.frontend.describe import details
from vllm_promptcache.frontend.documents import load_schema_files
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.loading import wait_until_encoded
from vllm_promptcache.frontend.marked import MarkingRenderer
from vllm_promptcache.frontend.members import NewMember, described
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.frontend.reports import RESPONSE_FIELD, take_report
from vllm_promptcache.frontend.service import open_service
from vllm_promptcache.frontend.tokenizer import open_encoder
from vllm_promptcache.frontend.ttl import seconds_of
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.pml.nodes import SchemaNode

T = TypeVar("T")

_PAUSE_S = 0.02


class LLM(vllm.LLM):
    """vLLM's ``LLM`` with the prompt cache enabled.

    Methods that read PML raise PMLError with every mistake in it, and RefusedError for what cannot be
    done. Outputs are vLLM's; the engine's report on what was reused is in their ``prompt_cache``.

    Args:
        model: as for vLLM, like all other arguments.
        prompt_cache: settings of the prompt cache; its ``schemas`` are loaded, encoded and pinned.
    """

    def __init__(
        self, model: str, *, prompt_cache: PromptCacheConfig | dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        config = prompt_cache
        if not isinstance(config, PromptCacheConfig):
            config = PromptCacheConfig.from_dict(config or {})
        additional = {**(kwargs.pop("additional_config", None) or {}), CONFIG_KEY: config.to_dict()}
        super().__init__(model, additional_config=additional, **kwargs)
        encoder = open_encoder(self.renderer, self.chat_template)
        schemas = load_schema_files(config.schemas, config)
        self._prompt_cache = run_sync(
            open_service(
                OfflineEngineConnection(self.llm_engine), self.llm_engine.vllm_config, encoder, schemas
            )
        )

    # -- schemas ---------------------------------------------------------------------------------

    def add_schema(self, pml: str | bytes | Mapping[str, Any], *, pin: bool = False) -> list[dict[str, Any]]:
        """Register the schemas of a document, all or none, or one in the JSON form.

        Returns what the API's GET tells of each.

        A name that is taken gets a new version. With ``pin`` they are encoded before they are needed.
        """
        registry = self._prompt_cache.registry
        registered = run_sync(registry.register(pml, source="api", pin=pin))
        if pin and not self.llm_engine.has_unfinished_requests():
            # Steps of the engine while nothing is enqueued lose no output.
            run_sync(wait_until_encoded(registry))
        return [details(entry, run_sync(registry.status(entry))) for entry in registered.entries]

    def remove_schema(self, name: str) -> None:
        """Unregister a schema. Raises RefusedError where there is none of that name."""
        run_sync(self._prompt_cache.registry.remove(name))

    def schemas(self) -> list[dict[str, Any]]:
        """What is registered, with modules, spans and residency, by name."""
        registry = self._prompt_cache.registry
        entries = [registry.entries[name] for name in sorted(registry.entries)]
        return [details(entry, run_sync(registry.status(entry))) for entry in entries]

    # -- members of pools ------------------------------------------------------------------------

    def add_pool_modules(
        self,
        schema: str,
        pool: str,
        modules: Mapping[str, str],
        *,
        pin: bool = False,
        ttl: float | str | None = None,
        encode: bool = False,
    ) -> list[dict[str, Any]]:
        """Register texts by name as members of a schema's pool; returns what became of each.

        With ``pin`` their states are held, for ``ttl`` after their last use if that is given; with ``encode``
        they are encoded before they are needed. Raises RefusedError where there is no such pool.
        """
        pools, seconds = self._prompt_cache.pools, seconds_of(ttl)
        members = [NewMember(name, text, seconds, pin) for name, text in modules.items()]
        puts = run_sync(pools.put(schema, pool, members))
        if encode:
            run_sync(pools.encode(schema, pool, [put.name for put in puts if put.error is None]))
        return [asdict(put) for put in puts]

    def remove_pool_module(self, schema: str, pool: str, name: str) -> None:
        """Unregister a member of a pool. Raises RefusedError where there is none of that name."""
        run_sync(self._prompt_cache.pools.remove(schema, pool, name))

    def pool_modules(self, schema: str, pool: str) -> list[dict[str, Any]]:
        """The registered members of a pool, in the order in which they were registered."""
        entry, layout = self._prompt_cache.pools.pool(schema, pool)
        members = list(entry.members.of(layout.path).values())
        status = run_sync(self._prompt_cache.registry.status_of([m.unit.placement for m in members]))
        return [described(member, status.__getitem__) for member in members]

    # -- prompts ---------------------------------------------------------------------------------

    def generate_pml(
        self,
        pml: str | Sequence[str],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt: str | Sequence[int] = "",
        reuse: bool = True,
        repair: str | Repair | None = None,
        use_tqdm: bool = False,
        lora_request: Any = None,
    ) -> list[RequestOutput]:
        """Generate after one or several prompts in PML; ``prompt`` follows each as new text.

        ``repair`` names what is computed anew of what the prompts include, if not what the settings say;
        with ``reuse=False``, as with ``"full"``, the same tokens are computed at the same positions with
        full attention.
        """
        options, adapter = PromptOptions.of(reuse=reuse, repair=repair), lora_request is not None
        composed = [self._compose_text(one, prompt, options, adapter) for one in _as_list(pml)]
        return self._run_composed(composed, sampling_params, use_tqdm, lora_request)

    def chat_pml(
        self,
        pml: str,
        messages: Sequence[dict[str, Any]] = (),
        sampling_params: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        reuse: bool = True,
        repair: str | Repair | None = None,
        use_tqdm: bool = False,
        lora_request: Any = None,
    ) -> list[RequestOutput]:
        """Generate the next message of a chat that begins with a prompt in PML; see `generate_pml`."""
        composed = self._compose_chat(
            pml,
            messages,
            PromptOptions.of(reuse=reuse, repair=repair),
            adapter=lora_request is not None,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(chat_template_kwargs or {}),
        )
        return self._run_composed([composed], sampling_params, use_tqdm, lora_request)

    def explain(
        self,
        pml: str,
        messages: Sequence[dict[str, Any]] | None = None,
        *,
        prompt: str | Sequence[int] = "",
        tools: list[dict[str, Any]] | None = None,
        reuse: bool = True,
        repair: str | Repair | None = None,
    ) -> dict[str, Any]:
        """The plan, as JSON, of what `generate_pml` or, with ``messages``, `chat_pml` would run."""
        composed = self.compose(pml, messages, prompt=prompt, tools=tools, reuse=reuse, repair=repair)
        lookup = run_sync(self._prompt_cache.composer.lookup(composed.plan))
        return {**plan_to_json(composed.plan), "lookup": lookup}

    # -- plain chats with marked parts -------------------------------------------------------------

    def chat(
        self, *args: Any, prompt_cache: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[RequestOutput]:
        """As vLLM's. Parts of messages that carry ``cache_control`` or ``prompt_cache`` are reused wherever
        they stand; ``prompt_cache`` are options, as of a request over HTTP.

        What was reused of a conversation, or why nothing was, is in its output's ``prompt_cache``.
        """
        service, options = self._prompt_cache, PromptOptions.from_request(prompt_cache)
        self._marking = MarkingRenderer(self.renderer, service.marks, service.config.auto, options)
        outputs: list[RequestOutput] = super().chat(*args, **kwargs)
        for output, said in zip(outputs, self._marking.said, strict=True):
            report = take_report(output)
            setattr(output, RESPONSE_FIELD, {**(report or {}), **said} if report or said else None)
        return outputs

    def _preprocess_chat(self, *args: Any, **kwargs: Any) -> Sequence[Any]:
        """As vLLM's, with another renderer in the place of its own."""
        renderer = self.renderer
        marking: Any = self._marking
        self.renderer = marking
        try:
            inputs: Sequence[Any] = super()._preprocess_chat(*args, **kwargs)
        finally:
            self.renderer = renderer
        return inputs

    # -- plans: for tools that change them -------------------------------------------------------

    def compose(
        self,
        pml: str,
        messages: Sequence[dict[str, Any]] | None = None,
        *,
        prompt: str | Sequence[int] = "",
        tools: list[dict[str, Any]] | None = None,
        reuse: bool = True,
        repair: str | Repair | None = None,
    ) -> ComposedPrompt:
        """What `generate_pml` or, with ``messages``, `chat_pml` would run."""
        options = PromptOptions.of(reuse=reuse, repair=repair)
        if messages is None:
            return self._compose_text(pml, prompt, options, adapter=False)
        return self._compose_chat(pml, messages, options, adapter=False, tools=tools)

    def read_turns(self, messages: Sequence[dict[str, Any]], **template_options: Any) -> Turns:
        """The turns of a chat that `chat_pml` plans together with a prompt."""
        chat_params = ChatParams(self.chat_template, chat_template_kwargs=template_options)
        return read_turns(list(messages), self.renderer, chat_params)[1]

    def build_layout(self, schema: SchemaNode) -> SchemaLayout:
        """A schema's layout for this model, without registering it. Raises PMLError."""
        return self._prompt_cache.registry.builder.build([schema])[0]

    def first_token_logprobs(self, prompts: Sequence[ComposedPrompt]) -> list[NDArray[np.float32]]:
        """The log-probabilities of each prompt's first token over the vocabulary, ``(vocabulary,)``.

        Needs ``max_logprobs=-1``. Raises RefusedError where a prompt cannot be run.
        """
        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=-1, flat_logprobs=True, detokenize=False
        )
        outputs = self._run_composed(prompts, params, use_tqdm=False, lora_request=None)
        return [_first_logprobs(output, self.model_config.get_vocab_size()) for output in outputs]

    def prompt_cache_stats(self) -> dict[str, Any]:
        """Units and blocks by use, limits, and the number of schemas, as the API's GET tells of them."""
        return run_sync(self._prompt_cache.registry.stats())

    def _compose_text(
        self, pml: str, prompt: str | Sequence[int], options: PromptOptions, adapter: bool
    ) -> ComposedPrompt:
        composer = self._prompt_cache.composer
        return run_sync(composer.compose_texts(pml, options, [prompt], adapter=adapter))[0]

    def _compose_chat(
        self,
        pml: str,
        messages: Sequence[dict[str, Any]],
        options: PromptOptions,
        *,
        adapter: bool,
        **template_options: Any,
    ) -> ComposedPrompt:
        given = {name: value for name, value in template_options.items() if value is not None}
        turns = self.read_turns(messages, **given)
        return run_sync(self._prompt_cache.composer.compose_chat(pml, options, turns, adapter=adapter))

    def _run_composed(
        self,
        prompts: Sequence[ComposedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        lora_request: Any,
    ) -> list[RequestOutput]:
        params = self._params_to_seq(
            self.get_default_sampling_params() if sampling_params is None else sampling_params, len(prompts)
        )
        if any(one.prompt_logprobs is not None for one in params):
            raise RefusedError("prompt_logprobs cannot be combined with PML: not every token is computed")
        tokenizer = self.get_tokenizer()
        inputs: Iterable[Any] = (
            engine_input(prompt, text=tokenizer.decode(prompt.token_ids)) for prompt in prompts
        )
        outputs: list[RequestOutput] = self._render_and_run_requests(
            inputs,
            params,
            RequestOutput,
            lora_requests=self._lora_request_to_seq(lora_request, len(prompts)),
            use_tqdm=use_tqdm,
        )
        for output in outputs:
            setattr(output, RESPONSE_FIELD, take_report(output))
        return outputs


class OfflineEngineConnection:
    """Calls to an engine that `vllm.LLM` has made, in this process or in one of its own."""

    def __init__(self, llm_engine: Any) -> None:
        self._llm_engine = llm_engine
        self._core = getattr(llm_engine.engine_core, "engine_core", None)

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One of the scheduler's ``prompt_cache`` operations."""
        answer: dict[str, Any]
        if self._core is not None:
            answer = self._core.prompt_cache(operation, payload)
        else:
            answer = self._llm_engine.engine_core.call_utility("prompt_cache", operation, payload)
        return answer

    async def pause(self) -> None:
        """A step of an engine in this process; a moment for one that runs by itself.

        Raises:
            RefusedError: prompts are enqueued, whose outputs the step would lose.
        """
        if self._core is not None:
            if self._llm_engine.has_unfinished_requests():
                raise RefusedError("the engine has to encode modules before: wait for what is enqueued")
            self._llm_engine.step()
        else:
            time.sleep(_PAUSE_S)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function here: nobody else waits."""
        return function()


def _first_logprobs(output: RequestOutput, vocabulary: int) -> NDArray[np.float32]:
    found = output.outputs[0].logprobs
    if not found:
        raise RefusedError("a prompt cannot be run: see the log")
    assert isinstance(found, FlatLogprobs)
    logprobs = np.full(vocabulary, -np.inf, np.float32)
    logprobs[found.token_ids] = found.logprobs
    return logprobs


def _as_list(pml: str | Sequence[str]) -> list[str]:
    return [pml] if isinstance(pml, str) else list(pml)
