"""Chat requests without PML whose messages have marked parts: rendered by vLLM, then composed.

Whatever stands in the way of reuse is no error: the request runs as a plain one, and its answer says why.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.repair import FULL
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.admission import engine_input
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.marked import text_of
from vllm_promptcache.frontend.marks import MarkedParts, read_marks
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.frontend.service import PromptCacheService
from vllm_promptcache.server.requests import options_of, refuse_combinations

# Where a request carries what became of its marks.
_NOTE = "prompt_cache_marks"


def marks_of(request: Any, config: PromptCacheConfig) -> MarkedParts | None:
    """The marked parts of a request without PML; None where nothing is marked, or nothing to be reused.

    Raises:
        RefusedError: a mark or an option is wrong, or there are options and nothing that they are for.
    """
    tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    documents = request.documents
    parts = read_marks(
        request.messages,
        documents=documents,
        tools=tools,
        auto=config.auto,
        may_pin=bool(config.allow_management),
    )
    options = options_of(request)
    if options.repair == FULL:
        return None
    if parts.has_marks or parts.problem:
        return parts
    if options != PromptOptions():
        what = "prompt_cache: options need a prompt in 'pml', or marked parts of messages"
        raise RefusedError(what, kind="PMLError", field="prompt_cache")
    return None


def note_of(request: Any) -> dict[str, Any]:
    """What became of a request's marks: how many parts are reused, or why none is."""
    note: dict[str, Any] = (request.model_extra or {}).get(_NOTE) or {}
    return note


def note(request: Any, **said: Any) -> None:
    """Remember what became of a request's marks; whatever its client may have said of it is gone."""
    setattr(request, _NOTE, said)


def note_plans(request: Any, plans: Iterable[Plan]) -> None:
    """Remember where prompts are not what their document looks like."""
    notes = list(dict.fromkeys(chain(*[plan.notes for plan in plans])))
    note(request, **({"notes": notes} if notes else {}))


def is_marked(request: Any) -> bool:
    """Whether a request without PML is composed."""
    return "marks_used" in note_of(request)


def problem_of(request: Any, parts: MarkedParts) -> str | None:
    """Why a request with marks has to run as a plain one, if it has to."""
    if not parts.has_marks:
        return parts.problem
    try:
        refuse_combinations(request, "marks")
    except RefusedError as refusal:
        return str(refusal)
    return None


class MarkingRenderer:
    """Stands in for vLLM's renderer for one request: what that renders becomes a composed prompt."""

    def __init__(self, renderer: Any, service: PromptCacheService, request: Any, parts: MarkedParts) -> None:
        self._renderer = renderer
        self._service = service
        self._request = request
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

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
        conversation, prompt = await self._renderer.render_messages_async(messages, chat_params)
        try:
            text = text_of(prompt, tok_params)
            composed, used = await self._service.marks.compose(text, self._parts, options_of(self._request))
        except (RefusedError, PMLError) as refusal:
            note(self._request, marks_ignored=str(refusal))
            rendered: tuple[list[Any], list[Any]] = await self._renderer.render_chat_async(
                conversations, chat_params, tok_params, prompt_extras=prompt_extras, **kwargs
            )
            return rendered
        note(self._request, marks_used=used)
        if self._parts.problem:
            note(self._request, marks_used=used, marks_ignored=self._parts.problem)
        salt = (prompt_extras or {}).get("cache_salt")
        shown = text if self._request.return_prompt_text else None
        return [conversation], [engine_input(composed, text=shown, cache_salt=salt)]
