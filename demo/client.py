"""Asking the server with the OpenAI client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

REQUEST_TIMEOUT_S = 600


@dataclass(frozen=True)
class Answer:
    """What came of one request. Seconds are from sending it to its first token."""

    text: str
    num_prompt_tokens: int
    num_reused_tokens: int
    first_token_s: float


class Answering:
    """A request that is being answered: iterate over its text, then look at `answer`."""

    def __init__(self, chunks: Any, started: float) -> None:
        self._chunks = chunks
        self._started = started
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        text = ""
        first_token_s: float | None = None
        usage: Any = None
        for chunk in self._chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                part = _text_of(choice)
                if first_token_s is None and (part or choice.finish_reason):
                    first_token_s = time.perf_counter() - self._started
                if part:
                    text += part
                    yield part
        details = usage.prompt_tokens_details
        reused = details.cached_tokens if details and details.cached_tokens else 0
        assert first_token_s is not None
        self.answer = Answer(text, usage.prompt_tokens, reused, first_token_s)

    def finish(self) -> Answer:
        """Reads all that is left."""
        for _ in self:
            pass
        assert self.answer is not None
        return self.answer


def _salted(salt: str | None) -> dict[str, Any]:
    return {} if salt is None else {"cache_salt": salt}


def _text_of(choice: Any) -> str:
    delta = getattr(choice, "delta", None)
    text = choice.text if delta is None else delta.content
    return text or ""


class Client:
    """The OpenAI client with what all of the demo's requests have in common."""

    def __init__(self, url: str, model: str) -> None:
        # Takes a second to import.
        from openai import OpenAI

        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=REQUEST_TIMEOUT_S, max_retries=0)
        self._model = model

    def chat(
        self,
        pml: str,
        question: str,
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        reuse: bool = True,
        salt: str | None = None,
    ) -> Answering:
        """Asks a question after a prompt in PML; with a new salt nothing is found in a cache."""
        extra = {"pml": pml, **_salted(salt)}
        return self._chat([{"role": "user", "content": question}], extra, max_tokens, stop, reuse)

    def chat_over(
        self,
        passages: Sequence[str],
        question: str,
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        marked: bool = True,
        salt: str | None = None,
    ) -> Answering:
        """Asks a question behind passages, without PML; with a new salt nothing is found in a cache."""
        mark = {"cache_control": {"type": "ephemeral"}} if marked else {}
        parts: list[dict[str, Any]] = [{"type": "text", "text": f"{text}\n", **mark} for text in passages]
        content = [*parts, {"type": "text", "text": question}]
        return self._chat([{"role": "user", "content": content}], _salted(salt), max_tokens, stop)

    def _chat(
        self,
        messages: Any,
        extra: dict[str, Any],
        max_tokens: int,
        stop: Sequence[str],
        reuse: bool = True,
    ) -> Answering:
        if not reuse:
            extra["prompt_cache"] = {"reuse": False}
        if stop:
            extra["include_stop_str_in_output"] = True
        started = time.perf_counter()
        chunks = self._client.chat.completions.create(
            model=self._model,
            messages=messages,
            temperature=0,
            max_tokens=max_tokens,
            stop=list(stop) or None,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra,
        )
        return Answering(chunks, started)

    def complete(self, token_ids: Sequence[int], *, max_tokens: int) -> Answering:
        """Continues plain tokens, without PML."""
        started = time.perf_counter()
        chunks = self._client.completions.create(
            model=self._model,
            prompt=list(token_ids),
            temperature=0,
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        return Answering(chunks, started)

    def explain(self, pml: str, question: str) -> dict[str, Any]:
        """What the prompt consists of, nothing repaired: units and segments, with their tokens."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "pml": pml,
            "prompt_cache": {"repair": "none"},
        }
        plan = self._client.post("/prompt_cache/explain", body=body, cast_to=dict[str, Any])
        return dict(plan)
