"""Marks on parts of a chat's messages, documents and tools, and where the parts stand in the rendered prompt.

A part is looked for in the text that the chat template made of the conversation, from left to right, each
behind those before it. What a template writes differently (cut, escaped its own way, left out) is not found,
and computed as any other text is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from vllm_promptcache.errors import unknown
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.ttl import seconds_of

CACHE_CONTROL, PROMPT_CACHE = "cache_control", "prompt_cache"

NO_PINS = "a marked part is not pinned: this server's clients do not manage what stays"

# After so many parts that are not found, no others are looked for: each search reads all of the prompt.
_MAX_MISSES = 16
_OPTIONS = ("name", "ttl", "pin")
_MAX_NAME = 512


@dataclass(frozen=True)
class Mark:
    """What a mark says: a `name`, and how long the part's states stay. With `pin` they stay, whoever wants
    their blocks, until nobody has used them for `ttl` seconds; without, they go then at the latest."""

    name: str | None = None
    ttl: float | None = None
    pin: bool = False


class Part(NamedTuple):
    """A part of a conversation: how it may be written in the prompt, the likeliest first."""

    texts: tuple[str, ...]
    mark: Mark | None


class Span(NamedTuple):
    """A marked part's half-open range of characters of the prompt."""

    start: int
    end: int
    mark: Mark


@dataclass(frozen=True)
class MarkedParts:
    """A chat request's parts, in order. The messages before the `first_turn` are system messages.

    `problem` says what of the marks cannot be had, if anything.
    """

    messages: tuple[Part, ...]
    first_turn: int
    documents: tuple[Part, ...] = ()
    tools: tuple[Part, ...] = ()
    problem: str | None = None

    @property
    def has_marks(self) -> bool:
        """Whether anything is marked."""
        return any(part.mark for part in (*self.messages, *self.documents, *self.tools))

    def find(self, prompt: str) -> tuple[list[Span], int]:
        """The marked parts in a prompt, in order and apart from each other, and where the first turn begins:
        0 where that is not known."""
        system, turns = self.messages[: self.first_turn], self.messages[self.first_turn :]
        in_system = _search(prompt, system)
        end = max([span[1] for span in in_system if span], default=0)
        in_turns = _search(prompt, turns, end)
        if None in in_turns and end:
            # Some templates write the system message into a later turn.
            in_turns = max(in_turns, _search(prompt, turns), key=lambda spans: len(spans) - spans.count(None))
        lead = next((span[0] for span in in_turns if span), 0)
        parts = (*system, *turns, *self.documents, *self.tools)
        spans = (*in_system, *in_turns, *_search(prompt, self.documents), *_search(prompt, self.tools))
        found = [
            Span(*span, part.mark) for part, span in zip(parts, spans, strict=True) if span and part.mark
        ]
        return _apart(found), lead


def read_marks(
    messages: Sequence[Any],
    *,
    documents: Sequence[Any] | None = None,
    tools: Sequence[Any] | None = None,
    auto: Sequence[str] = (),
    may_pin: bool = True,
) -> MarkedParts:
    """The parts of a request, and what is marked of them, by the client or `auto`matically.

    Where the client may not pin, a mark that wants it is a mark without it, and a problem.

    Raises:
        RefusedError: a mark says what none can say.
    """
    parts: list[Part] = []
    first_turn = 0
    problem = None
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        is_auto = message.get("role") == "tool" and "tool_messages" in auto
        mark = _mark_of(message) or (Mark() if is_auto else None)
        content = message.get("content")
        for part in [content] if isinstance(content, str) else content or ():
            if isinstance(part, str):
                parts.append(_part(part, mark))
                continue
            own, text = _mark_of(part), part.get("text")
            if isinstance(text, str):
                parts.append(_part(text, own or mark))
            elif own is not None:
                problem = f"a part of type {part.get('type')!r} cannot be marked, only text"
        if message.get("role") in ("system", "developer") and first_turn == len(parts) - 1:
            first_turn = len(parts)
    of_tools = [_tool(tool, is_auto="tools" in auto) for tool in tools or ()]
    if not may_pin and any(part.mark is not None and part.mark.pin for part in (*parts, *of_tools)):
        problem = problem or NO_PINS
        parts, of_tools = [*map(_unpinned, parts)], [*map(_unpinned, of_tools)]
    return MarkedParts(
        tuple(parts),
        first_turn,
        tuple(chain(*[_document(d) for d in documents or ()])) if "documents" in auto else (),
        tuple(of_tools),
        problem,
    )


def with_line_breaks(prompt: str, spans: Sequence[Span]) -> list[Span]:
    """Spans that a line break follows, as one is put between a message's parts, have it with them.

    It is not computed in each request then, and where a tokenizer merges it with a full stop the tokens are
    the plain prompt's. Not behind a part that ends in white space: that may merge with what follows.
    """
    starts = {span.start for span in spans}
    return [
        span._replace(end=span.end + 1)
        if prompt.startswith("\n", span.end) and span.end not in starts and not prompt[span.end - 1].isspace()
        else span
        for span in spans
    ]


def _unpinned(part: Part) -> Part:
    return part if part.mark is None else part._replace(mark=replace(part.mark, pin=False))


def _mark_of(part: Mapping[str, Any]) -> Mark | None:
    """A part's mark. An own `prompt_cache` says more than a `cache_control`."""
    own, control = part.get(PROMPT_CACHE), part.get(CACHE_CONTROL)
    if own is None and control is None:
        return None
    if own is None:
        if not isinstance(control, Mapping):
            raise _wrong(CACHE_CONTROL, "must be an object")
        return Mark(ttl=_seconds(CACHE_CONTROL, control))
    if not isinstance(own, Mapping):
        raise _wrong(PROMPT_CACHE, "must be an object")
    for option in own:
        if option not in _OPTIONS:
            raise _wrong(PROMPT_CACHE, unknown("option", str(option), _OPTIONS))
    name, pin = own.get("name"), own.get("pin", False)
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= _MAX_NAME):
        raise _wrong(PROMPT_CACHE, f"'name' must be a text of at most {_MAX_NAME} characters")
    if not isinstance(pin, bool):
        raise _wrong(PROMPT_CACHE, "'pin' must be true or false")
    return Mark(name, _seconds(PROMPT_CACHE, own), pin)


def _seconds(field: str, mark: Any) -> float | None:
    return seconds_of(mark.get("ttl"), f"{field} of a part", "messages")


def _wrong(field: str, what: str) -> RefusedError:
    return RefusedError(f"{field} of a part: {what}", field="messages")


def _part(text: str, mark: Mark | None) -> Part:
    return Part(tuple(dict.fromkeys((text, text.strip()))), mark)


def _document(document: Any) -> Iterator[Part]:
    """The texts of a document. Templates write them as they are, or as JSON."""
    for text in document.values() if isinstance(document, Mapping) else ():
        if isinstance(text, str):
            plain = (text, text.strip())
            escaped = (json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])
            yield Part(tuple(dict.fromkeys((*plain, *escaped))), Mark())


def _tool(tool: Any, *, is_auto: bool) -> Part:
    """A tool, as templates write one: all of it or its function, as JSON on one line or several."""
    if not isinstance(tool, Mapping):
        return Part((), None)
    mark = _mark_of(tool) or (Mark() if is_auto else None)
    if mark is None:
        return Part((), None)
    forms = [form for form in (tool, tool.get("function")) if isinstance(form, Mapping)]
    texts = [
        json.dumps(form, ensure_ascii=ascii, indent=indent)
        for form in forms
        for indent in (None, 4, 2)
        for ascii in (False, True)
    ]
    return Part(tuple(dict.fromkeys(texts)), mark)


def _search(prompt: str, parts: Sequence[Part], start: int = 0) -> list[tuple[int, int] | None]:
    """The range of each part in a prompt, behind `start` and the one before; None where it is not found."""
    spans: list[tuple[int, int] | None] = []
    misses = 0
    for part in parts:
        span = None
        for text in part.texts if misses < _MAX_MISSES else ():
            at = prompt.find(text, start) if text else -1
            if at >= 0:
                span = at, at + len(text)
                start = span[1]
                break
        misses += span is None and any(part.texts)
        spans.append(span)
    return spans


def _apart(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, without those that begin inside another."""
    apart: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not apart or span.start >= apart[-1].end:
            apart.append(span)
    return apart
