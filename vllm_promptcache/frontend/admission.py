"""The way of a composed prompt from a serving class into the engine's request."""

from __future__ import annotations

import copy
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input

from vllm_promptcache.blocks.wire import EXTRA_ARG
from vllm_promptcache.frontend.composer import ComposedPrompt

# The key of a composed prompt in vLLM's engine input, a plain dictionary.
INPUT_KEY = "prompt_cache"


def engine_input(
    prompt: ComposedPrompt, *, text: str | None = None, cache_salt: str | None = None
) -> dict[str, Any]:
    """vLLM's input for a composed prompt. ``text`` is the prompt's text where it will be shown."""
    tokens = tokens_input(prompt.token_ids, prompt=text, cache_salt=cache_salt)
    return {**tokens, INPUT_KEY: prompt}


def admit(prompt: Any, params: Any) -> Any:
    """The sampling parameters with which an input enters the engine: a copy for a composed prompt.

    It says what is composed, ends where positions or blocks run out, and asks for no log-probabilities
    of prompt tokens: whoever wanted to see those was refused before.
    """
    composed = prompt.get(INPUT_KEY) if isinstance(prompt, dict) else None
    if composed is None:
        return params
    assert isinstance(composed, ComposedPrompt)
    params = copy.copy(params)
    limit = composed.max_new_tokens
    params.max_tokens = limit if params.max_tokens is None else min(params.max_tokens, limit)
    params.min_tokens = min(params.min_tokens, params.max_tokens)
    params.prompt_logprobs = None
    params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: composed.to_wire()}
    if composed.entry is not None and prompt.get("cache_salt") is None:
        composed.entry.num_requests += 1
    return params


def admit_from_api(prompt: Any, params: Any) -> Any:
    """As `admit`, where parameters come from strangers.

    Raises:
        VLLMValidationError: they say themselves what is composed. States are made from text by this
            server, never from what a client says they are.
    """
    if EXTRA_ARG in (getattr(params, "extra_args", None) or {}):
        raise VLLMValidationError(f"{EXTRA_ARG!r} is no extra argument; send 'pml'", parameter="vllm_xargs")
    return admit(prompt, params)
