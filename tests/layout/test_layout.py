"""Schemas to tokens and positions. One byte is one token, so positions can be counted in the text."""

# ruff: noqa: E501 (documents are read in lines)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.byte_tokenizer import CHATML, HEADERS, INST, byte_tokenizer
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import Tokenizer
from vllm_promptcache.layout.schema import SchemaLayout, find_layout
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.parser import parse_document


def layout_of(
    content: str, tokenizer: Tokenizer | None = None, attributes: str = "", **options: Any
) -> SchemaLayout:
    (schema,) = parse_document(f'<schema name="s"{attributes}>{content}</schema>').schemas
    return build_layout(schema, tokenizer or byte_tokenizer(), **{"max_model_len": 4096, **options})


def spans(layout: SchemaLayout) -> list[tuple[str, int, int]]:
    return [(module.path, module.start, module.end) for module in layout.modules]


def text_of(unit: Unit, tokenizer: Tokenizer | None = None) -> str:
    """Kept tokens, with `|` where positions jump or placeholders stand, and `_` for a placeholder."""
    shown = ""
    for i, (token, kept) in enumerate(zip(unit.token_ids, unit.kept, strict=True)):
        if i and unit.position_ids[i] != unit.position_ids[i - 1] + 1:
            shown += "|"
        text = (tokenizer or byte_tokenizer()).decode([token])  # type: ignore[attr-defined]
        shown += text if kept else "_" if text == "<unk>" else f"[{text}]"
    return shown


def errors_of(content: str, tokenizer: Tokenizer | None = None, **options: Any) -> list[str]:
    with pytest.raises(PMLError) as caught:
        layout_of(content, tokenizer, **options)
    return [f"{issue.path}: {issue.what}" for issue in caught.value.issues]


# Positions


def test_depth_first_in_document_order() -> None:
    layout = layout_of('abc<module name="m">de<module name="n">f</module>gh</module>i')
    assert spans(layout) == [("s", 0, 9), ("s/m", 3, 8), ("s/m/n", 5, 6)]
    assert layout.num_positions == 9
    assert [(unit.id, text_of(unit)) for unit in layout.units] == [
        ("s", "abc|i"),
        ("s/m", "de|gh"),
        ("s/m/n", "f"),
    ]
    assert layout.units[1].position_ids.tolist() == [3, 4, 6, 7]


def test_a_union_is_as_long_as_its_longest_member() -> None:
    layout = layout_of('a<union name="u"><module name="m">bb</module><module name="n">cccc</module></union>d')
    assert spans(layout) == [("s", 0, 6), ("s/m", 1, 3), ("s/n", 1, 5)]
    assert layout.units[0].position_ids.tolist() == [0, 5]
    union = layout.root.unions["u"]
    assert (union.start, union.end, list(union.members)) == (1, 5, ["m", "n"])
    assert layout.root.children["m"].union is union


def test_an_empty_union_takes_no_position() -> None:
    assert layout_of("a<union/>b").num_positions == 2


def test_a_parameter_takes_its_length() -> None:
    layout = layout_of('<module name="m">a<parameter name="p" length="3" scaffold="x"/>b</module>')
    assert spans(layout) == [("s", 0, 5), ("s/m", 0, 5)]
    (unit,) = layout.units
    assert text_of(unit) == "a[x]__b"
    assert unit.position_ids.tolist() == [0, 1, 2, 3, 4]
    assert unit.kept.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("attribute", ['placeholder="none"', ""])
def test_without_unknown_tokens_the_room_holds_the_scaffold_text_alone(attribute: str) -> None:
    tokenizer = byte_tokenizer() if attribute else byte_tokenizer(unk=None)
    parameter = f'<parameter name="p" length="3" scaffold="x" {attribute}/>'
    (unit,) = layout_of(f'<module name="m">a{parameter}b</module>', tokenizer).units
    assert text_of(unit) == "a[x]|b"
    assert unit.position_ids.tolist() == [0, 1, 4]


def test_unknown_tokens_can_be_asked_for_only_where_there_is_one() -> None:
    parameter = '<parameter name="p" length="3" placeholder="unk"/>'
    assert errors_of(f'<module name="m">{parameter}</module>', byte_tokenizer(unk=None)) == [
        "schema[s]/module[m]/parameter[p]/@placeholder: the model's tokenizer has no unknown-token of its own:"
        ' use placeholder="none"'
    ]


def test_arrays_cannot_be_changed() -> None:
    (unit,) = layout_of("abc").units
    with pytest.raises(ValueError, match="read-only"):
        unit.token_ids[0] = 1


# Units and contexts


def test_contexts_are_the_enclosing_units_outermost_first() -> None:
    content = 'a<module name="m">b<module name="n">c<module name="o">d</module></module></module>'
    layout = layout_of(content)
    assert {unit.id: [seen.id for seen in unit.context] for unit in layout.units} == {
        "s": [],
        "s/m": ["s"],
        "s/m/n": ["s", "s/m"],
        "s/m/n/o": ["s", "s/m", "s/m/n"],
    }
    assert layout.units[3].context[2] is layout.units[2]
    isolated = layout_of(content, attributes=' encode="isolated"')
    assert [unit.context for unit in isolated.units] == [(), (), (), ()]


def contexts_of(layout: SchemaLayout) -> dict[str, list[str]]:
    return {
        unit.id.removeprefix("s/"): [seen.id.removeprefix("s/") for seen in unit.context]
        for unit in layout.units
    }


def test_in_sequence_modules_see_all_that_stands_before_them() -> None:
    layout = layout_of(
        'r<module name="a">a<module name="b">b</module>a</module>r'
        '<module name="c" cache="false">c<module name="d">d</module></module><module name="e">e</module>',
        attributes=' encode="sequence"',
    )
    assert contexts_of(layout) == {
        "s": [],
        "a": ["s"],
        "a/b": ["s", "a"],
        "c/d": ["s", "a", "a/b"],
        "e": ["s", "a", "a/b", "c/d"],
    }


def test_in_sequence_members_of_a_union_do_not_see_each_other() -> None:
    union = (
        '<union{}><module name="b">b</module><module name="c">c<module name="d">d</module></module></union>'
    )
    content = f'<module name="a">a</module>{union}<module name="e">e</module>'
    plain = contexts_of(layout_of(content.format(""), attributes=' encode="sequence"'))
    assert plain == {"a": [], "b": ["a"], "c": ["a"], "c/d": ["a", "c"], "e": ["a"]}
    stands = contexts_of(layout_of(content.format(' scaffold="c"'), attributes=' encode="sequence"'))
    assert stands == {**plain, "e": ["a", "c", "c/d"]}


@pytest.mark.parametrize("encode", ["sequence", "context"])
def test_units_that_others_see_are_limited(encode: str) -> None:
    text = "m" * 16
    content = "".join(f'<module name="m{i}">{text}</module>' for i in range(5))
    if encode == "context":
        content = text + "".join(f'<module name="m{i}">{text}' for i in range(4)) + "</module>" * 4
    given = f' encode="{encode}"'
    layout_of(content, attributes=given, limits=Limits(max_contexts=10))
    with pytest.raises(PMLError, match=r"pml:1:1: schema\[s\]: its modules see others more than 9 times"):
        layout_of(content, attributes=given, limits=Limits(max_contexts=9))


def test_what_a_schema_of_many_modules_in_sequence_costs_is_bounded() -> None:
    content = "".join(f'<module name="m{i}">m</module>' for i in range(4000))
    with pytest.raises(PMLError, match="make them fewer"):
        layout_of(content, attributes=' encode="sequence"', max_model_len=8192)


@pytest.mark.parametrize(
    ("text", "num_modules", "fits"),
    [
        ("m", 720, True),
        ("m", 1448, True),
        ("m", 1449, False),
        ("m" * 15, 300, True),
        ("m" * 16, 256, True),
        ("m" * 16, 257, False),
    ],
)
def test_small_modules_in_sequence(text: str, num_modules: int, fits: bool) -> None:
    """Those that may be computed together count once each; others as often as they see others."""
    content = "".join(f'<module name="m{i}">{text}</module>' for i in range(num_modules))
    if not fits:
        with pytest.raises(PMLError, match="make them fewer"):
            layout_of(content, attributes=' encode="sequence"', max_model_len=8192)
        return
    units = layout_of(content, attributes=' encode="sequence"', max_model_len=8192).units
    assert len(units) == num_modules
    assert sum(len(unit.context) for unit in units) == num_modules * (num_modules - 1) // 2
    assert sum(len(unit.seen) for unit in units) == num_modules - 1


def test_small_modules_that_cannot_be_computed_together_count_each_other() -> None:
    """Members of a union do not see each other, and behind a placeholder more would be seen."""
    before = "".join(f'<module name="m{i}">m</module>' for i in range(200))
    members = "".join(f'<module name="u{i}">u</module>' for i in range(200))
    parameters = "".join(
        f'<module name="m{i}">m<parameter name="p" length="2"/></module>' for i in range(300)
    )
    for content in (f"{before}<union>{members}</union>", parameters):
        with pytest.raises(PMLError, match="make them fewer"):
            layout_of(content, attributes=' encode="sequence"', max_model_len=8192)


def test_placeholders_are_limited() -> None:
    """Members of a union share positions, so that a model's length holds any number of them."""
    members = "".join(
        f'<module name="m{i}">m<parameter name="p" length="100" scaffold="x"/></module>' for i in range(4)
    )
    content = f"<union>{members}</union>"
    assert layout_of(content, limits=Limits(max_placeholders=4 * 99)).num_placeholders == 4 * 100
    assert errors_of(content, limits=Limits(max_placeholders=4 * 99 - 1)) == [
        'schema[s]/union/module[m3]/parameter[p]: more than 395 placeholders: use placeholder="none"'
    ]
    layout_of(content, byte_tokenizer(unk=None), limits=Limits(max_placeholders=0))


def test_only_cached_text_is_context() -> None:
    layout = layout_of('<module name="m" cache="false">b<module name="n">c</module></module>')
    assert [(unit.id, unit.context) for unit in layout.units] == [("s/m/n", ())]
    assert [module.num_tokens for module in layout.modules] == [0, 1, 1]
    assert [module.cache for module in layout.modules] == [True, False, True]


def test_a_module_without_reusable_text_has_no_unit() -> None:
    layout = layout_of(
        '<module name="empty"/><module name="room"><parameter name="p" length="4"/></module>'
        '<module name="m">x</module>'
    )
    assert [unit.id for unit in layout.units] == ["s/m"]


def test_pieces_are_maximal_runs_of_kept_tokens() -> None:
    layout = layout_of('<module name="m">ab<module name="n">x</module>cd<param name="p" len="2"/>e</module>')
    module = layout.root.children["m"]
    assert [(piece.start, piece.end) for piece in module.pieces] == [(0, 2), (3, 5), (7, 8)]
    assert module.own_end == 8


# BOS and roles


def test_bos_comes_first_once() -> None:
    tokenizer = byte_tokenizer(bos="<s>", adds_bos=True)
    bos = tokenizer.bos_token_id
    layout = layout_of('ab<module name="m">c</module>', tokenizer)
    assert layout.units[0].token_ids.tolist()[0] == bos
    assert layout.units[0].position_ids.tolist() == [0, 1, 2]
    assert spans(layout) == [("s", 0, 4), ("s/m", 3, 4)]
    # Also where the schema has no text, and not where the text begins with it.
    assert layout_of('<module name="m">c</module>', tokenizer).units[0].token_ids.tolist() == [bos]
    written = layout_of("&lt;s&gt;ab", tokenizer).units[0].token_ids.tolist()
    assert written.count(bos) == 1
    assert len(written) == 3


def test_bos_of_a_template_that_writes_it() -> None:
    tokenizer = byte_tokenizer(bos="<s>", chat_template=HEADERS)
    (unit,) = layout_of("<system>x</system>", tokenizer).units
    assert text_of(unit, tokenizer) == "<s><|head|>system<|tail|>\n\nx<|eot|>"
    (unit,) = layout_of("no role", tokenizer).units
    assert text_of(unit, tokenizer) == "no role"
    adding = byte_tokenizer(bos="<s>", adds_bos=True, chat_template=HEADERS)
    (unit,) = layout_of("<system>x</system>", adding).units
    assert text_of(unit, adding) == "<s><|head|>system<|tail|>\n\nx<|eot|>"


def test_roles_are_text_of_the_element_they_stand_in() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    layout = layout_of(
        '<system>a<module name="m">b</module></system><module name="n"><user>c</user></module>', tokenizer
    )
    assert [(unit.id, text_of(unit)) for unit in layout.units] == [
        ("s", "<|im_start|>system\na|<|im_end|>\n"),
        ("s/m", "b"),
        ("s/n", "<|im_start|>user\nc<|im_end|>\n"),
    ]
    assert [module.roles for module in layout.modules] == [((0, "system"),), (), ((32, "user"),)]


def test_folded_system_messages_give_the_template_s_text() -> None:
    tokenizer = byte_tokenizer(bos="<s>", adds_bos=True, chat_template=INST)
    (unit,) = layout_of(
        "<system>S</system><user>U</user><assistant>A</assistant><user>V</user>", tokenizer
    ).units
    messages = [
        {"role": role, "content": content}
        for role, content in (("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"))
    ]
    assert tokenizer.decode(unit.token_ids) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_role_needs_a_chat_template() -> None:
    assert errors_of("<user>x</user>") == [
        "schema[s]/user: the model has no chat template, so there are no roles"
    ]


# What is refused


def test_a_schema_must_leave_room() -> None:
    assert layout_of("x" * 84, max_model_len=100).num_positions == 84
    assert errors_of("x" * 85, max_model_len=100) == [
        "schema[s]: the schema takes 85 positions; with 16 to be left free that is more than the model's 100"
    ]
    assert layout_of("x" * 99, max_model_len=100, min_free_tokens=1).num_positions == 99


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("<union>{}</union>", "union/module[large]"),
        ("<module name='out'>b<union>{}</union></module>", "module[out]/union/module[large]"),
        ("{}", "module[large]"),
    ],
)
def test_a_module_that_does_not_fit_alone_is_named(content: str, place: str) -> None:
    members = f"<module name='small'>x</module><module name='large'>{'y' * 90}</module>"
    (error,) = errors_of(content.format(members), max_model_len=100)
    assert error.startswith(f"schema[s]/{place}: the schema takes 9")
    assert error.endswith("more than the model's 100; 'large' alone takes 90")


def test_a_member_that_does_not_fit_its_pool_is_named() -> None:
    (error,) = errors_of(f"<pool name='p' length='40'><module name='large'>{'y' * 90}</module></pool>")
    assert error == "schema[s]/pool[p]/module[large]: 'large' takes 90 positions; the pool 'p' has 40"


def test_a_huge_parameter_is_refused_without_being_made() -> None:
    (error,) = errors_of('<module name="m">a<parameter name="p" length="999999999"/></module>')
    assert "takes 1000000000 positions" in error


def test_texts_of_parameters_must_fit() -> None:
    content = '<module name="m"><param name="p" len="2" scaffold="xyz" default="abcd"/></module>'
    assert errors_of(content) == [
        "schema[s]/module[m]/param[p]/@scaffold: the scaffold text of parameter 'p' has 3 tokens; 2 fit",
        "schema[s]/module[m]/param[p]/@default: the default text of parameter 'p' has 4 tokens; 2 fit",
    ]


# Digests


def test_a_digest_stands_for_everything_that_a_prompt_depends_on() -> None:
    base = 'a<module name="m">b<parameter name="p" length="2"/></module><module name="n" cache="false">c</module>'
    variants = [
        base,
        base.replace(">b<", ">x<"),
        base.replace(">c<", ">x<"),
        base.replace('name="m"', 'name="x"'),
        base.replace('length="2"', 'length="3"'),
        base.replace('length="2"', 'length="2" default="x"'),
        base.replace('length="2"', 'length="2" required="true"'),
        base.replace('length="2"', 'length="2" scaffold="x"'),
        base.replace('cache="false"', 'cache="true"'),
        base + '<scaffold modules="m"/>',
    ]
    digests = [layout_of(content).digest for content in variants]
    digests.append(layout_of(base, attributes=' encode="isolated"').digest)
    assert len(set(digests)) == len(digests)
    assert layout_of(base).digest == digests[0]
    assert len(digests[0]) == 64


def test_units_of_the_same_text_at_the_same_place_have_the_same_digest() -> None:
    one, other = (layout_of(f'a<module name="{name}">b</module>').units[1] for name in ("m", "n"))
    assert one.digest == other.digest
    assert np.array_equal(one.token_ids, other.token_ids)
    assert layout_of('x<module name="m">b</module>').units[1].digest != one.digest


# Looking up


def test_an_unknown_schema_has_a_status_of_its_own() -> None:
    layouts = {"travel": layout_of("x")}
    prompt = parse_document("<prompt schema='travle'/>").prompt
    assert prompt is not None
    with pytest.raises(PMLError) as caught:
        find_layout(prompt, layouts)
    assert str(caught.value) == "pml:1:9: prompt/@schema: unknown schema 'travle'; did you mean 'travel'?"
    assert caught.value.status == 404
