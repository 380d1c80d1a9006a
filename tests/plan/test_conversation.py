"""Prompts over chat: the composed prompt is what the chat template writes for the conversation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from jinja2 import TemplateError

from tests.byte_tokenizer import byte_tokenizer, plan_lines, plan_text
from tests.chat_templates import CHAT_TEMPLATES, rendered, tokenizer_with
from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.errors import ChatTemplateError, IssueList, PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.build import build_chat
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.parser import parse_document

DOCS = '<module name="a">Grass is green. </module><module name="b">The sky is blue.</module>'
A, B = "Grass is green. ", "The sky is blue."
RAG = f'<schema name="s"><system>Be brief.</system><user>Documents: {DOCS}</user></schema>'
ASKING = (
    f'<schema name="s"><system>Be brief.</system><user>Documents: {DOCS}'
    '<module name="q">\n\nQuestion: <parameter name="text" length="40"/></module></user></schema>'
)
LIBRARY = f'<schema name="s"><system>Be brief.</system>{DOCS}</schema>'
NO_ROLES = f'<schema name="s">Be brief.{DOCS}</schema>'
ONLY_USER = f'<schema name="s"><user>Documents: {DOCS}</user></schema>'
SYSTEM = f'<schema name="s"><system>Be brief. {DOCS}</system></schema>'
EXAMPLE = (
    '<schema name="s"><system>Be brief.</system><user>Hi</user><assistant>Hello.</assistant>'
    f"<user>Documents: {DOCS}</user></schema>"
)


def said(*pairs: str) -> list[dict[str, Any]]:
    """`user Hi` is a user message with the content `Hi`."""
    return [dict(zip(("role", "content"), pair.split(" ", 1), strict=True)) for pair in pairs]


@dataclass(frozen=True)
class Talk:
    """A schema, what a prompt includes and says, messages, and the conversation that they are."""

    schema: str
    prompt: str
    messages: list[dict[str, Any]]
    conversation: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)


BRIEF = "system Be brief."
TALKS = {
    "the question is the prompt's text": Talk(
        RAG, "<a/><b/>Which is blue?", [], said(BRIEF, f"user Documents: {A}{B}Which is blue?")
    ),
    "the question is a parameter": Talk(
        ASKING,
        "<b/><q text='Which is blue?'/>",
        [],
        said(BRIEF, f"user Documents: {B}\nQuestion: Which is blue?"),
    ),
    "the question is the prompt's message": Talk(
        RAG, "<a/><user>Which?</user>", [], said(BRIEF, f"user Documents: {A}Which?")
    ),
    "the question is the last message": Talk(
        RAG, "<a/><b/>", said("user Which?"), said(BRIEF, f"user Documents: {A}{B}\nWhich?")
    ),
    "a line break comes before it": Talk(
        ONLY_USER, "<a/><b/>", said(BRIEF, "user Which?"), said(BRIEF, f"user Documents: {A}{B}\nWhich?")
    ),
    "earlier turns": Talk(
        ASKING,
        "<b/><q text='Which?'/>",
        said("user Hi", "assistant Hello."),
        said(BRIEF, "user Hi", "assistant Hello.", f"user Documents: {B}\nQuestion: Which?"),
    ),
    "earlier turns and the question": Talk(
        RAG,
        "<a/><b/>",
        said("user Hi", "assistant Hello.", "user Which?"),
        said(BRIEF, "user Hi", "assistant Hello.", f"user Documents: {A}{B}\nWhich?"),
    ),
    "earlier turns behind an example": Talk(
        EXAMPLE,
        "<a/>",
        said("user One", "assistant Two", "user Which?"),
        said(BRIEF, "user Hi", "assistant Hello.", "user One", "assistant Two", f"user Documents: {A}Which?"),
    ),
    "later turns": Talk(
        ASKING,
        "<b/><q text='Which?'/>",
        said("assistant The sky.", "user Sure?"),
        said(BRIEF, f"user Documents: {B}\nQuestion: Which?", "assistant The sky.", "user Sure?"),
    ),
    "a message of the prompt with modules": Talk(
        LIBRARY,
        "<user>Use <a/> and <b/>: which?</user>",
        [],
        said(BRIEF, f"user Use {A} and {B}: which?"),
    ),
    "a message of the prompt with a module, and the question": Talk(
        LIBRARY, "<user>Use <b/></user>", said("user Which?"), said(BRIEF, f"user Use {B}\nWhich?")
    ),
    "earlier turns before a message of the prompt with modules": Talk(
        LIBRARY,
        "<user>Use <b/></user>",
        said("user Hi", "assistant Hello.", "user Which?"),
        said(BRIEF, "user Hi", "assistant Hello.", f"user Use {B}\nWhich?"),
    ),
    "a prompt with turns of its own before its modules": Talk(
        LIBRARY,
        "<user>Hi</user><assistant>Hello.</assistant><user><a/> Which?</user>",
        [],
        said(BRIEF, "user Hi", "assistant Hello.", f"user {A} Which?"),
    ),
    "modules in no message": Talk(LIBRARY, "<b/>", said("user Which?"), said(BRIEF, f"user {B}\nWhich?")),
    "modules in no message and later turns": Talk(
        LIBRARY,
        "<b/>",
        said("user Which?", "assistant The sky.", "user Sure?"),
        said(BRIEF, f"user {B}\nWhich?", "assistant The sky.", "user Sure?"),
    ),
    "no roles": Talk(NO_ROLES, "<a/>", said("user Which?"), said(f"system Be brief.{A}", "user Which?")),
    "no roles and text": Talk(
        NO_ROLES,
        "<a/><b/> Think first.",
        said("user Which?"),
        said(f"system Be brief.{A}{B}", "user Think first.\nWhich?"),
    ),
    "no roles and a message with modules": Talk(
        NO_ROLES, "<user>Use <b/>Which?</user>", [], said("system Be brief.", f"user Use {B}Which?")
    ),
    "text in no message": Talk(
        SYSTEM,
        "<a/> Think first.",
        said("user Which?"),
        said(f"system Be brief. {A}", "user Think first.\nWhich?"),
    ),
    "text in no message and no messages": Talk(
        SYSTEM, "<a/> Which?", [], said(f"system Be brief. {A}", "user Which?")
    ),
    "no system message": Talk(ONLY_USER, "<a/><b/>", [], said(f"user Documents: {A}{B}")),
    "a system message of the request": Talk(
        SYSTEM, "<a/>", said("system Now.", "user Which?"), said(f"system Be brief. {A}Now.", "user Which?")
    ),
}
WITH_TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
    }
]


VERBATIM = ("chatml", "chatml-tools", "hermes", "qwen2.5", "qwen3", "tools_first")


def with_tools(schema: str) -> str:
    """A schema with a place for tools."""
    return schema.replace("</schema>", "<tools/></schema>")


def composed(name: str, talk: Talk, **options: Any) -> Plan:
    """The plan of a talk over a template."""
    encoder = TextEncoder(tokenizer_with(name))
    (schema,) = parse_document(talk.schema).schemas
    prompt = parse_document(f"<prompt schema='s'>{talk.prompt}</prompt>").prompt
    assert prompt is not None
    layout = build_layout(schema, encoder, 4096)
    resolution = resolve_prompt(layout, prompt, IssueList())
    return build_chat(layout, resolution, Turns(talk.messages, **options))


def stripped(text: str) -> str:
    """Without white space, which modules and the schema's own text keep where a template strips a content."""
    return "".join(text.split())


def in_one_turn(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with its system message at the start of the first user's turn."""
    system, user, *rest = conversation
    between = "" if system["content"][-1].isspace() else "\n"
    return [{"role": "user", "content": system["content"] + between + user["content"]}, *rest]


@pytest.mark.parametrize("tools", [None, WITH_TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_prompt_is_what_the_template_writes(name: str, talk: str, tools: list[Any] | None) -> None:
    given = TALKS[talk]
    conversation = given.conversation
    if name in ("no-system", "gemma") and given.schema == NO_ROLES:
        conversation = in_one_turn(conversation)
    try:
        expected = rendered(name, conversation, tools=tools)
    except TemplateError:
        with pytest.raises((ChatTemplateError, PMLError)):
            composed(name, given, tools=tools)
        return
    plan = composed(name, given, tools=tools)
    text = plan_text(plan, tokenizer_with(name))
    assert stripped(text) == stripped(expected)
    if name in VERBATIM:
        assert text == expected
    if tools:
        there = composed(name, replace(given, schema=with_tools(given.schema)), tools=tools)
        assert plain_tokens(there)[0].tolist() == plain_tokens(plan)[0].tolist()


def lines_of(name: str, talk: Talk, **options: Any) -> list[str]:
    return plan_lines(composed(name, talk, **options), tokenizer_with(name))


def test_the_schema_s_own_words_are_reused_where_the_template_writes_them() -> None:
    assert lines_of("chatml", TALKS["the question is the prompt's text"]) == [
        "0 s: <|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nDocuments: ",
        "67 s/a: Grass is green. ",
        "83 s/b: The sky is blue.",
        "99 new prompt:1: Which is blue?",
        "113 new template: <|im_end|>\n",
        "124 new messages: <|im_start|>assistant\n",
    ]


def test_what_stands_behind_earlier_turns_is_reused_further_on() -> None:
    plan = composed("chatml", TALKS["earlier turns and the question"])
    there = composed("chatml", TALKS["the question is the last message"])
    moved = {s.unit.id: s.moved for s in plan.segments if isinstance(s, CachedSegment)}
    num_between = plan.next_position - there.next_position
    assert moved == {"s": 0, "s/a": num_between, "s/b": num_between}
    assert plan.num_cached_tokens > 60


def test_tools_behind_the_system_text_leave_its_modules_where_they_are() -> None:
    talk = Talk(SYSTEM, "<a/>", said("user Which?"), [])
    plan = composed("qwen3", talk, tools=WITH_TOOLS)
    assert [s.moved for s in plan.segments if isinstance(s, CachedSegment)] == [0, 0]


def test_a_document_s_mistakes_come_before_those_of_messages() -> None:
    with pytest.raises(PMLError, match="unknown module 'c'"):
        composed("chatml", Talk(SYSTEM, "<c/>", [], []))
    with pytest.raises(PMLError, match="9 fit"):
        composed("chatml", Talk(ASKING.replace('"40"', '"9"'), "<q text='Which is blue?'/>", [], []))


@pytest.mark.parametrize(
    ("schema", "prompt"),
    [(SYSTEM, "<a/>"), (NO_ROLES, "<a/>"), (SYSTEM, "<user/>"), (SYSTEM, "<assistant>Hi</assistant>")],
)
def test_somebody_has_to_ask(schema: str, prompt: str) -> None:
    with pytest.raises(ChatTemplateError, match="messages may be empty only when"):
        composed("chatml", Talk(schema, prompt, [], []))


def test_a_system_message_asks_nothing() -> None:
    with pytest.raises(ChatTemplateError, match="messages beside the system message may be empty only when"):
        composed("chatml", Talk(SYSTEM, "<a/>", said("system Now."), []))


@pytest.mark.parametrize(
    ("schema", "prompt", "what"),
    [
        (SYSTEM, "<user><a/></user>", "module 'a' stands in the schema's 'system' message"),
        (
            '<schema name="s"><module name="a"><user>Hi</user></module></schema>',
            "<user><a/></user>",
            "module 'a' holds a 'user' message",
        ),
        (
            f'<schema name="s">{DOCS}<module name="c">C</module></schema>',
            "<user><a/><c/></user><assistant>A</assistant><user><b/></user>",
            "do not stand next to each other in the schema",
        ),
    ],
)
def test_modules_that_a_message_cannot_hold(schema: str, prompt: str, what: str) -> None:
    with pytest.raises(PMLError, match=what):
        composed("chatml", Talk(schema, prompt, said("user Hi"), []))


@pytest.mark.parametrize(("prompt", "notes"), [("<a/><b/>", ()), ("<b/><a/>", ("'a' stands before 'b'",))])
def test_the_schema_s_order_is_used_and_noted(prompt: str, notes: tuple[str, ...]) -> None:
    plan = composed("chatml", Talk(SYSTEM, prompt, said("user Which?"), []))
    assert plan.notes == tuple(f"the schema's order is used: {note}" for note in notes)
    assert plan_text(plan, tokenizer_with("chatml")).index(A) < plan_text(
        plan, tokenizer_with("chatml")
    ).index(B)


def test_a_date_that_has_changed_is_new_text() -> None:
    """What the template writes of the clock is found when a conversation is rendered."""
    dated = CHAT_TEMPLATES["llama3.1"].replace("strftime_now", "date_of")
    encoder = TextEncoder(byte_tokenizer(bos="<s>", chat_template=dated))
    (schema,) = parse_document(SYSTEM).schemas
    layout = build_layout(schema, encoder, 4096)
    prompt = parse_document("<prompt schema='s'><a/></prompt>").prompt
    assert prompt is not None
    texts = []
    for date in ("26 Jul 2024", "3 May 2026"):
        asked = Turns(said("user Which?"), template_options={"date_string": date})
        plan = build_chat(layout, resolve_prompt(layout, prompt, IssueList()), asked)
        texts.append(plan_text(plan, tokenizer_with("llama3.1")))
        assert f"Today Date: {date}" in texts[-1] and A in texts[-1]
        assert any(isinstance(s, CachedSegment) and s.unit.id == "s/a" for s in plan.segments)
    assert texts[0].replace("26 Jul 2024", "3 May 2026") == texts[1]


def test_a_default_system_message_is_part_of_a_schema_that_begins_with_a_user() -> None:
    plan = composed("qwen2.5", TALKS["no system message"])
    first = plan.segments[0]
    assert isinstance(first, CachedSegment) and first.unit.id == "s"
    assert "You are Qwen." in tokenizer_with("qwen2.5").decode(first.unit.token_ids)
    assert not any(s.moved for s in plan.segments if isinstance(s, CachedSegment))
