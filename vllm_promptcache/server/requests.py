"""What a chat or completions request says of PML, and what cannot be said together with it."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from vllm_promptcache.blocks.wire import EXTRA_ARG
from vllm_promptcache.frontend.composer import MAX_PROMPTS
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.server.values import refuse_values


def pml_of(request: Any, *, needs_pml: bool = True) -> object | None:
    """A request's ``pml`` field, or None for a plain request.

    With ``needs_pml`` options without PML are refused.

    Raises:
        RefusedError: it has options of the prompt cache and no PML, or says itself what is composed.
    """
    if EXTRA_ARG in (request.vllm_xargs or {}):
        raise RefusedError(f"{EXTRA_ARG!r} is no extra argument; send 'pml'", field="vllm_xargs")
    extra = request.model_extra or {}
    pml: object | None = extra.get("pml")
    if needs_pml and pml is None and extra.get("prompt_cache") is not None:
        raise RefusedError(
            "prompt_cache: options need a prompt in 'pml'", kind="PMLError", field="prompt_cache"
        )
    return pml


def is_composed(request: Any) -> bool:
    """Whether a request brings PML."""
    return (request.model_extra or {}).get("pml") is not None


def options_of(request: Any) -> PromptOptions:
    """A request's options. Raises RefusedError."""
    return PromptOptions.from_request((request.model_extra or {}).get("prompt_cache"))


def refuse_combinations(request: Any, what: str = "pml") -> None:
    """Refuse what cannot be had together with PML, or with marks: ``what`` says which.

    Raises:
        RefusedError: naming the field.
    """
    reasons = {
        "prompt_logprobs": "log-probabilities are told of generated tokens only",
        "truncate_prompt_tokens": "modules have their places and cannot be cut off",
        "prompt_embeds": "a composed prompt is made of tokens",
        "kv_transfer_params": "KV connectors know nothing of modules",
        "chat_template": "the modules were laid out with the server's chat template",
        "suffix": "a composed prompt has its end where the modules say",
    }
    for field, reason in reasons.items():
        if getattr(request, field, None) is not None:
            raise RefusedError(f"{field} cannot be combined with {what}: {reason}", field=field)
    if request.use_beam_search:
        raise RefusedError(f"use_beam_search cannot be combined with {what}", field="use_beam_search")
    logprobs = request.logprobs
    wants_logprobs = logprobs is not None and logprobs is not False
    if request.echo and wants_logprobs:
        reason = "log-probabilities are told of generated tokens only"
        raise RefusedError(f"echo with logprobs cannot be combined with {what}: {reason}", field="echo")
    refuse_values(request)
    refuse_many(request, 1)


def refuse_many(request: Any, num_prompts: int) -> None:
    """Refuse more sequences than `MAX_PROMPTS`: each carries the whole composition to the engine.

    Raises:
        RefusedError: naming the field.
    """
    num_sequences = num_prompts * (request.n or 1)
    if num_prompts <= MAX_PROMPTS < num_sequences:  # so many prompts are refused where they are composed
        raise RefusedError(f"n: {num_sequences} sequences; pml takes at most {MAX_PROMPTS}", field="n")


def completion_prompts(request: CompletionRequest) -> list[str | list[int]]:
    """The texts of a completions request, or their token IDs, each for a prompt of its own.

    Raises:
        RefusedError: there is none at all.
    """
    given: Any = request.prompt
    if given is None:
        return [""]
    if isinstance(given, str):
        return [given]
    if not given:
        raise RefusedError("prompt: the list is empty", field="prompt")
    return [given] if isinstance(given[0], int) else list(given)


def nothing_to_explain() -> RefusedError:
    """The error for a request without PML where PML is asked for."""
    return RefusedError("there is no prompt in 'pml' to explain", kind="PMLError", field="pml")
