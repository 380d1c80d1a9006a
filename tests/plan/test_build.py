"""Prompts to plans, text in, text out. One byte is one token, so positions can be counted in the text."""

# ruff: noqa: E501 (documents are read in lines)

from __future__ import annotations

from collections.abc import Sequence
from textwrap import dedent

import numpy as np
import pytest

from tests.byte_tokenizer import CHATML, INST, byte_tokenizer, plan_lines, plan_text
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import Tokenizer
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.nodes import PromptNode
from vllm_promptcache.pml.parser import parse_document

CHAT = byte_tokenizer(chat_template=CHATML)


def layout_of(content: str, tokenizer: Tokenizer | None = None, max_model_len: int = 4096) -> SchemaLayout:
    (schema,) = parse_document(f'<schema name="s">{content}</schema>').schemas
    return build_layout(schema, tokenizer or byte_tokenizer(), max_model_len, min_free_tokens=1)


def prompt_of(content: str) -> PromptNode:
    prompt = parse_document(f'<prompt schema="s">{content}</prompt>', "prompt").prompt
    assert prompt is not None
    return prompt


def plan_of(
    schema: str,
    prompt: str,
    tokenizer: Tokenizer | None = None,
    tail: Sequence[tuple[Sequence[int], str]] = (),
) -> Plan:
    return build_plan(layout_of(schema, tokenizer), prompt_of(prompt), tail)


def lines_of(schema: str, prompt: str, tokenizer: Tokenizer | None = None) -> list[str]:
    return plan_lines(plan_of(schema, prompt, tokenizer), byte_tokenizer() if tokenizer is None else CHAT)


def errors_of(schema: str, prompt: str, tokenizer: Tokenizer | None = None, **options: int) -> list[str]:
    with pytest.raises(PMLError) as caught:
        build_plan(layout_of(schema, tokenizer, **options), prompt_of(prompt))
    assert caught.value.status == 400
    return [f"{issue.column}: {issue.path}: {issue.what}" for issue in caught.value.issues]


# Modules and unions

NESTED = 'Aa<module name="m">Bb<module name="n">Cc</module>Dd<module name="o">Ee</module>Ff</module>Gg'


def test_the_page_s_example() -> None:
    schema = """<schema name="travel">
      <module name="travel-plan">Stay for <parameter name="duration" length="12"/>.
        <union name="overseas"><module name="miami">Miami</module><module name="maldives">Maldives</module></union>
      </module></schema>"""
    prompt = """<prompt schema="travel">
      <travel-plan duration="three days">
        <overseas><maldives/></overseas>
      </travel-plan>
      <user>Plan the first morning.</user>
    </prompt>"""
    document = parse_document(f"<pml>{schema}{prompt}</pml>")
    assert document.prompt is not None
    plan = build_plan(build_layout(document.schemas[0], CHAT, 4096), document.prompt)
    assert plan_lines(plan, CHAT) == [
        "0 travel/travel-plan: Stay for ",
        "9 new prompt:5: three days",
        "21 travel/travel-plan: .",
        "22 travel/travel-plan/maldives: \nMaldives",
        "31 new prompt:8: <|im_start|>user\n",
        "48 new prompt:8: Plan the first morning.",
        "71 new prompt:8: <|im_end|>\n",
    ]
    assert (plan.num_cached_tokens, plan.num_new_tokens, plan.next_position) == (19, 61, 82)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<m><n/><o/></m>x", ["0 s: Aa", "2 s/m: Bb", "4 s/m/n: Cc", "6 s/m: Dd", "8 s/m/o: Ee", "10 s/m: Ff", "12 s: Gg", "14 new prompt:1: x"]),
        ("<m><o/></m>x", ["0 s: Aa", "2 s/m: Bb", "6 s/m: Dd", "8 s/m/o: Ee", "10 s/m: Ff", "12 s: Gg", "14 new prompt:1: x"]),
        ("<m><o/><n/></m>x", ["0 s: Aa", "2 s/m: Bb", "4 s/m/n: Cc", "6 s/m: Dd", "8 s/m/o: Ee", "10 s/m: Ff", "12 s: Gg", "14 new prompt:1: x"]),
        ("x", ["0 s: Aa", "12 s: Gg", "14 new prompt:1: x"]),
        ("", ["0 s: Aa", "12 s: G", "13 new schema:1: g"]),
    ],
)  # fmt: skip
def test_nested_modules_in_position_order(prompt: str, expected: list[str]) -> None:
    assert lines_of(NESTED, prompt) == expected


@pytest.mark.parametrize("prompt", ["<u><b/></u>x", "<b/>x", '<u space="preserve"> <b/> </u>x'])
def test_a_member_stands_in_its_place_or_in_the_union_s_element(prompt: str) -> None:
    schema = '<union name="u"><module name="a">aaaa</module><module name="b">bb</module></union>cc'
    assert lines_of(schema, prompt) == ["0 s/b: bb", "4 s: cc", "6 new prompt:1: x"]


def test_an_empty_union_element_chooses_nothing() -> None:
    assert lines_of('a<union name="u"><module name="m">bb</module></union>', "<u/>x") == [
        "0 s: a",
        "1 new prompt:1: x",
    ]


def test_units_are_the_layout_s_and_come_after_their_contexts() -> None:
    layout = layout_of(NESTED)
    plan = build_plan(layout, prompt_of("<m><n/></m>x"))
    assert [unit.id for unit in plan.units] == ["s", "s/m", "s/m/n"]
    assert all(unit is known for unit, known in zip(plan.units, layout.units, strict=False))
    again = build_plan(layout, prompt_of("<m><n/></m>x"))
    assert [s for s in plan.segments if isinstance(s, CachedSegment)] == [
        s for s in again.segments if isinstance(s, CachedSegment)
    ]


def test_a_unit_that_only_serves_as_context_is_there_too() -> None:
    schema = 'a<module name="m">b<module name="n">c</module></module><module name="o">d</module><scaffold modules="m o"/>'
    plan = plan_of(schema, "<m><n/></m><o/>x")
    assert [unit.id for unit in plan.units] == ["s", "s/m", "s/m/n", "s:m+o"]
    assert plan_lines(plan, byte_tokenizer()) == [
        "0 s: a",
        "1 s:m+o: b",
        "2 s/m/n: c",
        "3 s:m+o: d",
        "4 new prompt:1: x",
    ]


# Parameters

MAIL = 'To <module name="m"><parameter name="p" length="5"/>, hi<parameter name="q" length="3" default="yo"/></module>!'


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('<m p="Annie" q="you"/>', ["0 s: To ", "3 new prompt:1: Annie", "8 s/m: , hi", "12 new prompt:1: you", "15 new schema:1: !"]),
        ('<m p="Ann"/>', ["0 s: To ", "3 new prompt:1: Ann", "8 s/m: , hi", "12 new schema:1: yo", "15 new schema:1: !"]),
        ('<m q=""/>', ["0 s: To ", "8 s/m: , hi", "15 new schema:1: !"]),
    ],
)  # fmt: skip
def test_arguments(prompt: str, expected: list[str]) -> None:
    assert lines_of(MAIL, prompt) == expected


def test_placeholders_are_never_reused() -> None:
    for parameter in ('<parameter name="p" length="3"/>', '<parameter name="p" length="3" scaffold="xyz"/>'):
        plan = plan_of(f'<module name="m">a{parameter}b</module>', "<m/>!")
        assert plan_lines(plan, byte_tokenizer()) == ["0 s/m: a", "4 s/m: b", "5 new prompt:1: !"]


# Scaffolds

EVIDENCE = (
    '<module name="a">aa</module><module name="b">bb</module><module name="c">cc</module>'
    '<scaffold modules="a b"/><scaffold modules="b c"/><scaffold modules="a b c"/>'
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<a/><b/><c/>x", ["0 s:a+b+c: aabbcc"]),
        ("<a/><b/>x", ["0 s:a+b: aabb"]),
        ("<c/><b/>x", ["2 s:b+c: bbcc"]),
        ("<a/><c/>x", ["0 s/a: aa", "4 s/c: cc"]),
    ],
)
def test_a_scaffold_is_used_when_all_its_modules_are_included(prompt: str, expected: list[str]) -> None:
    assert lines_of(EVIDENCE, prompt) == [
        *expected,
        "6 new prompt:1: x" if "c" in prompt else "4 new prompt:1: x",
    ]


def test_overlapping_scaffolds_never_both_apply() -> None:
    schema = EVIDENCE.replace('<scaffold modules="a b c"/>', "")
    assert lines_of(schema, "<a/><b/><c/>x") == ["0 s:a+b: aabb", "4 s/c: cc", "6 new prompt:1: x"]


STAND_IN = (
    '<module name="a">a<union name="u" scaffold="m"><module name="m">mm</module><module name="n">nnn</module></union>A'
    '</module><module name="b">b</module><scaffold modules="a b"/>'
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<a><m/></a><b/>x", ["0 s:a+b: amm", "4 s:a+b: Ab"]),
        ("<a><u><n/></u></a><b/>x", ["0 s:a+b: a", "1 s/a/n: nnn", "4 s:a+b: Ab"]),
        ("<a/><b/>x", ["0 s:a+b: a", "4 s:a+b: Ab"]),
        ("<a><m/></a>x", ["0 s/a: a", "1 s/a/m: mm", "4 s/a: A"]),
    ],
)
def test_the_member_that_stands_for_a_union(prompt: str, expected: list[str]) -> None:
    assert lines_of(STAND_IN, prompt)[:-1] == expected


def test_a_stand_in_shared_by_two_scaffolds_is_taken_from_one() -> None:
    schema = STAND_IN + '<module name="c">c</module><scaffold modules="a/m c"/>'
    lines = lines_of(schema, "<a><m/></a><b/><c/>x")
    assert lines == ["0 s:a+b: amm", "4 s:a+b: Ab", "6 s/c: c", "7 new prompt:1: x"]
    # With the other member the second scaffold could not apply, and with it alone the first does not.
    assert lines_of(schema, "<a><m/></a><c/>x")[:3] == ["0 s/a: a", "1 s:a/m+c: mm", "4 s/a: A"]


# Modules that are not cached


def test_text_that_is_not_cached_is_new_at_its_place() -> None:
    schema = dedent(
        """\
        a<module name="m" cache="false">b<module name="n">c</module>d<parameter name="p" length="2"/>
        e</module>"""
    )
    assert lines_of(schema, '<m p="x"><n/></m>') == [
        "0 s: a",
        "1 new schema:1: b",
        "2 s/m/n: c",
        "3 new schema:1: d",
        "4 new prompt:1: x",
        "6 new schema:2: \ne",
    ]


# New text

GAPS = 'AA<module name="a">aaa</module><module name="z">zzzz</module><module name="b">bbb</module>ZZ'


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # Between two modules: where the first one ends, up to the next included thing.
        ("<a/>xy<b/>", ["0 s: AA", "2 s/a: aaa", "5 new prompt:1: xy", "9 s/b: bbb", "12 s: Z", "13 new schema:1: Z"]),
        ("<a/>wxyz<b/>", ["0 s: AA", "2 s/a: aaa", "5 new prompt:1: wxyz", "9 s/b: bbb", "12 s: Z", "13 new schema:1: Z"]),
        # Before the first: where what stands before it ends.
        ("xy<b/>", ["0 s: AA", "2 new prompt:1: xy", "9 s/b: bbb", "12 s: Z", "13 new schema:1: Z"]),
        # After the last: where everything ends, the schema's own text counted.
        ("<a/>xy", ["0 s: AA", "2 s/a: aaa", "12 s: ZZ", "14 new prompt:1: xy"]),
        # Also where the last in the document is not the last by position.
        ("<b/><a/>xy", ["0 s: AA", "2 s/a: aaa", "9 s/b: bbb", "12 s: ZZ", "14 new prompt:1: xy"]),
        # After the first one, wherever the second one stands.
        ("<z/><b/>", ["0 s: AA", "5 s/z: zzzz", "9 s/b: bbb", "12 s: Z", "13 new schema:1: Z"]),
    ],
)  # fmt: skip
def test_where_new_text_goes(prompt: str, expected: list[str]) -> None:
    assert lines_of(GAPS, prompt) == expected


def test_each_run_of_new_text_is_a_segment_of_its_own() -> None:
    plan = plan_of("A", "one<!-- - -->two<user>three</user>four", CHAT)
    assert plan_lines(plan, CHAT) == [
        "0 s: A",
        "1 new prompt:1: onetwo",
        "7 new prompt:1: <|im_start|>user\n",
        "24 new prompt:1: three",
        "29 new prompt:1: <|im_end|>\n",
        "40 new prompt:1: four",
    ]


BOX = 'A<module name="m">B<module name="n">nnnn</module>C<module name="o">oo</module>D</module><module name="e">eee</module>E'


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # First in a module, before a nested one: after the module's text that stands before that.
        ("<m>xy<o/></m><e/>", None),
        ("<m><n/><o/></m>", ["0 s: A", "1 s/m: B", "2 s/m/n: nnnn", "6 s/m: C", "7 s/m/o: oo", "9 s/m: D", "13 new schema:1: E"]),
        # Inside the last module of all: at the end of everything.
        ("<e/><m>xy</m>", ["0 s: A", "1 s/m: B", "6 s/m: C", "9 s/m: D", "10 s/e: eee", "13 s: E", "14 new prompt:1: xy"]),
    ],
)  # fmt: skip
def test_new_text_inside_a_module(prompt: str, expected: list[str] | None) -> None:
    if expected is None:
        assert errors_of(BOX, prompt) == [
            "23: prompt/m: the text has 2 tokens; 0 fit before the text of 's/m/o'"
        ]
    else:
        assert lines_of(BOX, prompt) == expected


def test_new_text_inside_a_module_before_a_nested_one() -> None:
    schema = 'A<module name="m">B<module name="n">nnnn</module><module name="o">oo</module></module>'
    assert lines_of(schema, "<m>xy<o/></m>z") == [
        "0 s: A",
        "1 s/m: B",
        "2 new prompt:1: xy",
        "6 s/m/o: oo",
        "8 new prompt:1: z",
    ]


def test_new_text_after_everything_in_a_module_with_more_to_come() -> None:
    schema = '<module name="m">B<module name="n">nnnn</module></module><module name="e">eee</module>'
    assert lines_of(schema, "<m>xy</m>zw<e/>!") == [
        "0 s/m: B",
        "1 new prompt:1: xy",
        "3 new prompt:1: zw",
        "5 s/e: eee",
        "8 new prompt:1: !",
    ]


def test_new_text_goes_where_a_short_argument_ends() -> None:
    schema = '<module name="m">a<parameter name="p" length="9"/></module><module name="e">e</module>'
    assert lines_of(schema, '<m p="xy"/>zw<e/>!') == [
        "0 s/m: a",
        "1 new prompt:1: xy",
        "3 new prompt:1: zw",
        "10 s/e: e",
        "11 new prompt:1: !",
    ]


def test_new_text_passes_what_is_not_included() -> None:
    schema = '<module name="a">a</module><module name="b">bb<module name="c">cc</module></module><module name="d">d</module>'
    assert lines_of(schema, "<a/>wxyz<d/>!") == [
        "0 s/a: a",
        "1 new prompt:1: wxyz",
        "5 s/d: d",
        "6 new prompt:1: !",
    ]


def test_new_text_around_empty_modules_does_not_collide() -> None:
    schema = '<module name="a">a</module><module name="z">zzzzz</module><module name="e"/><module name="f">fffff</module><module name="g">g</module>'
    assert lines_of(schema, "<a/>12345678<e/>90<g/>!") == [
        "0 s/a: a",
        "1 new prompt:1: 12345678",
        "9 new prompt:1: 90",
        "11 s/g: g",
        "12 new prompt:1: !",
    ]


def test_a_prompt_without_anything_cached() -> None:
    assert lines_of('<module name="m">aaa</module>', "xy") == ["0 new prompt:1: xy"]


# Roles


def test_messages_have_the_template_s_words() -> None:
    plan = plan_of("A<user>q</user>", "<assistant>a</assistant><user>b</user>", CHAT)
    assert plan_text(plan, CHAT) == (
        "A<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
    )


@pytest.mark.parametrize(("prompt", "first"), [("<m/>", "[INST] "), ("<m/><n/>", "")])
def test_messages_go_on_where_the_included_roles_end(prompt: str, first: str) -> None:
    tokenizer = byte_tokenizer(bos="<s>", adds_bos=True, chat_template=INST)
    schema = '<module name="m">m</module><module name="n"><system>S</system></module>'
    plan = plan_of(schema, prompt + "<user>U</user>", tokenizer)
    assert plan_text(plan, tokenizer).endswith(first + "U [/INST]")


def test_an_empty_message_is_its_words() -> None:
    assert plan_text(plan_of("", "<user/>", CHAT), CHAT) == "<|im_start|>user\n<|im_end|>\n"


# The end


def test_a_last_cached_token_is_computed_anew() -> None:
    plan = plan_of('A<module name="m">bcd</module>', "<m/>")
    _, shortened, new = plan.segments
    assert isinstance(shortened, CachedSegment)
    assert isinstance(new, NewSegment)
    assert (shortened.start, shortened.end) == (0, 2)
    assert plan_lines(plan, byte_tokenizer()) == ["0 s: A", "1 s/m: bc", "3 new schema:1: d"]
    assert (plan.num_cached_tokens, plan.num_new_tokens, plan.next_position) == (3, 1, 4)


def test_a_unit_of_one_token_vanishes_when_it_is_computed_anew() -> None:
    plan = plan_of('<module name="a">a</module><module name="b">b</module>', "<a/><b/>")
    assert plan_lines(plan, byte_tokenizer()) == ["0 s/a: a", "1 new schema:1: b"]
    assert [unit.id for unit in plan.units] == ["s/a"]


def test_a_prompt_whose_only_new_tokens_stand_in_the_middle() -> None:
    assert lines_of(MAIL, '<m p="Ann"/>')[-1] == "15 new schema:1: !"


def test_the_tail_comes_after_everything() -> None:
    tokenizer = byte_tokenizer()
    tail = [(tokenizer.encode("mno"), "messages"), ([], "nothing"), (tokenizer.encode("p"), "generation")]
    plan = plan_of(GAPS, "<a/>xy", tail=tail)
    assert plan_lines(plan, tokenizer)[-3:] == [
        "14 new prompt:1: xy",
        "16 new messages: mno",
        "19 new generation: p",
    ]
    plan = plan_of(GAPS, "<a/>", tail=tail)
    assert plan_lines(plan, tokenizer)[-3:] == ["12 s: ZZ", "14 new messages: mno", "17 new generation: p"]
    assert np.array_equal(plan.segments[-1].position_ids, [17])  # type: ignore[union-attr]


# What is refused

ERRORS = {
    "<mm/>": ["20: prompt/mm: unknown module 'mm'; did you mean 'm'?"],
    "<m r='x'><zz/></m>": ["29: prompt/m/zz: unknown module 'zz'"],
    "<n/>": [
        "20: prompt/n: unknown module 'n'; it is in 'm': put it there, or write <use module=\"m/n\"/> directly in"
        " the prompt"
    ],
    '<m q="x" pp="y"/>': [
        "20: prompt/m: parameter 'r' of module 'm' is required",
        "23: prompt/m/@q: unknown parameter 'q'",
        "29: prompt/m/@pp: unknown parameter 'pp'; did you mean 'p'?",
    ],
    '<m r="k" p="abcd"/>': ["29: prompt/m/@p: the argument for parameter 'p' has 4 tokens; 3 fit"],
    '<m r=""/><m r="x"/>': [
        "20: prompt/m: parameter 'r' of module 'm' is required",
        "29: prompt/m: module 'm' is included twice",
    ],
    '<m r=" "/>': ["20: prompt/m: parameter 'r' of module 'm' is required"],
    '<m r="k"/><m r="k"/>': ["30: prompt/m: module 'm' is included twice"],
    "<a/><b/>": ["24: prompt/b: 'b' and 'a' are members of one union: choose one"],
    "<u><a/></u><b/>": ["31: prompt/b: 'b' and 'a' are members of one union: choose one"],
    "<u><a/><b/></u>": ["27: prompt/u/b: 'b' and 'a' are members of one union: choose one"],
    "<u><c/></u>": ["23: prompt/u/c: unknown member 'c'"],
    "<u><m/></u>": [
        "23: prompt/u/m: unknown module 'm'; it is directly in the schema: put it directly in the prompt"
    ],
    "<u>text</u>": ["23: prompt/u: text cannot stand in the element of union 'u'"],
    '<u x="1"><a/></u>': ["23: prompt/u/@x: a union has no parameters, so 'x' means nothing here"],
    '<m r="k"/>12345<a/>': ["30: prompt: the text has 5 tokens; 0 fit before the text of 's/a'"],
    "1234567<a/>": ["20: prompt: the text has 7 tokens; 6 fit before the text of 's/a'"],
    "<user>x</user>": ["20: prompt/user: the model has no chat template, so there are no roles"],
    '<m p="abcd"/><zz/><a/><a/>': [
        "20: prompt/m: parameter 'r' of module 'm' is required",
        "23: prompt/m/@p: the argument for parameter 'p' has 4 tokens; 3 fit",
        "33: prompt/zz: unknown module 'zz'",
        "42: prompt/a: module 'a' is included twice",
    ],
}

REFUSING = (
    '<module name="m">m<parameter name="p" length="3"/><module name="n">n</module>'
    '<param name="r" len="1" required="true"/></module>'
    '<union name="u"><module name="a">a</module><module name="b">b</module></union>'
)


@pytest.mark.parametrize("prompt", ERRORS)
def test_mistakes_in_prompts(prompt: str) -> None:
    assert errors_of(REFUSING, prompt) == ERRORS[prompt]


def test_text_that_does_not_fit_says_how_many_tokens_do() -> None:
    assert errors_of(GAPS, "<a/>vwxyz<b/>") == [
        "24: prompt: the text has 5 tokens; 4 fit before the text of 's/b'"
    ]
    assert errors_of(GAPS, "x<a/>") == ["20: prompt: the text has 1 tokens; 0 fit before the text of 's/a'"]
    assert errors_of('<module name="a">a</module>B<module name="c">c</module>', "<a/>x<c/>") == [
        "24: prompt: the text has 1 tokens; 0 fit before the text of 's'"
    ]
    assert errors_of(
        '<module name="a">a</module><module name="b"><param name="p" len="2"/></module>', '<a/>x<b p="y"/>'
    ) == ["24: prompt: the text has 1 tokens; 0 fit before what is included next"]


def test_a_prompt_must_leave_the_model_a_position() -> None:
    assert build_plan(layout_of("A" * 80, max_model_len=100), prompt_of("x" * 19)).next_position == 99
    assert errors_of("A" * 80, "x" * 20, max_model_len=100) == [
        "1: prompt: the prompt ends at position 100; the model has 100 positions and needs one to generate at"
    ]


def test_an_empty_prompt() -> None:
    assert errors_of('<module name="m">a</module>', "") == [
        "1: prompt: the prompt is empty: nothing that it includes has a token"
    ]
    assert errors_of('<module name="m"/>', "<m/>") == [
        "1: prompt: the prompt is empty: nothing that it includes has a token"
    ]
