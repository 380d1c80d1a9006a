"""A schema's place for tools: what the template writes of them is a unit, found by its content."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.byte_tokenizer import plan_lines, plan_text
from tests.chat_templates import CHAT_TEMPLATES, rendered, tokenizer_with
from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.build import NO_TOOLS, build_chat
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.parser import parse_document

WRITE_TOOLS = (
    *("chatml-tools", "headers", "hermes", "llama3.1", "mistral", "qwen2.5", "qwen3"),
    *("tools_first", "tools_in_system_first"),
)
HEADS = ("Be brief.", "You book journeys, and nothing else. Be polite.")
ASKED = [{"role": "user", "content": "Which?"}]


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"where": {"type": "string", "description": "A town"}}}
    function = {"name": name, "description": f"Looks for {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [tool("trains"), tool("hotels")]


def schema(text: str, tools: str = "<tools/>", attributes: str = "") -> str:
    documents = '<module name="a">Grass is green.</module><module name="b">Snow is white.</module>'
    return f'<schema name="s"{attributes}><system>{text}{documents}{tools}</system></schema>'


def composed(tokenizer: Any, document: str, tools: Any = TOOLS, messages: Any = ASKED) -> Plan:
    encoder = TextEncoder(tokenizer)
    layout = build_layout(parse_document(document).schemas[0], encoder, 4096)
    prompt = parse_document("<prompt schema='s'><a/></prompt>").prompt
    assert prompt is not None
    return build_chat(layout, resolve_prompt(layout, prompt, IssueList()), Turns(messages, tools=tools))


def tools_of(plan: Plan) -> CachedSegment:
    (found,) = [s for s in plan.segments if isinstance(s, CachedSegment) and s.unit.id == "s:tools"]
    return found


@pytest.mark.parametrize("name", WRITE_TOOLS)
def test_tools_are_one_unit_behind_any_head_and_the_prompt_stays_the_template_s(name: str) -> None:
    tokenizer = tokenizer_with(name)
    first, second = (composed(tokenizer, schema(head)) for head in HEADS)
    assert tools_of(first).unit.digest == tools_of(second).unit.digest
    for plan, head in ((first, HEADS[0]), (second, HEADS[1])):
        content = f"{head}Grass is green."
        expected = rendered(name, [{"role": "system", "content": content}, *ASKED], tools=TOOLS)
        assert plan_text(plan, tokenizer) == expected
    written = tokenizer.decode(tools_of(first).unit.token_list)
    assert all(f'"{one["function"]["name"]}"' in written for one in TOOLS)
    assert "Be brief" not in written and "Which" not in written and "Today" not in written
    assert first.num_cached_tokens > tools_of(first).num_tokens + len("Be brief.Grass is green.") - 1


@pytest.mark.parametrize("name", WRITE_TOOLS)
def test_other_tools_are_another_unit_and_none_are_none(name: str) -> None:
    tokenizer, document = tokenizer_with(name), schema(HEADS[0])
    digests = {
        tools_of(composed(tokenizer, document, tools)).unit.digest
        for tools in (TOOLS, TOOLS[::-1], TOOLS[:1])
    }
    assert len(digests) == 3
    for tools in (None, []):
        without = composed(tokenizer, document, tools)
        assert plan_lines(without, tokenizer) == plan_lines(
            composed(tokenizer, schema(HEADS[0], ""), tools), tokenizer
        )


@pytest.mark.parametrize("name", WRITE_TOOLS)
def test_tokens_are_those_without_a_place_for_tools(name: str, embedded_model: Any) -> None:
    """With a tokenizer that merges: the cut around the tools changes no token."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    tokenizer.chat_template = CHAT_TEMPLATES[name]
    turns = [*ASKED, {"role": "assistant", "content": "Snow."}, {"role": "user", "content": "Sure?"}]
    for messages in (ASKED, turns):
        there = composed(tokenizer, schema("Be brief. "), messages=messages)
        without = composed(tokenizer, schema("Be brief. ", ""), messages=messages)
        assert plain_tokens(there)[0].tolist() == plain_tokens(without)[0].tolist()
        assert plain_tokens(there)[1].tolist() == plain_tokens(without)[1].tolist()
        assert tools_of(there).num_tokens > 60


def test_tools_see_the_words_that_begin_a_conversation_and_isolated_ones_nothing() -> None:
    tokenizer = tokenizer_with("qwen3")
    (seen,) = tools_of(composed(tokenizer, schema("Be brief."))).unit.context
    assert tokenizer.decode(seen.token_list) == "<|im_start|>system\n"
    assert tools_of(composed(tokenizer, schema("Be brief."))).unit.home == seen.num_tokens
    alone = tools_of(composed(tokenizer, schema("Be brief.", attributes=' encode="isolated"'))).unit
    assert (alone.context, alone.home) == ((), 0)


def test_room_for_tools_keeps_what_is_behind_them_at_home() -> None:
    tokenizer = tokenizer_with("qwen3")
    document = (
        '<schema name="s"><system>Be brief.<tools{}/></system><user>'
        '<module name="a">Grass is green.</module></user></schema>'
    )
    for room, moved in (("", True), (' length="600"', False), (' length="9"', True)):
        plan = composed(tokenizer, document.format(room))
        (module,) = [s for s in plan.segments if isinstance(s, CachedSegment) and s.unit.id == "s/a"]
        assert (module.moved > 0) is moved
        assert tools_of(plan).num_tokens > 100


@pytest.mark.parametrize("name", ["chatml", "gemma3", "inst", "llama2"])
def test_a_template_that_writes_no_tools_is_said(name: str) -> None:
    plan = composed(tokenizer_with(name), schema(HEADS[0]))
    assert plan.notes == (NO_TOOLS,)
    assert not composed(tokenizer_with(name), schema(HEADS[0]), None).notes
    assert not composed(tokenizer_with(name), schema(HEADS[0], "")).notes


def test_white_space_around_the_place_is_no_text() -> None:
    inside = 'Be brief.\n  <module name="a">A</module>\n  <tools/>'
    document = f'<schema name="s">\n<system>\n  {inside}\n</system></schema>'
    tokenizer = tokenizer_with("qwen3")
    expected = [{"role": "system", "content": "Be brief.\nA"}, *ASKED]
    assert plan_text(composed(tokenizer, document), tokenizer) == rendered("qwen3", expected, tools=TOOLS)
