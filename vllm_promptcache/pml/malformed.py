"""What is wrong with a document that is no XML: each character that is not right, with what to write instead.

A parser stops at the first one. This looks at the rest as well, on a way of its own that never goes back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.entities import html5

from vllm_promptcache.errors import MAX_ISSUES, PMLIssue, quote
from vllm_promptcache.pml.characters import describe_character
from vllm_promptcache.pml.escape import NOT_IN_XML
from vllm_promptcache.pml.source import Place, Source

_JSON = "leave it out, or register the text in the JSON form, which takes any, as messages do"
_MAX_DEPTH = 64
_HINTS = {
    "mismatched tag": ": an element is not closed, or a '<' in text is not written &lt;",
    "not well-formed (invalid token)": ": in text, '<' is written &lt; and '&' is written &amp;",
}

# A tag, whose attribute values hold no '<' if it is well-formed: so it ends before the next one.
_TAG = re.compile(rb"<(/?)([A-Za-z_:\x80-\xff][^\s/<>=]*)((?:[^\"'<>]|\"[^\"<]*\"|'[^'<]*')*)>")
# One whose attribute's value holds a '<'.
_OPEN_VALUE = re.compile(rb"<[A-Za-z_:\x80-\xff](?:[^\"'<>]|\"[^\"<]*\"|'[^'<]*')*[\"'][^\"'<>]*(<)")
_NAME = re.compile(rb"\sname\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_WRONG = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]"
    rb"|&(?!(?:#[0-9]{1,9}|#x[0-9A-Fa-f]{1,8}|amp|lt|gt|quot|apos);)(?:[A-Za-z][A-Za-z0-9]{0,31};)?"
    rb"|&#x?[0-9A-Fa-f]{1,9};|\]\]>"
)
_WRONG_CHARACTER = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]")
# What is no markup, from its first characters to its last.
_SKIPPED = ((b"<!--", b"-->"), (b"<![CDATA[", b"]]>"), (b"<?", b"?>"))


def mistakes_of(source: Source, offset: int, what: str, innermost: Place | None) -> list[PMLIssue]:
    """The issues of a document that a parser refused at a byte `offset`, in whose words that is `what`."""
    issues: list[PMLIssue] = []
    first = None
    for place, mistake in _Scan(source).mistakes():
        first = place.offset if first is None else first
        issues.append(place.issue(f"not well-formed XML: {mistake}"))
        if len(issues) == MAX_ISSUES:
            break
    # Parsers point right behind a character, or at the tag it stands in.
    if first is None or first > offset + 1:
        what += _HINTS.get(what, "")
        issues.insert(0, Place(source, offset, innermost, "").issue(f"not well-formed XML: {what}"))
    return issues


class _Scan:
    """Goes once through a document, with the elements that are open."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._data = source.data
        self._open: list[Place] = []

    def mistakes(self) -> Iterator[tuple[Place, str]]:
        """What is wrong, by offset, until nothing can be told any more."""
        position, end = 0, len(self._data)
        last_tag_end = self._data.rfind(b">")
        while position < end and len(self._open) < _MAX_DEPTH:
            start = self._data.find(b"<", position)
            start = end if start < 0 else start
            yield from self._text(position, start)
            if start == end:
                return
            skipped = next((pair for pair in _SKIPPED if self._data.startswith(pair[0], start)), None)
            if skipped:
                found = self._data.find(skipped[1], start + len(skipped[0]))
                if found < 0:
                    return
                position = found + len(skipped[1])
                yield from self._matches(_WRONG_CHARACTER, start, position)
                continue
            tag = _TAG.match(self._data, start)
            if tag:
                position = tag.end()
                yield from self._tag(tag)
            elif self._data.startswith(b"<!", start) or start > last_tag_end:
                return
            elif value := _OPEN_VALUE.match(self._data, start):
                position = value.end()
                yield self._place(value.start(1)), "'<' in an attribute's value is written &lt;"
            else:
                position = start + 1
                yield self._place(start), "'<' begins no element: as text it is &lt;, or stands in CDATA"

    def _place(self, offset: int) -> Place:
        return Place(self._source, offset, self._open[-1] if self._open else None, "")

    def _text(self, start: int, end: int) -> Iterator[tuple[Place, str]]:
        if self._open:
            yield from self._matches(_WRONG, start, end)

    def _tag(self, tag: re.Match[bytes]) -> Iterator[tuple[Place, str]]:
        yield from self._matches(_WRONG, tag.start(3), tag.end(3))
        if tag[1]:
            del self._open[-1:]
        elif not tag[3].endswith(b"/"):
            name = _NAME.search(tag[3])
            named = (name[1] or name[2] or b"").decode("utf-8", "replace") if name else None
            parent = self._open[-1] if self._open else None
            element = tag[2].decode("utf-8", "replace")
            self._open.append(Place(self._source, tag.start(), parent, element, named))

    def _matches(self, pattern: re.Pattern[bytes], start: int, end: int) -> Iterator[tuple[Place, str]]:
        for match in pattern.finditer(self._data, start, end):
            if mistake := _mistake(match[0].decode("utf-8", "replace")):
                yield self._place(match.start()), mistake


def _mistake(found: str) -> str | None:
    """What is wrong with a piece of text, or None for a reference to a character that is allowed."""
    if found == "]]>":
        return "']]>' in text is written ]]&gt;"
    if found.startswith("&#"):
        code = int(found[3:-1], 16) if found[2] == "x" else int(found[2:-1])
        if code < 0x110000 and not NOT_IN_XML.match(chr(code)):
            return None
        character = describe_character(chr(code)) if code < 0x110000 else f"character {code}"
        return f"{found} is {character}, which XML cannot hold: {_JSON}"
    if not found.startswith("&"):
        return f"XML cannot hold {describe_character(found)}: {_JSON}"
    if found == "&":
        return "'&' as text is written &amp;, or stands in CDATA"
    known = html5.get(found[1:])
    if known is None or len(known) != 1:
        return f"there is no entity {quote(found)}: as text it is written &amp;{found[1:]}"
    return f"{quote(found)} is no entity of XML: write the character itself, or &#{ord(known)};"
