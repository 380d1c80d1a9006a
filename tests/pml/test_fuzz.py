"""Whatever arrives as a document is parsed or refused with a PMLError, and nothing else ever happens."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.byte_tokenizer import CHATML, byte_tokenizer, plan_text
from vllm_promptcache.errors import PMLError, PMLIssue
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.escape import NOT_IN_XML, text
from vllm_promptcache.pml.json_form import read_schema_form
from vllm_promptcache.pml.nodes import Document
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.pml.separators import SEPARATOR_KINDS
from vllm_promptcache.pml.space import SPACE_KINDS

ENCODER = TextEncoder(byte_tokenizer(chat_template=CHATML))
TEXTS = st.text("ab <&>\"'\n\t\r\x00\x0c\uffff]é资", max_size=6)
NAMES = st.sampled_from(["a", "b", "a b", "a/b", "资料", "user", "x" * 128, "x" * 129, "", "space"])
SPACES = st.sampled_from(["", *(f' space="{kind}"' for kind in SPACE_KINDS), ' space="x"'])
SEPARATORS = st.sampled_from(["", *(f' separator="{kind}"' for kind in SEPARATOR_KINDS)])
TAGS = st.sampled_from(
    [
        *("module", "union", "parameter", "param", "pool", "scaffold", "system", "user", "assistant", "use"),
        *("argument", "a", "b", "资料", "schema", "prompt", "pml", "tools"),
    ]
)
ATTRIBUTES = st.sampled_from(
    [
        *("length", "len", "default", "required", "cache", "scaffold", "modules", "module", "placeholder"),
        *("encode", "src", "schema", "p", "é"),
    ]
)
VALUES = st.sampled_from(["1", "3", "0", "true", "false", "a", "b", "a b", "a/b", "none", "sequence", "资料"])


def written(value: str) -> str:
    return text(NOT_IN_XML.sub("", value))


def element(inside: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    attributes = st.dictionaries(ATTRIBUTES, VALUES, max_size=2)

    def write(tag: str, name: str, given: dict[str, str], layout: str, content: list[str]) -> str:
        named = "".join(f' {key}="{written(value)}"' for key, value in {"name": name, **given}.items())
        return f"<{tag}{named}{layout}>{''.join(content)}</{tag}>"

    layouts = st.tuples(SPACES, SEPARATORS).map("".join)
    return st.builds(write, TAGS, NAMES, attributes, layouts, st.lists(inside, max_size=4))


CONTENT = st.recursive(
    st.one_of(TEXTS.map(written), st.sampled_from(["<!-- x -->", "<![CDATA[ < ]]>", "\n  ", " ", "<a/>"])),
    element,
    max_leaves=12,
)
SCHEMAS = st.lists(CONTENT, max_size=4).map(lambda parts: f'<schema name="s">{"".join(parts)}</schema>')
PROMPTS = st.lists(CONTENT, max_size=4).map(lambda parts: f'<prompt schema="s">{"".join(parts)}</prompt>')


def parsed(document: str | bytes) -> Document | None:
    issues: tuple[PMLIssue, ...] = ()
    found = None
    try:
        found = parse_document(document)
    except PMLError as error:
        issues = error.issues
    assert (found is None) == bool(issues)
    assert all(issue.line >= 1 and issue.column >= 1 and len(str(issue)) < 10_000 for issue in issues)
    return found


@given(SCHEMAS, PROMPTS)
@settings(max_examples=80, deadline=None)
def test_documents_of_all_sorts_plan_or_are_refused(schema: str, prompt: str) -> None:
    one, other = parsed(schema), parsed(prompt)
    if one is None or other is None or other.prompt is None:
        return
    with contextlib.suppress(PMLError):
        layout = build_layout(one.schemas[0], ENCODER, 512)
        plan_text(build_plan(layout, other.prompt), byte_tokenizer(chat_template=CHATML))


@given(st.one_of(SCHEMAS, PROMPTS), st.data())
@settings(max_examples=80, deadline=None)
def test_documents_that_are_cut_or_changed_are_refused_in_order(document: str, data: st.DataObject) -> None:
    raw = bytearray(document.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        change = data.draw(st.sampled_from(["cut", "byte", "insert", "drop"]))
        if change == "cut":
            del raw[place:]
        elif change == "drop":
            del raw[place : place + data.draw(st.integers(1, 9))]
        elif change == "insert":
            raw[place:place] = data.draw(
                st.sampled_from([b"<", b"&", b"]]>", b"\0", b"\xff", b"<!--", b"<a ", b'"'])
            )
        elif raw:
            raw[place] = data.draw(st.integers(0, 255))
    parsed(bytes(raw))


@given(st.one_of(st.binary(max_size=60), TEXTS, st.text("<>&/!?[]-=\"' ab;#x0", max_size=40)))
@settings(max_examples=80, deadline=None)
def test_anything_at_all_is_refused_in_order(document: str | bytes) -> None:
    parsed(document)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXTS, NAMES),
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *("name", "text", "modules", "content", "union", "pool", "role", "parameter", "length"),
                    *("scaffolds", "cache"),
                ]
            ),
            inside,
            max_size=4,
        ),
    ),
    max_leaves=15,
)


@given(JSON)
@settings(max_examples=80, deadline=None)
def test_json_of_all_sorts_is_laid_out_or_refused(value: Any) -> None:
    for form in (value, {"name": "s", "content": value}, {"name": "s", "modules": [value]}):
        with contextlib.suppress(PMLError):
            build_layout(read_schema_form(json.loads(json.dumps(form))), ENCODER, 512)
