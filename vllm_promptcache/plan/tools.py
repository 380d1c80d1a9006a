"""What a chat template writes of a request's tools, as a unit where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import ToolsLayout
from vllm_promptcache.layout.template_renderer import Message, common_start
from vllm_promptcache.plan.turns import AnyPart, Floating, flowing


@dataclass(frozen=True)
class ToolsText:
    """What a template writes of tools, in its text between two contents.

    `texts` are ways to see it, the likelier first: text may begin as it ends.
    """

    layout: ToolsLayout
    texts: tuple[str, ...]

    def parts(self, text: str, source: str, encoder: TextEncoder) -> list[AnyPart]:
        """The parts of the template's text with the tools in it, which is not empty.

        Its tokens are those that it has as one text: where they would not be, all of it is the unit.
        """
        for tools in self.texts:
            before, found, after = text.partition(tools)
            if found and encoder.parts_at(before, tools) and encoder.parts_at(tools, after):
                start, end = ([flowing(encoder, new, source)] if new else [] for new in (before, after))
                return [*start, self._unit(tools, encoder), *end]
        return [self._unit(text, encoder)]

    def _unit(self, text: str, encoder: TextEncoder) -> Floating:
        return Floating(self.layout.unit(encoder.encode(text)))


def find_tools(
    layout: ToolsLayout | None,
    messages: Sequence[Message],
    order: Sequence[int],
    texts: Sequence[str],
    options: Mapping[str, Any],
    encoder: TextEncoder,
) -> dict[int, ToolsText]:
    """What the template writes of the tools among `options`, by the text that it stands in: that by which
    one of the `texts` around contents, which stand in an `order`, is longer than without tools.

    Empty where the schema has no place for tools, where there is no such text, and where the template
    refuses the conversation without tools, or writes it in another order.
    """
    if layout is None or not options.get("tools"):
        return {}
    try:
        order_without, without = encoder.template.cut(messages, len(order), {**options, "tools": None})
    except ChatTemplateError:
        return {}
    grown = [len(text) - len(other) for text, other in zip(texts, without, strict=True)]
    place = max(range(len(texts)), key=grown.__getitem__)
    if order_without != list(order) or grown[place] <= 0:
        return {}
    return {place: ToolsText(layout, _added(texts[place], without[place]))}


def _added(text: str, other: str) -> tuple[str, ...]:
    """The text by which one is longer than another, as it may be seen."""
    start = len(common_start(text, other))
    end = len(common_start(text[::-1], other[::-1]))
    first = text[start : len(text) - min(end, len(other) - start)]
    second = text[min(start, len(other) - end) : len(text) - end]
    if start + end >= len(other):
        return tuple(dict.fromkeys((first, second)))
    # Something else has changed as well: tools are the longest of the lines that are not in both.
    lines, others = first.splitlines(keepends=True), other[start : len(other) - end].splitlines(keepends=True)
    changes = SequenceMatcher(None, others, lines).get_opcodes()
    blocks = [
        ("".join(lines[b:b_end]), "".join(others[a:a_end]))
        for kind, a, a_end, b, b_end in changes
        if kind != "equal"
    ]
    longest, replaced = max(blocks, key=lambda block: len(block[0]))
    return (longest,) if len(blocks) == 1 else _added(longest, replaced)
