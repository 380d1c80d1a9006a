"""Text that programs write into documents comes out as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vllm_promptcache.pml
from vllm_promptcache.pml.escape import NOT_IN_XML, text
from vllm_promptcache.pml.nodes import IncludeNode, ModuleNode, TextNode
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.pml.space import SPACE_KINDS

ANY_TEXT = st.text(min_size=1).map(lambda value: NOT_IN_XML.sub("", value)).filter(bool)
WHITE_TEXT = st.text("ab \n\t\r<&'\"]>", min_size=1)


@given(ANY_TEXT | WHITE_TEXT, st.sampled_from(SPACE_KINDS))
def test_what_is_written_is_read(value: str, kind: str) -> None:
    schema = f'<schema name="s" space="{kind}"><module name="m">{text(value)}</module></schema>'
    prompt = f"<prompt schema='s' space='{kind}'><m p='{text(value)}'>{text(value)}</m></prompt>"
    (module,) = parse_document(schema).schemas[0].children
    assert isinstance(module, ModuleNode)
    assert [node.text for node in module.children if isinstance(node, TextNode)] == [value]
    node = parse_document(prompt).prompt
    assert node is not None
    (include,) = node.children
    assert isinstance(include, IncludeNode)
    assert include.arguments == {"p": value}
    assert [child.text for child in include.children if isinstance(child, TextNode)] == [value]


def test_it_reads_well_where_nothing_is_at_stake() -> None:
    assert text("The lease runs for two years.") == "The lease runs for two years."
    assert text("a < b && c") == "a &lt; b &amp;&amp; c"
    assert vllm_promptcache.pml.text is text
    # Also where nobody has imported `vllm_promptcache.pml`.
    assert vllm_promptcache.__getattr__("pml") is vllm_promptcache.pml


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("ab\x00", "U+0000 NULL at index 2"),
        ("\x0c", "U+000C FORM FEED at index 0"),
        ("\x1b[0m", "U+001B ESCAPE at index 0"),
        ("\uffff", "U+FFFF NO CHARACTER at index 0"),
        ("\ud800", "U+D800 LONE SURROGATE at index 0"),
    ],
)
def test_what_xml_cannot_hold_is_named(value: str, what: str) -> None:
    with pytest.raises(ValueError, match=rf"the text has {what.replace('+', '.')}, which XML cannot hold: "):
        text(value)
