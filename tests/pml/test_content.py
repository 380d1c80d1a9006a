"""Text as it is pasted: what of a document's white space is text, and what goes with a module."""

from __future__ import annotations

import itertools

import pytest

from tests.byte_tokenizer import CHATML, byte_tokenizer, plan_text
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.nodes import IncludeNode, TextNode
from vllm_promptcache.pml.parser import parse_document


def composed(content: str, prompt: str, attributes: str = "") -> str:
    """The text of a prompt over a schema with this content."""
    (schema,) = parse_document(f'<schema name="s" {attributes}>{content}</schema>').schemas
    node = parse_document(f'<prompt schema="s">{prompt}</prompt>').prompt
    assert node is not None
    layout = build_layout(schema, byte_tokenizer(chat_template=CHATML), 4096)
    return plan_text(build_plan(layout, node), byte_tokenizer(chat_template=CHATML))


A, B, C = (f"<module name='{name}'>{name * 2}</module>" for name in "abc")

# A template, and what it says with all of its modules.
PASTED = {
    f"Alpha red.{A} {B}": "Alpha red.aa bb",
    f"{A}\n{B}": "aa\nbb",
    f"\n{A}\n{B}\n": "aa\nbb",
    f"\n  {A}\n  {B}\n": "aa\nbb",
    f"\n\t{A}\n\n\t{B}\n": "aa\n\nbb",
    f"Docs:\n{A}\n{B}\n\nQuestion:": "Docs:\naa\nbb\n\nQuestion:",
    f"\nDocs:\n  - {A}\n  - {B}\nQuestion: ": "Docs:\n  - aa\n  - bb\nQuestion: ",
    f"Docs:\n  {A}\n  {B}\n": "Docs:\naa\nbb",
    f"\n  Docs:\n  {A}\n    {B}\n  End\n": "Docs:\naa\n  bb\nEnd",
    f"<system>{A}\n{B}</system>": "<|im_start|>system\naa\nbb<|im_end|>\n",
    f"\n<system>\n  Short.\n  {A}\n  {B}\n</system>\n": "<|im_start|>system\nShort.\naa\nbb<|im_end|>\n",
    f"one\n<!-- a comment -->\n{A}\n<!-- and --> {B}": "one\naa\n bb",
    f"{A}\n<scaffold modules='a b'/>\n{B}\n<scaffold modules='b'/>\n": "aa\nbb",
    f"{A}\n<union>\n  {B}\n  {C}\n</union>\nend": "aa\nbb\nend",
    "<module name='a'>\ndef f():\n    return 1\n</module>\n<module name='b'>  x</module>": (
        "def f():\n    return 1\n  x"
    ),
    "<module name='a'>Key:\n  - x\n  - y</module> <module name='b'/>": "Key:\n  - x\n  - y ",
    "<module name='a'>&#10; x &#10;</module><module name='b'><![CDATA[\n y\n]]></module>": "\n x \n\n y\n",
}


@pytest.mark.parametrize("content", PASTED)
def test_what_is_pasted_comes_out_as_it_was(content: str) -> None:
    assert composed(content, "<a/><b/>") == PASTED[content]


def lines_of(content: str, names: str, attributes: str = "") -> str:
    return composed(content, "".join(f"<{name}/>" for name in names), attributes)


@pytest.mark.parametrize("between", ["\n", "\n\n", "\n\n\n"])
@pytest.mark.parametrize("start", ["Docs:\n", "Docs:\n\n", ""])
@pytest.mark.parametrize("end", ["\nEnd", "\n\nEnd"])
def test_no_blank_line_stays_behind(start: str, between: str, end: str) -> None:
    content = start + between.join([A, B, C]) + end
    for number in (1, 2, 3):
        for names in itertools.combinations("abc", number):
            text = lines_of(content, "".join(names))
            inner = between.join(name * 2 for name in names)
            assert inner in text
            # What stands around the list is what stood there, or a line break that parted its modules.
            before, after = text.split(inner)
            assert before in (start, start.rstrip() + between)
            assert after in (end, between + end.lstrip())
    assert "Docs" not in start or lines_of(content, "").startswith("Docs:\n")


def test_text_on_the_same_line_keeps_its_spaces() -> None:
    assert composed(f"Hello {A} world", "<a/>") == "Hello aa world"
    assert composed(f"Hello {A}world", "") == "Hello world"
    assert composed(f"Hello\n{A} world\n{B}", "") == "Hello\n world"


def test_what_goes_with_a_module_is_said_by_the_author() -> None:
    row = f"Tags: {A} {B} {C}."
    assert lines_of(row, "ac") == "Tags: aa  cc."
    assert lines_of(row, "ac", 'separator="before"') == "Tags: aa cc."
    assert lines_of(row, "c", 'separator="before"') == "Tags: cc."
    assert lines_of(f"{A} {B} {C} end", "b", 'separator="after"') == "bb end"
    lines = f"Docs:\n{A}\n{B}\n{C}\nEnd"
    assert lines_of(lines, "b", 'separator="stay"') == "Docs:\n\nbb\n\nEnd"
    assert lines_of(lines, "b") == "Docs:\nbb\nEnd"
    nested = f"<module name='m' separator='stay'>x\n{A}\n{B}\ny</module>"
    assert composed(nested, "<m><b/></m>") == "x\n\nbb\ny"


@pytest.mark.parametrize("kind", ["compact", "normalize", "preserve"])
def test_other_kinds_of_space_keep_separators_where_they_are(kind: str) -> None:
    content = f"Docs: {A}{B} End"
    assert lines_of(content, "b", f'space="{kind}"') == "Docs: bb End"
    assert lines_of(content, "b", f'space="{kind}" separator="before"') == "Docs:bb End"


def test_a_separator_goes_with_each_member_of_a_union() -> None:
    content = f"Go by\n<union>{A}{B}</union>\nnow"
    assert [composed(content, prompt) for prompt in ("<a/>", "<b/>", "")] == [
        "Go by\naa\nnow",
        "Go by\nbb\nnow",
        "Go by\nnow",
    ]


def test_a_separator_goes_with_each_member_of_a_pool() -> None:
    content = f"Docs:\n<pool name='p' length='40'>{A}{B}</pool>\nEnd"
    brought = "<module name='new'>cc</module>"
    assert composed(content, f"<p><b/>{brought}<a/></p>") == "Docs:\nbb\ncc\naa\nEnd"
    assert composed(content, "") == "Docs:\nEnd"
    assert composed(content.removeprefix("Docs:\n"), f"<p><b/>{brought}</p>") == "bb\ncc\nEnd"
    assert composed(f"Docs: <pool name='p' length='40'>{A}{B}</pool>", "<p><a/><b/></p>") == "Docs: aabb"


def test_no_white_space_stands_between_messages() -> None:
    content = (
        "\n<system>x</system>\n\n<module name='e'>\n<user>y</user>\n<assistant>z</assistant>\n</module>\n"
    )
    messages = "<|im_start|>{}\n{}<|im_end|>\n"
    assert composed(content, "<e/>") == "".join(
        messages.format(role, text) for role, text in (("system", "x"), ("user", "y"), ("assistant", "z"))
    )


def test_new_text_still_has_the_room_of_modules_left_out() -> None:
    content = f"Docs:\n{A}\n<module name='b'>a long text</module>\n{C}"
    assert composed(content, "<a/> Or so.<c/>") == "Docs:\naa Or so.\ncc"


def test_a_prompt_s_own_text() -> None:
    prompt = parse_document(
        """<prompt schema="s">
          <a>
            <b/> x
          </a>
          Think
            first.
          <user>
            Why?
            - a
          </user>
        </prompt>"""
    ).prompt
    assert prompt is not None
    include, text, message = prompt.children
    assert isinstance(include, IncludeNode)
    assert isinstance(text, TextNode)
    assert [type(child).__name__ for child in include.children] == ["IncludeNode", "TextNode"]
    assert include.children[1].text == " x"  # type: ignore[union-attr]
    assert text.text == "\nThink\n  first.\n"
    assert [node.text for node in message.texts] == ["Why?\n- a"]  # type: ignore[union-attr]
