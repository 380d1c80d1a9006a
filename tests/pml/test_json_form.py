"""Schemas in JSON: the trees of PML with the same meaning, and any text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.json_form import read_schema_form
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.nodes import ModuleNode, TextNode
from vllm_promptcache.pml.parser import parse_document

SAME: list[tuple[dict[str, Any], str]] = [
    ({"name": "s"}, '<schema name="s"/>'),
    (
        {"name": "s", "encode": "isolated", "text": "T", "modules": [{"name": "a b", "text": "A"}]},
        '<schema name="s" encode="isolated">T<module name="a b">A</module></schema>',
    ),
    (
        {
            "name": "s",
            "content": [
                {
                    "role": "system",
                    "content": ["S", {"name": "a", "cache": False, "modules": [{"name": "b"}]}],
                },
                {"union": [{"name": "c"}, {"name": "d", "text": "D"}], "name": "u", "scaffold": "d"},
                "end",
                {"pool": "p", "length": 9, "modules": [{"name": "m", "text": "M"}]},
            ],
            "scaffolds": [["a/b", "d"]],
        },
        '<schema name="s"><system>S<module name="a" cache="false"><module name="b"/></module></system>'
        '<union name="u" scaffold="d"><module name="c"/><module name="d">D</module></union>end'
        '<pool name="p" length="9"><module name="m">M</module></pool><scaffold modules="a/b d"/></schema>',
    ),
    (
        {"name": "s", "content": [{"role": "system", "content": ["S", {"tools": True}]}]},
        '<schema name="s"><system>S<tools/></system></schema>',
    ),
    (
        {"name": "s", "content": [{"tools": True, "length": 40}, "S"]},
        '<schema name="s"><tools length="40"/>S</schema>',
    ),
    (
        {
            "name": "s",
            "modules": [
                {
                    "name": "a",
                    "content": [
                        "x ",
                        {
                            "parameter": "p",
                            "length": 3,
                            "default": "d",
                            "required": True,
                            "placeholder": "none",
                        },
                        {"parameter": "q", "length": 1, "scaffold": "t"},
                    ],
                }
            ],
        },
        '<schema name="s"><module name="a">x <parameter name="p" length="3" default="d" required="true"'
        ' placeholder="none"/><parameter name="q" length="1" scaffold="t"/></module></schema>',
    ),
]


@pytest.mark.parametrize(("form", "pml"), SAME)
def test_it_says_what_pml_says(form: dict[str, Any], pml: str) -> None:
    assert read_schema_form(form) == parse_document(pml).schemas[0]


@given(st.text(min_size=1))
def test_it_takes_any_text(value: str) -> None:
    form = json.loads(json.dumps({"name": "s", "modules": [{"name": "a", "text": f"\n {value}\x00\r\n"}]}))
    (module,) = read_schema_form(form).children
    assert isinstance(module, ModuleNode)
    (node,) = module.children
    assert isinstance(node, TextNode)
    assert node.text == f"\n {value}\x00\r\n"


def deep(levels: int) -> dict[str, Any]:
    form: dict[str, Any] = {"name": "m"}
    for _ in range(levels):
        form = {"name": "m", "modules": [form]}
    return form


WRONG: list[tuple[Any, str]] = [
    ([], "body:1:1: /: the schema: Input should be"),
    ({"modules": []}, "body:1:1: /: name: Field required"),
    ({"name": "s", "pin": True}, "pin: Extra inputs are not permitted"),
    ({"name": "s", "modules": [{"text": "x"}]}, "modules.0.name: Field required"),
    ({"name": "s", "modules": [{"name": "a", "text": 3}]}, "modules.0.text: Input should be a valid string"),
    (
        {"name": "s", "modules": [{"name": ""}]},
        "schema[s]/module[]: a name needs a character that can be seen",
    ),
    ({"name": "s", "modules": [{"name": "a"}, {"name": "a"}]}, "the name 'a' is taken by another module"),
    ({"name": "s", "text": "x", "content": []}, "'content' stands for 'text' and 'modules'"),
    ({"name": "s", "content": [{"parameter": "p", "length": 2}]}, "cannot stand directly under 'schema'"),
    ({"name": "s", "content": [{"role": "user", "modules": [{"role": "user"}]}]}, "roles do not nest"),
    ({"name": "s", "scaffolds": [["a"]]}, "schema[s]/scaffold/@modules: unknown module 'a'"),
    (
        {"name": "s", "content": [{"pool": "p", "modules": [{"name": "a", "modules": [{"name": "b"}]}]}]},
        "only",
    ),
    ({"name": "s/t"}, "of a schema has a '/'"),
    ({"name": "s", "content": [{"tools": True}, {"tools": True}]}, "a schema has one place for tools"),
    ({"name": "s", "content": [{"tools": False}]}, "content.0.tools: Input should be True"),
    (
        {
            "name": "s",
            "modules": [{"name": "a", "content": [{"role": "user", "content": [{"tools": True}]}]}],
        },
        "schema[s]/module[a]/user/tools: 'tools' cannot stand in 'module'",
    ),
    (
        {"name": "s", "modules": [{"name": "a", "text": "x\ud800"}]},
        "U+D800 LONE SURROGATE at index 1, which is no text",
    ),
    (deep(70), "more than 64 levels of elements"),
]


@pytest.mark.parametrize(("form", "message"), WRONG)
def test_mistakes_are_named(form: Any, message: str) -> None:
    with pytest.raises(PMLError) as caught:
        read_schema_form(form)
    assert message in str(caught.value)


def test_limits_hold() -> None:
    form = {"name": "s", "modules": [{"name": f"m{i}"} for i in range(4)]}
    with pytest.raises(PMLError, match="more than 3 modules"):
        read_schema_form(form, limits=Limits(max_modules=3))
    large = {"name": "s", "modules": [{"name": "a", "text": "x" * 9}, {"name": "b", "text": "é"}]}
    assert read_schema_form(large, limits=Limits(max_document_bytes=11)).name == "s"
    with pytest.raises(PMLError, match="larger than the 10 bytes") as caught:
        read_schema_form(large, limits=Limits(max_document_bytes=10))
    assert caught.value.status == 413


def test_a_list_of_mistakes_is_one() -> None:
    with pytest.raises(PMLError) as caught:
        read_schema_form({"name": "s", "modules": [1] * 100_000, "scaffolds": [1] * 100_000})
    assert len(caught.value.issues) == 2
