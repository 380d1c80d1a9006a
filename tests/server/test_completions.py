"""Completions with PML, through OpenAI's client."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.reference import greedy, load_reference_model
from tests.server.support import ASKED, PROMPT
from tests.server.test_chat import counts


def complete(client: openai.OpenAI, prompt: Any = " And then", **given: Any) -> Any:
    extra = {
        name: given.pop(name) for name in ("prompt_cache", "return_token_ids", "suffix") if name in given
    }
    body = extra | {"pml": given.pop("pml", PROMPT)}
    defaults: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    return client.completions.create(prompt=prompt, **(defaults | given), extra_body=body)


@pytest.mark.parametrize("prompt", [" And then", ""])
def test_answers_are_those_of_the_reference(
    client: openai.OpenAI, http: httpx.Client, tiny_model: Path, prompt: str
) -> None:
    answer = complete(client, prompt, return_token_ids=True)
    body = {"model": "tiny", "prompt": prompt, "pml": PROMPT}
    explained = http.post("/explain", json=body).json()
    tokens, _ = greedy(load_reference_model(tiny_model), explained, 6)
    assert answer.choices[0].token_ids == tokens
    report = answer.prompt_cache
    assert report["tokens_reused"] == explained["num_cached_tokens"]
    assert report["tokens_new"] + report["tokens_found"] == explained["num_new_tokens"]
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached == report["tokens_reused"] + report["tokens_found"]


def test_each_prompt_of_a_list_follows_the_pml(client: openai.OpenAI, http: httpx.Client) -> None:
    single = [complete(client, prompt) for prompt in (" One", " Two")]
    both = complete(client, [" One", " Two"])
    assert [c.text for c in both.choices] == [answer.choices[0].text for answer in single]
    assert both.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in single)
    reused = sum(answer.prompt_cache["tokens_reused"] for answer in single)
    assert both.prompt_cache["tokens_reused"] == reused
    cached = both.usage.prompt_tokens_details.cached_tokens
    assert cached == reused + both.prompt_cache["tokens_found"]
    plans = http.post("/explain", json={"prompt": [" One", " Two"], "pml": PROMPT}).json()
    assert [plan["segments"][-1]["source"] for plan in plans] == ["prompt", "prompt"]


def test_prompts_may_be_token_ids(client: openai.OpenAI) -> None:
    ids = complete(client, " And then", echo=True, return_token_ids=True).choices[0].prompt_token_ids[-2:]
    text = complete(client, " And then").choices[0].text
    assert complete(client, ids).choices[0].text == text
    assert [c.text for c in complete(client, [ids, ids]).choices] == [text, text]
    with pytest.raises(openai.BadRequestError):
        complete(client, [10**6])


def test_streams(client: openai.OpenAI) -> None:
    whole = complete(client, [" One", " Two"])
    chunks = list(complete(client, [" One", " Two"], stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert counts(chunks[-1].usage) == counts(whole.usage)
    assert chunks[-1].prompt_cache == whole.prompt_cache


@pytest.mark.parametrize("stream", [False, True])
def test_echo_shows_the_prompt_in_the_order_of_positions(client: openai.OpenAI, stream: bool) -> None:
    answer = complete(client, " And then", echo=True, stream=stream)
    text = "".join(c.choices[0].text for c in answer) if stream else answer.choices[0].text
    for part in ("You plan journeys.", "The journey takes three days and begins at home.", "The islands lie"):
        assert part in text
    before, _, after = text.partition(" And then")
    assert before.endswith("is warm and clear.") and after == complete(client, " And then").choices[0].text


def test_without_reuse_no_module_is_reused(client: openai.OpenAI) -> None:
    plain = complete(client, prompt_cache={"reuse": False})
    report = plain.prompt_cache
    assert (report["tokens_reused"], report["tokens_encoded"]) == (0, 0)
    assert plain.usage.prompt_tokens_details.cached_tokens == report["tokens_found"]
    num_tokens = report["tokens_new"] + report["tokens_found"]
    assert num_tokens == plain.usage.prompt_tokens == complete(client).usage.prompt_tokens


def test_pml_messages_work_in_completions_too(client: openai.OpenAI) -> None:
    answer = complete(client, "", pml=ASKED, echo=True, max_tokens=0)
    assert answer.choices[0].text.endswith("<|im_start|>user\nWhere do we begin?<|im_end|>\n")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"echo": True, "logprobs": 1}, "echo with logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt": []}, "list is empty"),
    ],
)
def test_what_completions_refuse(client: openai.OpenAI, given: dict[str, Any], what: str) -> None:
    with pytest.raises(openai.BadRequestError, match=what):
        complete(client, **given)


def test_plain_requests_are_as_without_the_plugin(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="tiny", prompt="And then", max_tokens=4, temperature=0)
    assert not hasattr(plain, "prompt_cache") and plain.usage.prompt_tokens_details is None  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="must be provided and non-empty"):
        client.completions.create(model="tiny", prompt="")


@pytest.mark.parametrize("streamed", [False, True])
def test_the_answer_says_that_the_schema_s_order_is_used(client: openai.OpenAI, streamed: bool) -> None:
    pml = PROMPT.replace("</prompt>", "<food/></prompt>")
    turned = PROMPT.replace('"travel">', '"travel"><food/>')
    for one, notes in ((pml, 0), (turned, 1)):
        answer: Any = client.completions.create(
            model="tiny", prompt=["Go", "Stay"], max_tokens=2, stream=streamed, extra_body={"pml": one}
        )
        report = list(answer)[-1].prompt_cache if streamed else answer.prompt_cache
        assert len(report.get("notes", ())) == notes
        assert not notes or report["notes"][0].startswith("the schema's order is used: ")


def test_explain_says_where_units_are(client: openai.OpenAI, http: httpx.Client) -> None:
    text = "Nobody has asked for this one before, so it is in no cache and in no record. " * 9
    schema = f"<schema name='lookup'><module name='a'>{text}</module></schema>"
    body = {
        "model": "tiny",
        "prompt": "Go",
        "pml": f"<pml>{schema}<prompt schema='lookup'><a/></prompt></pml>",
    }
    assert http.post("/explain", json=body).json()["lookup"]["units"] == {"lookup/a": "absent"}
    client.completions.create(model="tiny", prompt="Go", max_tokens=1, extra_body={"pml": body["pml"]})
    found = http.post("/explain", json=body).json()["lookup"]
    assert found["units"] == {"lookup/a": "resident"}
    assert found["plain_prefix"]["tokens"] == 0 and found["block_size"] > 0
    assert "units" not in http.post("/explain", json=body | {"cache_salt": "mine"}).json()["lookup"]
