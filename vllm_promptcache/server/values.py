"""Values in a request's other fields that vLLM takes and then fails on, so that it would answer 500."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import is_dataclass
from typing import Any

from pydantic import BaseModel
from vllm.exceptions import VLLMValidationError

from vllm_promptcache.frontend.errors import RefusedError

# What only the prompt's text is made from: nothing of it is sent to the engine as it is.
_OF_THE_PROMPT = {"messages", "prompt", "tools", "documents", "chat_template_kwargs"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_TRANSFERS = ("kv_transfer_params", "ec_transfer_params")


def refuse_unlike_objects(data: Any) -> Any:
    """Before a body with PML is validated: ``structured_outputs`` is an object, or nothing.

    Raises:
        VLLMValidationError: vLLM's own validators would look things up in something else.
    """
    if isinstance(data, dict) and data.get("pml") is not None:
        given = data.get("structured_outputs")
        if given is not None and not isinstance(given, dict) and not is_dataclass(given):
            raise VLLMValidationError("structured_outputs must be an object", parameter="structured_outputs")
    return data


def refuse_values(request: Any) -> None:
    """Refuse what cannot be sent to the engine: integers beyond 64 bits, and text that is no Unicode.

    Linear in the request's size. Raises RefusedError, naming the field.
    """
    for name in type(request).model_fields:
        if name in _OF_THE_PROMPT:
            continue
        for value in _scalars(getattr(request, name)):
            reason = _reason(value)
            if reason is not None:
                raise RefusedError(f"{name}: {reason}", field=name)
    for name in _TRANSFERS:
        if name in (request.vllm_xargs or {}):
            reason = f"{name!r} is no extra argument; it has a field of its own"
            raise RefusedError(f"vllm_xargs: {reason}", field="vllm_xargs")


def refuse_failed_grammar(request: Any, output: Any) -> None:
    """Tell a client that its grammar is why nothing more is generated; vLLM says it is an internal error.

    Raises:
        VLLMValidationError: a request for structured outputs ended with an error.
    """
    failed = any(choice.finish_reason == "error" for choice in output.outputs)
    if failed and request.extract_structured_outputs() is not None:
        field = "structured_outputs" if request.structured_outputs is not None else "response_format"
        reason = "the engine could not compile this grammar, or no token that is allowed follows it"
        raise VLLMValidationError(f"{field}: {reason}", parameter=field)


async def with_grammar_errors(request: Any, outputs: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """Outputs, or (index, output) pairs, as they are, unless `refuse_failed_grammar` raises."""
    async with aclosing(outputs) as source:  # type: ignore[type-var]
        async for item in source:
            refuse_failed_grammar(request, item[1] if isinstance(item, tuple) else item)
            yield item


def _reason(value: Any) -> str | None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "an integer does not fit into 64 bits"
    if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        return "text holds half of a surrogate pair, which is no Unicode"
    return None


def _scalars(value: Any) -> Iterator[Any]:
    """All numbers, strings and the like in a value, with the keys of objects; without recursion."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, BaseModel) or is_dataclass(value):
            waiting.extend(vars(value).values())
        else:
            yield value
