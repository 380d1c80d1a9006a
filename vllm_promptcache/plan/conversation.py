"""A prompt and the messages of a chat request as one conversation in the words of the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import Piece, ToolsLayout
from vllm_promptcache.layout.template_renderer import mark
from vllm_promptcache.plan.tools import ToolsText, find_tools
from vllm_promptcache.plan.turns import NO_WORDS, AnyPart, Flowing, Part, Turn, Words, flowing

_SYSTEM = ("system", "developer")
# As vLLM joins the text parts of one message.
_SEPARATOR = "\n"


@dataclass(frozen=True)
class Turns:
    """The chat turns of a request.

    ``messages`` are what the chat template takes; ``template_options`` its other variables.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    add_generation_prompt: bool = True
    tools: Sequence[Any] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """All variables of the template but the messages."""
        options = dict(self.template_options, add_generation_prompt=self.add_generation_prompt)
        return {**options, "tools": list(self.tools)} if self.tools else options


def join_turns(turns: Sequence[Turn], has_roles: bool, encoder: TextEncoder) -> list[Turn]:
    """A prompt's turns as the messages that they are in a conversation, each with a role.

    What stands in no message is in the user's turn that follows; but if the schema has no roles, what it
    holds is the system message, where the template has one. Neighbouring user turns are one.
    """
    joined: list[Turn] = []
    for turn in turns:
        message = _as_message(turn, has_roles or bool(joined), encoder)
        last = joined[-1] if joined else None
        if last is None or last.role != "user" or message.role != "user":
            joined.append(message)
            continue
        if last.is_loose or not (turn.role is None and turn.is_new):
            _separate(last.parts, message.parts, encoder)
        last.parts += message.parts
        last.after = message.after
        last.is_loose, last.asks = last.is_loose and message.is_loose, last.asks or message.asks
    return joined


def converse(
    joined: Sequence[Turn],
    bos: Sequence[Piece],
    asked: Turns,
    encoder: TextEncoder,
    tools: ToolsLayout | None = None,
) -> list[AnyPart]:
    """The parts of the conversation: a prompt's joined turns, the messages around them, and the template's
    words. ``bos`` is the schema's first token where that is BOS. What the template writes of the request's
    tools is a unit of its own where the schema has a place for ``tools``.

    Raises ChatTemplateError where the template refuses the conversation, or moves or loses a message, and
    where nobody asks anything.
    """
    script = _Script(joined, asked, encoder)
    order, texts = encoder.template.cut(script.messages, len(joined), asked.options)
    parts: list[AnyPart] = []
    written = find_tools(tools, script.messages, order, texts, asked.options, encoder)
    if bos and encoder.template.writes_bos and texts[0].startswith(encoder.template.bos):
        parts, texts[0] = [*bos], texts[0].removeprefix(encoder.template.bos)
    after = NO_WORDS
    for place, index in enumerate(order):
        turn = joined[index]
        script.give_back(index, texts, place)
        source = turn.source if index < len(joined) - 1 or not script.earlier else "messages"
        parts += _between(after, texts[place], turn.before, source, encoder, written.get(place))
        if place == 0 and parts[: len(bos)] == [*bos] and not isinstance((*parts, None)[len(bos)], Piece):
            # The schema's text stands further on: what stands before it is a prompt's plain beginning.
            parts[: len(bos)] = [Flowing(_token_ids(piece), "template") for piece in bos]
        parts += turn.parts
        after = turn.after
    last = _between(after, texts[-1], NO_WORDS, "messages", encoder, written.get(len(order)))
    return [*parts, *last]


class _Script:
    """The messages of a conversation, with a mark for what each of the prompt's turns holds."""

    def __init__(self, joined: Sequence[Turn], asked: Turns, encoder: TextEncoder) -> None:
        self._joined = joined
        self._encoder = encoder
        self._edges = [_cut_edges(turn.parts, encoder) for turn in joined]
        messages = list(asked.messages)
        system = messages.pop(0) if messages and messages[0].get("role") in _SYSTEM else None
        self.earlier, question, later = _around_question(joined, messages, asked)
        if not messages and not (joined and joined[-1].role == "user" and joined[-1].asks):
            what = "may be empty only when the PML prompt ends in a user's message, or in text"
            raise ChatTemplateError(f"messages {'beside the system message ' * (system is not None)}{what}")
        self.messages: list[Mapping[str, Any]] = []
        if system is not None and not (joined and joined[0].role == "system"):
            self.messages.append(system)
            system = None
        for index, turn in enumerate(joined):
            if index == len(joined) - 1:
                self.messages += self.earlier
            content: Any = self._edges[index][0] + mark(index) + self._edges[index][1]
            if index == 0 and system is not None:
                content = _followed_by(content, turn, system, encoder)
            if index == len(joined) - 1 and question is not None:
                content = _followed_by(content, turn, question, encoder)
            self.messages.append({"role": turn.role, "content": content})
        self.messages += later

    def give_back(self, index: int, texts: list[str], place: int) -> None:
        """White space at the edges of a turn that the template has kept goes back to the turn's text, which
        stands between two ``texts``, the first of them at ``place``."""
        start, end = self._edges[index]
        parts = self._joined[index].parts
        if start and texts[place].endswith(start):
            texts[place] = texts[place].removesuffix(start)
            _replace(parts, 0, start + _text(parts[0]), self._encoder)
        if end and texts[place + 1].startswith(end):
            texts[place + 1] = texts[place + 1].removeprefix(end)
            _replace(parts, -1, _text(parts[-1]) + end, self._encoder)


def _around_question(
    joined: Sequence[Turn], messages: list[Mapping[str, Any]], asked: Turns
) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """Messages before the prompt's last turn, the one that is joined to it, and those after it."""
    if not joined or joined[-1].role != "user" or not messages or messages[0].get("role") == "assistant":
        return [], None, messages
    if joined[-1].is_loose:
        # What stands in no message is in the user's turn that follows.
        return [], *((messages[0], messages[1:]) if messages[0].get("role") == "user" else (None, messages))
    last = messages[-1]
    is_prefix = bool(asked.template_options.get("continue_final_message")) or last.get("tool_calls")
    if last.get("role") == "assistant" and not is_prefix:
        return messages, None, []
    places = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    if not places:
        return [], None, messages
    return messages[: places[-1]], messages[places[-1]], messages[places[-1] + 1 :]


def _followed_by(content: Any, turn: Turn, message: Mapping[str, Any], encoder: TextEncoder) -> Any:
    """A turn's content with that of a message behind it."""
    given = message.get("content") or ""
    if not isinstance(given, str):
        return [{"type": "text", "text": content}, *given]
    is_white = given[:1].isspace() or not given or turn.is_empty or _ends_white(turn.parts, encoder)
    return content + ("" if is_white or content[-1:].isspace() else _SEPARATOR) + given


def _as_message(turn: Turn, has_roles: bool, encoder: TextEncoder) -> Turn:
    """A turn with a role, and the template's words after it where the schema has none."""
    role, is_loose = turn.role, turn.role is None
    if role is None:
        is_system = not (has_roles or turn.is_new) and encoder.template.has_role("system")
        role = "system" if is_system else "user"
    after = turn.after
    if is_loose or turn.is_new:
        after = Words(encoder.template.words(role).after, [])
    message = replace(
        turn,
        role=role,
        parts=list(turn.parts),
        after=after,
        is_loose=is_loose,
        asks=not turn.is_empty and (turn.is_new or not is_loose),
    )
    if is_loose and message.parts and isinstance(first := message.parts[0], Flowing):
        _replace(message.parts, 0, first.text.lstrip(), encoder)
    return message


def _separate(first: list[Part], second: Sequence[Part], encoder: TextEncoder) -> None:
    """Ends parts in a line break, if white space is neither at their end nor at the start of the others."""
    if not first or not second or _ends_white(first, encoder):
        return
    if not encoder.decode(list(_token_ids(second[0])[:1]))[:1].isspace():
        first.append(flowing(encoder, _SEPARATOR, "template"))


def _ends_white(parts: Sequence[Part], encoder: TextEncoder) -> bool:
    token_ids = _token_ids(parts[-1]) if parts else ()
    return encoder.decode(list(token_ids[-1:]))[-1:].isspace()


def _token_ids(part: Part) -> Sequence[int]:
    if isinstance(part, Flowing):
        return part.token_ids
    segment = part.segment
    if isinstance(segment, CachedSegment):
        return segment.unit.token_list[segment.start : segment.end]
    return segment.token_ids


def _text(part: Part) -> str:
    return part.text if isinstance(part, Flowing) else ""


def _replace(parts: list[Part], index: int, text: str, encoder: TextEncoder) -> None:
    part = parts[index]
    assert isinstance(part, Flowing)
    parts[index] = flowing(encoder, text, part.source)


def _cut_edges(parts: list[Part], encoder: TextEncoder) -> tuple[str, str]:
    """Takes white space off the edges of new text, which templates may strip; returns it."""
    start = end = ""
    if parts and (text := _text(parts[0])) != text.lstrip() and text.strip():
        start = text[: len(text) - len(text.lstrip())]
        _replace(parts, 0, text.lstrip(), encoder)
    if parts and (text := _text(parts[-1])) != text.rstrip() and text.strip():
        end = text[len(text.rstrip()) :]
        _replace(parts, -1, text.rstrip(), encoder)
    return start, end


def _between(
    after: Words, text: str, before: Words, source: str, encoder: TextEncoder, tools: ToolsText | None
) -> list[AnyPart]:
    """The template's text between two contents, in the schema's own words where they are the same; `tools`
    in it are a unit."""
    start: list[AnyPart] = []
    end: list[AnyPart] = []
    if after.text and text.startswith(after.text):
        start = [*after.parts] or [flowing(encoder, after.text, "template")]
        text = text.removeprefix(after.text)
    if before.parts and text.endswith(before.text):
        end = [*before.parts]
        text = text.removesuffix(before.text)
    middle: list[AnyPart] = [flowing(encoder, text, source)] if text else []
    return [*start, *(tools.parts(text, source, encoder) if tools and text else middle), *end]
