"""Chat completions with PML, through OpenAI's client."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.reference import greedy, load_reference_model
from tests.repairs import repair as repaired_by_definition
from tests.server.support import ASKED, MESSAGES, PROMPT, TRAVEL

TOOLS: Any = [{"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}]


def ask(client: openai.OpenAI, pml: str | None = PROMPT, **given: Any) -> Any:
    """A chat completion; unknown fields go into the body as they are."""
    extra = {name: given.pop(name) for name in list(given) if name in EXTRA}
    body = extra | ({"pml": pml} if pml is not None else {})
    defaults: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    return client.chat.completions.create(**(defaults | given), extra_body=body)


def num_cached(report: dict[str, int]) -> int:
    """Tokens that were there before the request came."""
    return report["tokens_reused"] + report["tokens_found"]


def counts(usage: Any) -> tuple[int, int, int]:
    """Tokens of the prompt, of the answer, and reused ones."""
    return usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens


EXTRA = (
    *("prompt_cache", "return_token_ids", "return_prompt_text", "prompt_logprobs", "cache_salt", "echo"),
    *("ignore_eos", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    *("use_beam_search", "truncate_prompt_tokens", "chat_template", "kv_transfer_params", "vllm_xargs"),
)


@pytest.mark.parametrize("options", [{}, {"prompt_cache": {"reuse": False}}])
@pytest.mark.parametrize("pml", [PROMPT, ASKED])
def test_answers_are_those_of_the_reference(
    client: openai.OpenAI, http: httpx.Client, tiny_model: Path, pml: str, options: dict[str, Any]
) -> None:
    """Explained, recomputed with an explicit mask, and answered: three ways to the same tokens."""
    answer = ask(client, pml, return_token_ids=True, ignore_eos=True, **options)
    body = {"model": "tiny", "messages": MESSAGES, "pml": pml} | options
    explained = http.post("/explain", json=body).json()
    tokens, _ = greedy(load_reference_model(tiny_model), explained, 8)
    assert answer.choices[0].token_ids == tokens
    assert answer.usage.prompt_tokens == explained["num_cached_tokens"] + explained["num_new_tokens"]
    report = answer.prompt_cache
    assert report["tokens_reused"] + report["tokens_encoded"] == explained["num_cached_tokens"]
    assert bool(explained["num_cached_tokens"]) is not bool(options)


@pytest.mark.parametrize("repair", ["link:5", "link:130+tail", "tail", "full", "none"])
def test_repairs_compute_anew_what_their_definition_says(
    client: openai.OpenAI, http: httpx.Client, tiny_model: Path, repair: str
) -> None:
    options = {"prompt_cache": {"repair": repair}}
    pml = PROMPT.replace("</prompt>", "<food/></prompt>")
    body = {"model": "tiny", "messages": MESSAGES, "pml": pml}
    model = load_reference_model(tiny_model)
    plain = http.post("/explain", json=body | {"prompt_cache": {"repair": "none"}}).json()
    defined = repaired_by_definition(plain, repair)
    explained = http.post("/explain", json=body | options).json()
    answer = ask(client, pml, return_token_ids=True, ignore_eos=True, **options)
    tokens, _ = greedy(model, defined, 8)
    assert answer.choices[0].token_ids == tokens
    num_repaired = defined["num_cached_tokens"] - explained["num_cached_tokens"]
    assert bool(num_repaired) is (repair != "none")
    report = answer.prompt_cache
    num_modules = report["modules_resident"] + report["modules_encoded"] + report["modules_loaded"]
    assert num_modules == len({s["unit"] for s in explained["segments"] if "unit" in s})
    assert report["tokens_reused"] + report["tokens_encoded"] == explained["num_cached_tokens"]
    assert report["tokens_new"] + report["tokens_found"] == defined["num_new_tokens"] + num_repaired
    assert report["tokens_found"] or report["tokens_repaired"] == num_repaired
    assert answer.usage.prompt_tokens_details.cached_tokens == num_cached(report)


def test_the_response_says_what_was_reused(client: openai.OpenAI) -> None:
    answer = ask(client)
    report = answer.prompt_cache
    assert (report["modules_resident"], report["modules_encoded"]) == (3, 0)
    assert num_cached(report) == answer.usage.prompt_tokens_details.cached_tokens > 300
    assert num_cached(report) + report["tokens_new"] == answer.usage.prompt_tokens
    assert answer.kv_transfer_params is None


def test_a_response_that_ends_at_a_stop_string_says_it_too(client: openai.OpenAI) -> None:
    whole = ask(client, max_tokens=30)
    stop = whole.choices[0].message.content[12:14]
    for streamed in (False, True):
        answer = ask(client, max_tokens=30, stop=[stop], stream=streamed)
        if streamed:
            chunks = list(answer)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            report, reason = chunks[-1].prompt_cache, chunks[-1].choices[0].finish_reason
        else:
            text, report = answer.choices[0].message.content, answer.prompt_cache
            reason = answer.choices[0].finish_reason
            assert answer.usage.prompt_tokens_details.cached_tokens == num_cached(report)
        assert (text, reason) == (whole.choices[0].message.content.partition(stop)[0], "stop")
        assert report["tokens_reused"] == whole.prompt_cache["tokens_reused"]


@pytest.mark.parametrize("include_usage", [False, True])
def test_streams(client: openai.OpenAI, include_usage: bool) -> None:
    whole = ask(client)
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(ask(client, stream=True, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].prompt_cache == whole.prompt_cache
    assert not any(hasattr(chunk, "prompt_cache") for chunk in chunks[:-1])
    if include_usage:
        assert counts(chunks[-1].usage) == counts(whole.usage)


def test_a_stream_that_nobody_reads_any_more_is_ended(client: openai.OpenAI, http: httpx.Client) -> None:
    with ask(client, stream=True, max_tokens=3000, ignore_eos=True) as stream:
        next(stream)
        assert http.get("/schemas/travel").json()["modules"][0]["users"] == 1
    deadline = time.monotonic() + 30
    while http.get("/schemas/travel").json()["modules"][0]["users"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_n_seed_and_temperature(client: openai.OpenAI) -> None:
    first, second = (ask(client, n=3, seed=5, temperature=1.0) for _ in range(2))
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, second)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3
    assert first.usage.completion_tokens == 24
    streamed = ["", "", ""]
    chunks = list(ask(client, n=3, seed=5, temperature=1.0, stream=True))
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts[0] and chunks[-1].prompt_cache == second.prompt_cache
    assert num_cached(first.prompt_cache) == first.usage.prompt_tokens_details.cached_tokens


def test_logprobs(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=2, max_tokens=3)
    content = answer.choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in content] == [2, 2, 2]
    assert "".join(token.token for token in content) == answer.choices[0].message.content


def test_structured_outputs(client: openai.OpenAI) -> None:
    schema = {"type": "string", "enum": ["sea", "land"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "where", "schema": schema}}
    answer = ask(client, max_tokens=30, response_format=wanted)
    assert json.loads(answer.choices[0].message.content) in ("sea", "land")


def test_tools_are_part_of_the_prompt(client: openai.OpenAI) -> None:
    """SmolLM2's template ignores tools, so this shows that they are accepted, and parsed if called."""
    answer = ask(client, tools=TOOLS, return_prompt_text=True)
    assert answer.prompt_text.endswith("<|im_start|>assistant\n")
    forced = ask(client, tools=TOOLS, tool_choice="required", max_tokens=60)
    assert forced.usage.prompt_tokens_details.cached_tokens > 300


def test_messages_may_be_empty_after_a_user_message(client: openai.OpenAI) -> None:
    answer = ask(client, ASKED, messages=[], return_prompt_text=True)
    assert answer.prompt_text.endswith("Where do we begin?<|im_end|>\n<|im_start|>assistant\n")
    for streamed in (False, True):
        given: dict[str, Any] = {"add_generation_prompt": False, "stream": streamed, "echo": True}
        assert ask(client, ASKED, messages=[], **given)


DESK = (
    f"<schema name='desk'><system>Be brief.</system><user>Notes:<module name='a'>{'Grass is green. ' * 50}"
    f"</module><module name='b'>{'The sky is blue. ' * 50}</module>\n</user></schema>"
)
EARLIER: Any = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize(
    ("prompt", "messages", "text"),
    [
        ("<a/><b/>Which?", [], "Which?"),
        ("<a/><b/>", [{"role": "user", "content": "Which?"}], "Which?"),
        ("<a/><b/>Which?", EARLIER, "Which?"),
        ("<a/><user>Which?</user>", [], "Which?"),
    ],
)
def test_documents_and_question_are_one_turn(
    client: openai.OpenAI, prompt: str, messages: Any, text: str
) -> None:
    pml = f"<pml>{DESK}<prompt schema='desk'>{prompt}</prompt></pml>"
    ask(client, pml, messages=messages)
    answer = ask(client, pml, messages=messages, return_prompt_text=True)
    written = answer.prompt_text
    assert written.endswith(f"{text}<|im_end|>\n<|im_start|>assistant\n")
    assert written.count("<|im_start|>user") == 1 + len(messages) // 2
    assert "Grass is green. " in written.rpartition("<|im_start|>user")[2]
    assert answer.prompt_cache["tokens_reused"] >= 200 and answer.prompt_cache["tokens_encoded"] == 0


def test_the_schema_s_order_is_noted(client: openai.OpenAI) -> None:
    pml = f"<pml>{DESK}<prompt schema='desk'><b/><a/>Which?</prompt></pml>"
    assert ask(client, pml, messages=[]).prompt_cache["notes"] == [
        "the schema's order is used: 'a' stands before 'b'"
    ]


def test_the_conversation_goes_on_without_a_second_system_message(client: openai.OpenAI) -> None:
    turns = [*MESSAGES, {"role": "assistant", "content": "At sea."}, {"role": "user", "content": "Why?"}]
    answer = ask(client, messages=turns, return_prompt_text=True)
    text = answer.prompt_text
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("At sea.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    continued = ask(
        client,
        messages=turns[:2],
        add_generation_prompt=False,
        continue_final_message=True,
        return_prompt_text=True,
        echo=True,
    )
    assert continued.prompt_text.endswith("<|im_start|>assistant\nAt sea.")
    assert continued.choices[0].message.content.startswith("At sea.")


def test_a_later_turn_reuses_the_earlier_ones(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": "Tell me all about it. " * 100}]
    first = ask(client, messages=turns, max_tokens=4)
    turns += [{"role": "assistant", "content": first.choices[0].message.content}, *MESSAGES]
    second = ask(client, messages=turns, max_tokens=4)
    assert second.prompt_cache["tokens_found"] >= 256
    assert second.usage.prompt_tokens_details.cached_tokens == num_cached(second.prompt_cache)


def test_prompt_tokens_are_shown_in_the_order_of_positions(client: openai.OpenAI, http: httpx.Client) -> None:
    answer = ask(client, return_token_ids=True, return_prompt_text=True)
    plain = http.post(
        "/explain",
        json={"messages": MESSAGES, "pml": PROMPT, "model": "tiny", "prompt_cache": {"reuse": False}},
    ).json()
    assert answer.prompt_token_ids == [t for s in plain["segments"] for t in s["token_ids"]]
    text = answer.prompt_text
    assert 0 < text.index("The journey takes three days and begins at home.") < text.index("The islands lie")


def test_generation_stops_where_positions_run_out(client: openai.OpenAI, http: httpx.Client) -> None:
    """Nothing of the union is included, so the prompt has a gap: positions run out before tokens do."""
    pml = '<prompt schema="travel"><plan/><food/></prompt>'
    words: Any = [{"role": "user", "content": "word " * 3200}]
    explained = http.post("/explain", json={"messages": words, "pml": pml}).json()
    left = 4096 - explained["next_position"]
    answer = ask(client, pml, messages=words, max_tokens=4000, ignore_eos=True)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", left)
    assert answer.usage.total_tokens < 4096 - 100
    words[0]["content"] += "word " * left
    with pytest.raises(openai.BadRequestError, match="needs one to generate at"):
        ask(client, pml, messages=words)


def test_a_request_can_bring_its_own_schema(client: openai.OpenAI) -> None:
    pml = '<pml><schema name="own">Own text.<module name="m">More.</module></schema>{}</pml>'
    answers = [ask(client, pml.format(f'<prompt schema="own">{m}</prompt>')) for m in ("<m/>", "", "<m/>")]
    assert [answer.prompt_cache["modules_encoded"] for answer in answers] == [2, 0, 0]
    assert answers[0].choices[0].message == answers[2].choices[0].message


def test_tenants_have_states_of_their_own(client: openai.OpenAI) -> None:
    """Of what clients bring; the modules of the operator's schemas are the same for all."""
    own = TRAVEL.replace("You plan journeys.", "You plan a client's journeys.")
    for pml, expected in ((PROMPT, [0, 0, 0]), (f"<pml>{own}{PROMPT}</pml>", [3, 3, 0])):
        plain, salted = ask(client, pml), ask(client, pml, cache_salt="secret")
        again = ask(client, pml, cache_salt="secret")
        assert plain.choices[0].message == salted.choices[0].message
        assert [a.prompt_cache["modules_encoded"] for a in (plain, salted, again)] == expected


def test_many_at_once(client: openai.OpenAI) -> None:
    prompts = [PROMPT, ASKED, PROMPT.replace("maldives", "iceland"), None] * 4
    alone = {pml: ask(client, pml).choices[0].message.content for pml in set(prompts)}
    with ThreadPoolExecutor(len(prompts)) as threads:
        together = list(threads.map(lambda pml: ask(client, pml), prompts))
    assert [answer.choices[0].message.content for answer in together] == [alone[pml] for pml in prompts]


def test_plain_requests_are_as_without_the_plugin(client: openai.OpenAI) -> None:
    answer = ask(client, None)
    assert not hasattr(answer, "prompt_cache")
    assert answer.usage.prompt_tokens_details is None
    chunks = list(ask(client, None, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.prompt_tokens_details is None
