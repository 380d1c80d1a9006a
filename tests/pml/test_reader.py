"""Documents to elements: places, CDATA, references, comments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.reader import Characters, Element, read_element
from vllm_promptcache.pml.source import Source


def read(text: str) -> Element:
    return read_element(Source("pml", text.encode()), Limits())


def runs(element: Element) -> list[list[tuple[str, bool]]]:
    """The text runs directly in an element, neighbouring parts of a kind joined."""
    found = []
    for child in element.children:
        if isinstance(child, Characters):
            joined: list[tuple[str, bool]] = []
            for text, is_cdata in child.parts:
                if joined and joined[-1][1] == is_cdata:
                    joined[-1] = (joined[-1][0] + text, is_cdata)
                else:
                    joined.append((text, is_cdata))
            found.append(joined)
    return found


def test_cdata_is_told_from_text() -> None:
    root = read("<a>x <![CDATA[ <b> & ]]>y<![CDATA[]]><c/><![CDATA[]]></a>")
    assert runs(root) == [[("x ", False), (" <b> & ", True), ("y", False)]]


def test_comments_and_processing_instructions_do_not_split_a_run() -> None:
    assert runs(read("<a>one<!-- no -->two<?php no ?>three</a>")) == [[("onetwothree", False)]]


def test_references_are_text() -> None:
    assert runs(read("<a>&lt;&amp;&gt;&quot;&apos;&#65;&#x1F600;</a>")) == [[("<&>\"'A\U0001f600", False)]]


def test_line_ends_are_line_feeds() -> None:
    assert runs(read("<a>one\r\ntwo\rthree</a>")) == [[("one\ntwo\nthree", False)]]


def test_places_count_characters_from_one() -> None:
    root = read("<a>\n  üü<b\n  x='>'\n  y=\"1\"/>\n   text</a>")
    (text, element, after) = root.children
    assert isinstance(element, Element)
    assert (element.place.issue("").line, element.place.issue("").column) == (2, 5)
    assert (element.place.at("y").issue("").line, element.place.at("y").issue("").column) == (4, 3)
    assert element.place.at("y").issue("").path == "a/b/@y"
    # Text is where its first letter is.
    assert (text.place.line, after.place.line) == (2, 5)


def test_a_byte_order_mark_is_no_character() -> None:
    root = read("\ufeff<a><b/></a>")
    assert root.children[0].place.issue("").column == 4


@given(
    st.lists(
        st.sampled_from(["t", " ", "\n", "é", "<b/>", "<![CDATA[<]]>", "&amp;", "<!--x-->"]), max_size=12
    )
)
def test_the_text_is_what_lxml_reads(parts: list[str]) -> None:
    document = f"<a>{''.join(parts)}</a>"
    expected = "".join(etree.fromstring(document).itertext(tag=["a", "b"]))
    assert "".join(text for run in runs(read(document)) for text, _ in run) == expected
