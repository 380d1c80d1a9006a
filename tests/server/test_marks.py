"""Chats without PML whose messages have marked parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.reference import greedy, load_reference_model

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
PASSAGES = [
    f"Passage {i}. " + "The desk opens at nine, and a late book costs a coin. " * (12 + i) for i in range(4)
]


def part(text: str, **mark: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **mark}


def messages(*order: int, question: str = "When is it open?", **mark: Any) -> list[Any]:
    passages = [part(PASSAGES[i], **(mark or EPHEMERAL)) for i in order]
    return [
        {"role": "system", "content": "Answer from the passages."},
        {"role": "user", "content": [*passages, part(question)]},
    ]


def ask(client: openai.OpenAI, asked: list[Any], **body: Any) -> Any:
    return client.chat.completions.create(
        model="tiny",
        messages=asked,
        max_tokens=6,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True, **body},
    )


def unmarked(asked: list[Any]) -> list[Any]:
    marks = ("cache_control", "prompt_cache")
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [{k: v for k, v in p.items() if k not in marks} for p in message["content"]],
        }
        for message in asked
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 3), (3,), (1, 1)])
def test_marked_parts_are_reused_in_any_order(
    client: openai.OpenAI, http: httpx.Client, tiny_model: Path, order: tuple[int, ...]
) -> None:
    asked = messages(*order)
    answer = ask(client, asked)
    explained = http.post("/explain", json={"model": "tiny", "messages": asked}).json()
    tokens, _ = greedy(load_reference_model(tiny_model), explained, 6)
    assert answer.choices[0].token_ids == tokens
    assert answer.prompt_cache["marks_used"] == len(order)
    again = ask(client, asked)
    assert again.choices[0].token_ids == tokens
    assert again.prompt_cache["tokens_reused"] == explained["num_cached_tokens"] > 100 * len(order)
    plain = ask(client, unmarked(asked))
    assert plain.usage.prompt_tokens == answer.usage.prompt_tokens
    assert plain.prompt_token_ids == answer.prompt_token_ids
    assert not hasattr(plain, "prompt_cache")


def test_without_reuse_it_is_the_plain_request(client: openai.OpenAI) -> None:
    asked = messages(1, 2)
    off = ask(client, asked, prompt_cache={"reuse": False})
    plain = ask(client, unmarked(asked))
    assert off.choices[0].token_ids == plain.choices[0].token_ids
    assert not hasattr(off, "prompt_cache")


def test_streams_say_it_too(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages(1, 0), max_tokens=3, temperature=0, stream=True
        )
    )
    assert chunks[-1].prompt_cache["marks_used"] == 2  # type: ignore[attr-defined]


def test_what_is_said_of_marks_that_are_not_used(client: openai.OpenAI) -> None:
    short = [{"role": "user", "content": [part("Short.", **EPHEMERAL), part("Why?")]}]
    assert ask(client, short).prompt_cache == {
        "marks_ignored": "nothing marked can be reused: no marked part has 64 tokens"
    }
    asked = messages(0)
    assert "prompt_logprobs" in ask(client, asked, prompt_logprobs=1).prompt_cache["marks_ignored"]
    with pytest.raises(openai.BadRequestError, match="unknown option 'nam'"):
        ask(client, messages(0, prompt_cache={"nam": "x"}))
    with pytest.raises(openai.BadRequestError, match="options need a prompt in 'pml', or marked parts"):
        ask(client, unmarked(asked), prompt_cache={"repair": "tail"})


def test_repairs_and_salts(client: openai.OpenAI, http: httpx.Client, tiny_model: Path) -> None:
    asked = messages(3, 2)
    options = {"prompt_cache": {"repair": "link:4"}, "cache_salt": "mine"}
    explained = http.post("/explain", json={"model": "tiny", "messages": asked, **options}).json()
    assert explained["num_repaired_tokens"] == 8
    tokens, _ = greedy(load_reference_model(tiny_model), explained, 6)
    assert ask(client, asked, **options).choices[0].token_ids == tokens
