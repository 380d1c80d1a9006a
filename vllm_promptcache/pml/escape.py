"""Text to PML: what programs that write documents put through `text`."""

from __future__ import annotations

import re

from vllm_promptcache.pml.characters import describe_character

# What XML 1.0 cannot hold in any way: most control characters, surrogates, and two that are none.
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Markup, and white space that a space attribute or a parser may change: all but single spaces in a line.
_ESCAPED = re.compile(r"[&<>\"'\t\n\r]|^ | $| (?= )|(?<=[\t\n\r ]) ")
_NAMES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}


def text(value: str) -> str:
    """A text as PML, for the content of an element or the value of an attribute (within its quotes).

    What is read is `value`, character by character, whatever `space` is. Raises ValueError, which names
    the character and its place, for what XML cannot hold; the JSON form of schemas can.
    """
    if found := NOT_IN_XML.search(value):
        what = f"the text has {describe_character(found[0])} at index {found.start()}, which XML cannot hold"
        raise ValueError(f"{what}: leave it out, or register the schema in the JSON form")
    return _ESCAPED.sub(lambda match: _NAMES.get(match[0]) or f"&#{ord(match[0])};", value)
