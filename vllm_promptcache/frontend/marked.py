"""The way of a plain chat request with marked parts to what the engine is asked to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vllm_promptcache.blocks.wire import Keep
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.contract.repair import FULL, RECURRENT, Repair
from vllm_promptcache.frontend.admission import engine_input
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.composer import ComposedPrompt
from vllm_promptcache.frontend.connection import SMALL_CHARACTERS, EngineConnection, run_sync
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.marks import Mark, MarkedParts, Span, read_marks, with_line_breaks
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.marked import TokenRun, build_marked
from vllm_promptcache.repairs.repaired import repaired


class MarkComposer:
    """Turns rendered prompts with marked parts into composed ones.

    A part with fewer than `min_tokens` tokens is computed as other text is. `repair` is carried out for
    requests that name none.
    """

    def __init__(
        self,
        connection: EngineConnection,
        encoder: TextEncoder,
        capacity: Capacity,
        max_model_len: int,
        min_tokens: int,
        repair: Repair,
    ) -> None:
        self._connection = connection
        self._encoder = encoder
        self._capacity = capacity
        self._max_model_len = max_model_len
        self._min_tokens = min_tokens
        self._repair = repair
        # Whether anything was marked that goes after some time.
        self.has_times = False

    async def compose(
        self, prompt: str, parts: MarkedParts, options: PromptOptions
    ) -> tuple[ComposedPrompt, int]:
        """What is run for a prompt, as the chat template made it, and how many parts of it are reused.

        Raises:
            RefusedError: no part can be reused, or the prompt does not fit the model or the cache.
        """
        if len(prompt) <= SMALL_CHARACTERS:
            return self._compose(prompt, parts, options)
        return await self._connection.run(lambda: self._compose(prompt, parts, options))

    def _compose(self, prompt: str, parts: MarkedParts, options: PromptOptions) -> tuple[ComposedPrompt, int]:
        if not self._capacity.keeps_modules:
            raise RefusedError(RECURRENT)
        found, turn = parts.find(prompt)
        spans = with_line_breaks(prompt, found)
        marked = [(span, ids) for span in spans if len(ids := self._tokens(prompt, span)) >= self._min_tokens]
        if not marked:
            what = f"no marked part has {self._min_tokens} tokens" if spans else "the template changes them"
            raise RefusedError(f"nothing marked can be reused: {what}", field="messages")
        lead = min(turn or marked[0][0].start, marked[0][0].start)
        runs = list(self._runs(prompt, marked))
        repair = self._repair if options.repair is None else options.repair
        plan = repaired(build_marked(runs, self._encoder.encode(prompt[:lead])), repair)
        positions = self._max_model_len - plan.next_position
        if positions < 1:
            raise RefusedError("the prompt is longer than the model's context", field="messages")
        room = self._capacity.max_new_tokens(None, plan, ())
        if not room:
            raise RefusedError("the KV cache is too small for the marked parts together", field="messages")
        keeps = tuple(_keeps(runs, [span.mark for span, _ in marked], plan))
        self.has_times = self.has_times or bool(keeps)
        return ComposedPrompt(plan, None, min(room, positions), keeps=keeps), len(marked)

    def _runs(self, prompt: str, marked: list[tuple[Span, list[int]]]) -> Iterator[TokenRun]:
        """The marked parts and the text around them, in order."""
        end = 0
        for index, (span, token_ids) in enumerate(marked):
            yield TokenRun(self._encoder.encode(prompt[end : span.start]))
            yield TokenRun(token_ids, span.mark.name or f"#{index}")
            end = span.end
        yield TokenRun(self._encoder.encode(prompt[end:]))

    def _tokens(self, prompt: str, span: Span) -> list[int]:
        return self._encoder.encode(prompt[span.start : span.end])


def _keeps(runs: Sequence[TokenRun], marks: Sequence[Mark], plan: Plan) -> Iterator[Keep]:
    """What marks want to be kept of the parts that a plan reuses; the marked runs are theirs, in order."""
    wanted: dict[int, Mark] = {}
    position, left = 0, iter(marks)
    for run in runs:
        if run.mark is not None:
            wanted[position] = next(left)
        position += len(run.token_ids)
    for segment in plan.segments:
        mark = wanted.pop(segment.position, None) if isinstance(segment, CachedSegment) else None
        if isinstance(segment, CachedSegment) and mark is not None and (mark.pin or mark.ttl is not None):
            yield Keep(segment.placement, mark.ttl, mark.pin)


def text_of(prompt: Any, tok_params: Any) -> str:
    """The text that a chat was rendered to.

    Raises:
        RefusedError: it is more than text, or is not tokenized as it stands.
    """
    text = prompt.get("prompt")
    if not isinstance(text, str):
        raise RefusedError("the model's chat template makes tokens, not text")
    if prompt.get("multi_modal_data"):
        raise RefusedError("messages with marks may hold nothing but text")
    if tok_params is not None and tok_params.add_special_tokens:
        raise RefusedError("add_special_tokens cannot be combined with marks")
    return text


class MarkingRenderer:
    """Stands in for vLLM's renderer while a script's chats are rendered: those with marks are composed.

    ``said`` is what became of the marks of each conversation, in order.
    """

    def __init__(
        self, renderer: Any, composer: MarkComposer, auto: Sequence[str], options: PromptOptions
    ) -> None:
        self._renderer = renderer
        self._composer = composer
        self._auto = auto
        self._options = options
        self.said: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    def render_chat(
        self, conversations: Sequence[list[Any]], chat_params: Any, tok_params: Any = None, **kwargs: Any
    ) -> tuple[list[Any], list[Any]]:
        """As ``BaseRenderer.render_chat``."""
        rendered = [self._render(messages, chat_params, tok_params, kwargs) for messages in conversations]
        return [conversation for conversation, _ in rendered], [prompt for _, prompt in rendered]

    def _render(
        self, messages: list[Any], chat_params: Any, tok_params: Any, extras: dict[str, Any]
    ) -> tuple[Any, Any]:
        said: dict[str, Any] = {}
        self.said.append(said)
        options = chat_params.chat_template_kwargs
        parts = read_marks(
            messages,
            documents=options.get("documents"),
            tools=options.get("tools"),
            auto=self._auto,
        )
        if parts.problem:
            said["marks_ignored"] = parts.problem
        if parts.has_marks and self._options.repair != FULL:
            conversation, prompt = self._renderer.render_messages(messages, chat_params)
            try:
                text = text_of(prompt, tok_params)
                composed, used = run_sync(self._composer.compose(text, parts, self._options))
                said["marks_used"] = used
                return conversation, engine_input(composed, text=text)
            except RefusedError as refusal:
                said["marks_ignored"] = str(refusal)
        (conversation,), (prompt,) = self._renderer.render_chat([messages], chat_params, tok_params, **extras)
        return conversation, prompt
