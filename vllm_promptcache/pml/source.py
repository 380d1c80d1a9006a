"""Where in a document something stands: line, column and element path, worked out only for messages."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from vllm_promptcache.errors import PMLIssue

_TAG_START = re.compile(rb"<[^\s/>]*")
_ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_SPACE = re.compile(rb"[ \t\r\n]*")
_MAX_STEP_CHARACTERS = 64
_NAMED_ELEMENTS = frozenset({"schema", "module", "union", "pool", "parameter", "param", "use", "argument"})


@dataclass(frozen=True, eq=False)
class Source:
    """A document's UTF-8 bytes and the file or field (`where`) they came from.

    `label` is what a `NewSegment.source` calls it, where that is not `schema` or `prompt`: a `src` file.
    """

    where: str
    data: bytes = field(repr=False)
    label: str | None = None
    _columns: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    _attributes: dict[int, dict[bytes, int]] = field(default_factory=dict, repr=False)

    def line(self, offset: int) -> int:
        """The line of a byte offset, from 1."""
        return bisect_right(self._line_offsets, offset)

    def column(self, offset: int) -> int:
        """The column of a byte offset, from 1, in characters."""
        start = self._line_offsets[self.line(offset) - 1]
        # Issues mostly come in order, and a line may be as long as the document.
        known, column = self._columns.pop(start, (start, 1))
        if known > offset:
            known, column = start, 1
        column += len(self.data[known:offset].decode("utf-8", "replace").lstrip("\ufeff"))
        self._columns.clear()
        self._columns[start] = (offset, column)
        return column

    @cached_property
    def _line_offsets(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer(rb"\n", self.data))]

    def skip_space(self, offset: int) -> int:
        """The offset of the first byte from `offset` on that is not white space."""
        match = _SPACE.match(self.data, offset)
        return match.end() if match else offset

    def issue(self, what: str, offset: int = 0) -> PMLIssue:
        """An issue of the document as a whole, or of a place outside any element."""
        return Place(self, offset, None, "").issue(what)

    def attribute_offset(self, element_offset: int, attribute: str) -> int:
        """The offset of an attribute's name in the tag that starts at `element_offset`, or the tag's."""
        if element_offset not in self._attributes:
            # Those of one tag are kept: whoever asks for one mostly asks for others.
            self._attributes.clear()
            self._attributes[element_offset] = dict(self._find_attributes(element_offset))
        return self._attributes[element_offset].get(attribute.encode(), element_offset)

    def _find_attributes(self, element_offset: int) -> Iterator[tuple[bytes, int]]:
        tag = _TAG_START.match(self.data, element_offset)
        match = _ATTRIBUTE.match(self.data, tag.end()) if tag else None
        while match:
            yield match[1], match.start(1)
            match = _ATTRIBUTE.match(self.data, match.end())


# Not frozen, which would take longer: one is made for each element of a request.
@dataclass(slots=True)
class Place:
    """An element's, attribute's or text's place; never changed."""

    source: Source
    offset: int
    parent: Place | None
    tag: str
    name: str | None = None
    attribute: str | None = None

    def at(self, attribute: str) -> Place:
        """The place of one of the element's attributes."""
        return replace(self, attribute=attribute)

    @property
    def path(self) -> str:
        """The elements that enclose it, outermost first, as `schema[travel]/module[a]`; `/` for none."""
        steps: list[str] = []
        place: Place | None = self
        while place is not None:
            if place.tag:
                tag = place.tag[:_MAX_STEP_CHARACTERS]
                named = place.name is not None and tag in _NAMED_ELEMENTS
                steps.append(f"{tag}[{_shown(str(place.name))}]" if named else tag)
            place = place.parent
        if self.attribute:
            steps.insert(0, f"@{self.attribute[:_MAX_STEP_CHARACTERS]}")
        return "/".join(reversed(steps)) or "/"

    @property
    def line(self) -> int:
        """The line it starts on, from 1."""
        return self.source.line(self._exact_offset())

    def label(self, kind: str) -> str:
        """`kind:LINE`, or the `src` file's name and line: what a `NewSegment.source` says."""
        return f"{self.source.label or kind}:{self.line}"

    def issue(self, what: str) -> PMLIssue:
        """An issue that points here."""
        offset = self._exact_offset()
        return PMLIssue(
            self.source.where, self.source.line(offset), self.source.column(offset), self.path, what
        )

    def _exact_offset(self) -> int:
        if self.attribute is None:
            return self.offset
        return self.source.attribute_offset(self.offset, self.attribute)


def _shown(name: str) -> str:
    name = name[:_MAX_STEP_CHARACTERS]
    return name if name.isprintable() else repr(name)[1:-1]
