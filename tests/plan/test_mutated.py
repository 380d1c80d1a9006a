"""Damaged documents: whatever is wrong, it is a PMLError, and whatever is accepted makes a sound plan."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.byte_tokenizer import CHATML, byte_tokenizer
from tests.cases import CASES
from tests.plan.test_invariants import check_plan, check_tokens
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import parse_document

TOKENIZER = byte_tokenizer(chat_template=CHATML)
ENCODER = TextEncoder(TOKENIZER)
# Without the long ones: a damaged document is as telling when it is short.
TEXTS = [case.texts(TOKENIZER) for case in CASES if "000 tokens" not in case.schema]

SNIPPETS = st.sampled_from(
    ["<", ">", '"', "&", "/", "<a>", "</a>", "<user>", "</user>", " ", "x", "<union>", "\x00", "\ud800", "1"]
)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A document with a few pieces cut out, doubled, or put in."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(start + 20, len(text))))
        middle = draw(st.sampled_from(["", text[start:end] * 2])) if draw(st.booleans()) else draw(SNIPPETS)
        text = text[:start] + middle + text[end:]
    return text


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    schema, prompt = draw(st.sampled_from(TEXTS))
    if draw(st.booleans()):
        # Another prompt over the same schema, mostly of unknown names.
        prompt = draw(st.sampled_from(TEXTS))[1]
    return draw(damaged(schema)), draw(damaged(prompt))


def check_error(error: PMLError) -> None:
    assert error.issues
    assert all(issue.line >= 1 and issue.column >= 1 and issue.path for issue in error.issues)


@settings(deadline=None, max_examples=150)
@given(pairs())
@example(("<schema name='s'/>", "<prompt schema='s'>x</prompt>"))
def test_what_is_not_refused_is_sound(pair: tuple[str, str]) -> None:
    try:
        schemas = parse_document(pair[0]).schemas
        prompt = parse_document(pair[1]).prompt
        if len(schemas) != 1 or prompt is None:
            return
        layout = build_layout(schemas[0], ENCODER, 8192)
        plan = build_plan(layout, prompt)
    except PMLError as error:
        check_error(error)
        return
    check_plan(layout, plan)
    check_tokens(schemas[0], prompt, plan, ENCODER)


@settings(deadline=None)
@given(st.one_of(st.text(), st.binary()))
def test_anything_else_is_refused(document: str | bytes) -> None:
    try:
        parse_document(document)
    except PMLError:
        return
    raise AssertionError("no document of so few characters says anything")
