"""Bytes to a tree of elements, with nothing of PML in it yet."""

from __future__ import annotations

import xml.parsers.expat as expat
from dataclasses import dataclass, field

from vllm_promptcache.errors import TOO_LARGE, PMLError
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.malformed import mistakes_of
from vllm_promptcache.pml.source import Place, Source

_AMPERSAND = ord("&")


# Not frozen: children are appended while the document is read. Nothing after the parser sees these.
@dataclass(slots=True)
class Element:
    """An element as written."""

    tag: str
    attributes: dict[str, str]
    place: Place
    children: list[Element | Characters]


@dataclass(slots=True)
class Characters:
    """A text run: parts in order, each with whether it is kept as it is: CDATA, and white space that was
    written as a character reference. `comments` are the indices of parts before which a comment stands.
    """

    place: Place
    parts: list[tuple[str, bool]]
    comments: list[int] = field(default_factory=list)


def read_element(source: Source, limits: Limits) -> Element:
    """The root element of a document.

    Raises PMLError: status 413 if the document is larger than `limits.max_document_bytes`, else 400 for
    anything that is not well-formed, not UTF-8, nested too deep or has a DTD. Never repairs.
    """
    found, allowed = len(source.data), limits.max_document_bytes
    if found > allowed:
        raise PMLError([source.issue(f"the document has {found} bytes; {allowed} are allowed")], TOO_LARGE)
    _require_utf8(source)
    reader = _Reader(source, limits)
    try:
        reader.parser.Parse(source.data, True)
    except expat.ExpatError as error:
        offset = max(reader.parser.ErrorByteIndex, 0)
        raise PMLError(mistakes_of(source, offset, expat.ErrorString(error.code), reader.innermost)) from None
    finally:
        # Its handlers are the reader's methods: in a circle, all would wait for the garbage collector.
        del reader.parser
    return reader.root


def _require_utf8(source: Source) -> None:
    """Expat takes the encoding it is given for a proposal: it goes on to recognize UTF-16."""
    try:
        source.data.decode()
        # A NUL further in is a character that XML cannot hold; here it is the half of one.
        offset = source.data.find(b"\0", 0, 4)
    except UnicodeDecodeError as error:
        offset = error.start
    if offset >= 0:
        raise PMLError([source.issue("the document is not UTF-8 text", offset)])


class _Reader:
    """Expat's handlers. Expat, because lxml tells neither columns nor where CDATA begins and ends."""

    root: Element

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source = source
        self._max_depth = limits.max_depth
        self._max_elements = limits.max_elements
        self._max_attributes = limits.max_attributes
        self._num_elements = 0
        self._stack: list[Element] = []
        self._in_cdata = False
        parser = self.parser = expat.ParserCreate("UTF-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartCdataSectionHandler = self._start_cdata
        parser.EndCdataSectionHandler = self._end_cdata
        parser.CommentHandler = self._comment
        parser.ProcessingInstructionHandler = self._comment
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype

    @property
    def innermost(self) -> Place | None:
        """The place of the innermost element that is open."""
        return self._stack[-1].place if self._stack else None

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        stack = self._stack
        parent = stack[-1] if stack else None
        around = parent.place if parent else None
        name = attributes.get("module" if tag == "use" else "name")
        place = Place(self._source, self.parser.CurrentByteIndex, around, tag, name)
        element = Element(tag, attributes, place, [])
        if parent:
            parent.children.append(element)
        else:
            self.root = element
        if len(stack) >= self._max_depth:
            raise PMLError([place.issue(f"more than {self._max_depth} levels of elements")])
        self._num_elements += 1
        if self._num_elements > self._max_elements:
            raise PMLError([place.issue(f"more than {self._max_elements} elements")])
        if len(attributes) > self._max_attributes:
            raise PMLError([place.issue(f"more than {self._max_attributes} attributes")])
        stack.append(element)

    def _end(self, tag: str) -> None:
        self._stack.pop()

    def _characters(self, text: str) -> None:
        element = self._stack[-1]
        part = (text, self._in_cdata or (text.isspace() and self._is_reference()))
        if element.children and isinstance(element.children[-1], Characters):
            element.children[-1].parts.append(part)
        else:
            offset = self._source.skip_space(self.parser.CurrentByteIndex)
            element.children.append(Characters(Place(self._source, offset, element.place, ""), [part]))

    def _is_reference(self) -> bool:
        return self._source.data[self.parser.CurrentByteIndex] == _AMPERSAND

    def _comment(self, *ignored: str) -> None:
        if self._stack and self._stack[-1].children:
            last = self._stack[-1].children[-1]
            if isinstance(last, Characters):
                last.comments.append(len(last.parts))

    def _start_cdata(self) -> None:
        self._in_cdata = True

    def _end_cdata(self) -> None:
        self._in_cdata = False

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if version != "1.0":
            self._refuse(f"XML version {version!r}; only 1.0 is allowed")
        if encoding is not None and encoding.upper() not in ("UTF-8", "UTF8"):
            self._refuse(f"encoding {encoding!r}; only UTF-8 is allowed")

    def _doctype(self, name: str, system: str | None, public: str | None, has_subset: int) -> None:
        # Expat calls this after the name; the declaration is what to point at.
        offset = self._source.data.rfind(b"<!DOCTYPE", 0, self.parser.CurrentByteIndex)
        self._refuse("a document type declaration (DTD) is not allowed", max(offset, 0))

    def _refuse(self, what: str, offset: int = 0) -> None:
        raise PMLError([self._source.issue(what, offset)])
