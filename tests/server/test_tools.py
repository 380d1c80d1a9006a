"""Tools over HTTP: a module where the schema has a place for them, and called as without PML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.reference import greedy, load_reference_model
from tests.server.support import Server, serving

TEMPLATE = Path(__file__).parents[1] / "templates" / "qwen3.jinja"
RULES = "Never book more than two nights at once, and never anything that cannot be cancelled."
HEADS = ("You book journeys.", "You are a clerk at a travel desk, and you say no more than you have to.")
ASKED = [{"role": "user", "content": "Find me a bed in Bergen."}]


def tool(name: str, argument: str) -> dict[str, Any]:
    schema = {"type": "string", "enum": ["Bergen", "Oslo"], "description": "Where to look for it"}
    parameters: dict[str, Any] = {"type": "object", "properties": {argument: schema}, "required": [argument]}
    parameters["additionalProperties"] = False
    function = {"name": name, "description": f"Finds {name} that are free.", "parameters": parameters}
    # A call that a grammar asks for keeps to the parameters then, also of a model with random weights.
    return {"type": "function", "function": {**function, "strict": True}}


TOOLS = [tool("trains", "station"), tool("hotels", "town"), tool("boats", "harbour")]


@pytest.fixture(scope="module")
def agents(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a template that writes tools."""
    log = tmp_path_factory.mktemp("agents") / "log"
    parsing = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serving(tiny_model, log, "--chat-template", str(TEMPLATE), *parsing) as server:
        yield server


@pytest.fixture(scope="module")
def web(agents: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{agents.url}/v1", timeout=120) as client:
        yield client


def pml(head: str, tools: str = "<tools/>") -> str:
    rules = f'<module name="rules">{RULES}</module>'
    schema = f'<schema name="agent"><system>{head} {rules}{tools}</system></schema>'
    return f'<pml>{schema}<prompt schema="agent"><rules/></prompt></pml>'


def ask(web: httpx.Client, head: str | None, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": ASKED,
        "tools": TOOLS,
        "max_tokens": 5,
        "temperature": 0.0,
    }
    body |= fields
    if head is not None:
        body["pml"] = pml(head)
    answer = web.post("/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_tools_are_encoded_once_for_all_schemas(web: httpx.Client) -> None:
    first, again, other = (ask(web, head)["prompt_cache"] for head in (HEADS[0], HEADS[0], HEADS[1]))
    explained = web.post("/prompt_cache/explain", json=body_of(HEADS[0])).json()
    num_tools = next(len(u["token_ids"]) for u in explained["units"] if u["id"].startswith("agent:tools"))
    assert first["tokens_encoded"] > num_tools > 200
    assert (again["modules_encoded"], again["tokens_encoded"]) == (0, 0)
    # Behind another head they stand elsewhere, and come from their record.
    assert other["tokens_reused"] >= num_tools and other["tokens_encoded"] < num_tools
    assert other["tokens_new"] < 40


def body_of(head: str, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ASKED, "tools": TOOLS, "pml": pml(head), **fields}


@pytest.mark.parametrize("head", HEADS)
def test_the_prompt_is_the_template_s_and_its_answer_the_definition_s(
    web: httpx.Client, tiny_model: Path, head: str
) -> None:
    said = ask(web, head, return_prompt_text=True, return_token_ids=True, ignore_eos=True)
    system = {"role": "system", "content": f"{head} {RULES}"}
    plain = ask(web, None, messages=[system, *ASKED], return_prompt_text=True)
    assert said["prompt_text"] == plain["prompt_text"]
    explained = web.post("/prompt_cache/explain", json=body_of(head)).json()
    tokens, _ = greedy(load_reference_model(tiny_model), explained, 5)
    assert said["choices"][0]["token_ids"] == tokens


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "hotels"}}])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_is_asked_for_is_parsed(web: httpx.Client, choice: Any, streamed: bool) -> None:
    given = {"tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 300, "seed": 1}
    body = body_of(HEADS[0], temperature=1.0, **given)
    if streamed:
        lines = web.post("/chat/completions", json=body | {"stream": True}).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [call for c in chunks for call in c["choices"][0]["delta"].get("tool_calls") or ()]
        name = "".join(call["function"].get("name") or "" for call in deltas)
        arguments = "".join(call["function"].get("arguments") or "" for call in deltas)
        report = chunks[-1]["prompt_cache"]
    else:
        answer = web.post("/chat/completions", json=body).json()
        (call, *_) = answer["choices"][0]["message"]["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        report = answer["prompt_cache"]
    called = next(one["function"] for one in TOOLS if one["function"]["name"] == name)
    assert name == "hotels" or choice == "required"
    assert json.loads(arguments).keys() == set(called["parameters"]["required"])
    assert report["tokens_reused"] > 200 or report["tokens_encoded"] > 200


def test_a_call_in_the_model_s_own_words_is_parsed(web: httpx.Client) -> None:
    call = '<tool_call>\n{"name": "hotels", "arguments": {"town": "Oslo"}}\n</tool_call>'
    tools = [{**one, "function": {**one["function"], "strict": False}} for one in TOOLS]
    forced = {"structured_outputs": {"choice": [call]}, "max_tokens": 100, "tools": tools}
    for choice in ("auto", None):
        given = {"tool_choice": choice} if choice else {}
        message = ask(web, HEADS[0], **forced, **given)["choices"][0]["message"]
        (parsed,) = message["tool_calls"]
        assert parsed["function"]["name"] == "hotels"
        assert json.loads(parsed["function"]["arguments"]) == {"town": "Oslo"}


def test_without_a_choice_tools_are_in_the_prompt_and_nothing_is_parsed(web: httpx.Client) -> None:
    answer = ask(web, HEADS[0], tool_choice="none", return_prompt_text=True)
    assert not answer["choices"][0]["message"].get("tool_calls")
    plain = ask(
        web,
        None,
        messages=[{"role": "system", "content": f"{HEADS[0]} {RULES}"}, *ASKED],
        tool_choice="none",
        return_prompt_text=True,
    )
    assert answer["prompt_text"] == plain["prompt_text"]


def test_calls_and_results_among_the_messages(web: httpx.Client) -> None:
    call = {"name": "hotels", "arguments": '{"town": "Bergen"}'}
    messages = [
        *ASKED,
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c1", "content": "Two beds are free."},
    ]
    answer = ask(web, HEADS[0], messages=messages, return_prompt_text=True)
    system = {"role": "system", "content": f"{HEADS[0]} {RULES}"}
    plain = ask(web, None, messages=[system, *messages], return_prompt_text=True)
    assert answer["prompt_text"] == plain["prompt_text"]
    assert "Two beds are free." in answer["prompt_text"] and answer["prompt_cache"]["tokens_reused"] > 200


def test_other_tools_and_none(web: httpx.Client) -> None:
    for tools in (TOOLS[:1], TOOLS[::-1], None):
        answer = ask(web, HEADS[0], tools=tools, return_prompt_text=True)
        system = {"role": "system", "content": f"{HEADS[0]} {RULES}"}
        plain = ask(web, None, messages=[system, *ASKED], tools=tools, return_prompt_text=True)
        assert answer["prompt_text"] == plain["prompt_text"]


def test_a_registered_schema_says_that_it_has_a_place_for_tools(web: httpx.Client) -> None:
    form = {"name": "json-agent", "content": [{"role": "system", "content": [HEADS[0], {"tools": True}]}]}
    assert web.post("/prompt_cache/schemas?pin=true", json=form).json()["tools"] == {"positions": 0}
    prompt = "<prompt schema='json-agent'/>"
    said = ask(web, None, pml=prompt)["prompt_cache"]
    assert said["tokens_reused"] > 200, "the same tools as behind other heads"
