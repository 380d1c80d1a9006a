"""What is tried, and what of it is suggested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from tests.byte_tokenizer import byte_tokenizer, plan_lines, plan_text
from tests.chat_templates import rendered, tokenizer_with
from vllm_promptcache.advise.advice import Advice, ModuleEffect, RemedyEffect
from vllm_promptcache.advise.case import Case, plan_over
from vllm_promptcache.advise.changes import checked, encoded, with_scaffold, without_cache
from vllm_promptcache.advise.remedies import SchemaChanges, repairs_for
from vllm_promptcache.advise.report import write_report
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.pml.nodes import SchemaNode
from vllm_promptcache.pml.parser import parse_document

SCHEMA = """<schema name="s" encode="isolated">Root.
<module name="a">Text of a. <module name="in">Inner.</module></module>
<union><module name="b">Text of b.</module><module name="c">Text of c.</module></union> End.</schema>"""
PROMPTS = ["<a><in/></a><b/>", "<a/><b/>", "<a/><b/>", "<c/>"]
TAIL = [([1, 2, 3], "messages")]


def node(text: str = SCHEMA) -> SchemaNode:
    (schema,) = parse_document(text).schemas
    return schema


def build(schema: SchemaNode) -> SchemaLayout:
    return build_layout(schema, byte_tokenizer(), 4096)


def cases_over(layout: SchemaLayout, prompts: Sequence[str] = PROMPTS) -> list[Case]:
    nodes = [parse_document(f'<prompt schema="s">{text}</prompt>').prompt for text in prompts]
    return [
        Case(build_plan(layout, one, TAIL), partial(build_plan, prompt=one, continuation=TAIL))
        for one in nodes
        if one is not None
    ]


def changes(schema: SchemaNode, cases: Sequence[Case], causes: dict[str, float]) -> SchemaChanges:
    layout = build(schema)
    units = {unit.id: unit for case in cases for unit in case.units}
    names = {m.unit: m.path.partition("/")[2] for m in layout.modules[1:] if m.unit is not None}
    names = {units[unit.id]: name for unit, name in names.items() if unit.id in units}
    return SchemaChanges(schema, build, names, {units[f"s/{name}"]: c for name, c in causes.items()})


def test_one_unit_anew_leaves_the_others() -> None:
    case = cases_over(build(node()))[0]
    assert [unit.id for unit in case.units] == ["s", "s/a", "s/a/in", "s/b"]
    anew = case.with_unit_anew(case.units[1])
    changed = [
        a
        for a, b in zip(
            plan_lines(anew, byte_tokenizer()), plan_lines(case.plan, byte_tokenizer()), strict=True
        )
        if a != b
    ]
    assert changed == ["5 new anew:s/a: \nText of a. "]
    assert anew.num_repaired_tokens == 12


def test_questions_keep_their_tokens_over_other_layouts() -> None:
    schema = node()
    for changed in (
        encoded(schema, "context"),
        encoded(schema, "sequence"),
        with_scaffold(schema, [("a",), ("b",)]),
        without_cache(schema, ("a", "in")),
        without_cache(schema, ("b",)),
    ):
        layout = build(changed)
        for case in cases_over(build(schema)):
            plan = case.over(layout)
            assert plan.next_position == case.plan.next_position
            total = case.plan.num_cached_tokens + case.plan.num_new_tokens
            assert plan.num_cached_tokens + plan.num_new_tokens == total
    with pytest.raises(PMLError, match="members of one union"):
        checked(with_scaffold(schema, [("b",), ("c",)]))
    with pytest.raises(PMLError, match="cannot be encoded in a scaffold"):
        checked(without_cache(with_scaffold(schema, [("a",), ("b",)]), ("a",)))


def test_repairs_are_tried_that_make_a_difference() -> None:
    layout = build(node())
    names = [remedy.name for remedy in repairs_for(layout, cases_over(layout))]
    # No module has over 16 tokens, and all of the schema's tail is among its first 16.
    assert names == ["repair tail", "repair link:4", "repair link:16"]
    alone = build(node('<schema name="s"><module name="a">Text.</module></schema>'))
    assert repairs_for(alone, cases_over(alone, ["<a/>"])) == []


def test_changes_follow_what_causes_most_and_what_is_used_together() -> None:
    schema = node()
    cases = cases_over(build(schema))
    found = changes(schema, cases, {"a": 0.1, "a/in": 0.5, "b": 0.3, "c": 0.2}).find(cases, with_tail=True)
    assert [remedy.name for remedy in found] == [
        'encode="context"',
        'encode="sequence"',
        'encode="sequence", repair tail',
        '<scaffold modules="a/in b"/>',
        '<scaffold modules="a/in b"/>, repair tail',
        'encode="context", <scaffold modules="a/in b"/>',
        'encode="context", <scaffold modules="a/in b"/>, repair tail',
        '<scaffold modules="a b"/>',
        '<scaffold modules="a b"/>, repair tail',
        'encode="context", <scaffold modules="a b"/>',
        'encode="context", <scaffold modules="a b"/>, repair tail',
        'cache="false" on a/in',
    ]
    assert [remedy.layout.encode for remedy in found[:5]] == [
        *("context", "sequence", "sequence"),
        *["isolated"] * 2,
    ]


def test_what_a_schema_says_already_is_not_tried_again() -> None:
    schema = with_scaffold(encoded(node(), "context"), [("a",), ("b",)])
    cases = cases_over(build(encoded(node(), "context")), ["<a/><b/>"])
    found = changes(schema, cases, {"a": 0.1, "b": 0.3}).find(cases, with_tail=False)
    assert [remedy.name for remedy in found] == ['encode="sequence"']


def effect(name: str, divergence: float, recomputed: float = 0, blocks: int = 0) -> RemedyEffect:
    return RemedyEffect(name, divergence, 1, recomputed, blocks)


def advice(now: float, *remedies: RemedyEffect) -> Advice:
    modules = (ModuleEffect("s/a", 2, 30, 0.25), ModuleEffect("s", 3, 9, -0.01))
    return Advice("s", "context", 3, modules, effect("now", now), remedies)


def test_the_cheapest_remedy_that_halves_the_divergence_is_suggested() -> None:
    remedies = (
        effect("much", 0.01, 50),
        effect("little", 0.19, 10, 4),
        effect("less", 0.2, 10),
        effect("no", 0.3),
    )
    found = advice(0.4, *remedies)
    assert found.suggestion == remedies[2]
    report = write_report(found)
    assert "Suggestion: less." in report
    lines = [line.split() for line in report.splitlines()]
    assert ["s/a", "2", "30", "0.2500"] in lines
    assert ["little", "0.1900", "1", "of", "3", "10", "+4"] in lines
    assert found.to_json()["suggestion"] == "less"
    assert found.to_json()["modules"][0] == {"module": "s/a", "questions": 2, "tokens": 30, "causes": 0.25}
    nothing, small = advice(0.4, effect("no", 0.3)), advice(0.009, effect("yes", 0))
    assert nothing.suggestion is small.suggestion is None
    assert "Nothing that was tried" in write_report(nothing)
    assert "Nothing needs to be done" in write_report(small)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3.1", "mistral"])
def test_a_chat_over_another_layout_keeps_the_words_of_the_template(name: str) -> None:
    encoder = TextEncoder(tokenizer_with(name))
    parsed = node(
        '<schema name="s">Be brief. <module name="a">A</module><module name="b">Snow.</module></schema>'
    )
    prompt = parse_document("<prompt schema='s'><b/></prompt>").prompt
    assert prompt is not None
    turns = Turns([{"role": "user", "content": "Which?"}])
    system = {"role": "system", "content": "Be brief. Snow."}
    for encode in ("context", "sequence", "isolated"):
        layout = build_layout(replace(parsed, encode=encode), encoder, 4096)
        text = plan_text(plan_over(layout, prompt, turns), tokenizer_with(name))
        assert text == rendered(name, [system, *turns.messages])
