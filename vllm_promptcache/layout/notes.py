"""What a schema's author may not expect of it: no mistakes, but worth saying."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_promptcache.errors import ChatTemplateError, quote
from vllm_promptcache.layout.schema import SchemaLayout

# So many tokens of the schema's own text behind modules are worth a word: the default repair computes them.
_MANY_TOKENS = 256


def notes_on(layout: SchemaLayout) -> Iterator[str]:
    """Notes on a schema, a sentence each."""
    try:
        has_system = layout.encoder.template.has_role("system")
    except ChatTemplateError:
        return
    if not layout.has_roles:
        where = "is the system message" if has_system else "begins the first user's turn"
        yield f"it has no roles: over chat it {where}"
    else:
        outside = [
            quote(child.name)
            for child in layout.root.children.values()
            if not child.messages and not _is_in_a_message(layout, child.start)
        ]
        if outside:
            yield f"{', '.join(outside)} in no message: over chat in the user's turn that follows"
    if layout.tools is not None and not layout.encoder.template.writes_tools:
        yield "it has a place for tools, and the model's chat template writes none"
    behind = _num_tokens_behind_modules(layout)
    if behind > _MANY_TOKENS:
        yield f"{behind} tokens of its own text stand behind modules and are computed in each request"


def _is_in_a_message(layout: SchemaLayout, position: int) -> bool:
    return any(message.start <= position < message.end for message in layout.root.messages)


def _num_tokens_behind_modules(layout: SchemaLayout) -> int:
    first = min((child.start for child in layout.root.children.values()), default=None)
    if first is None:
        return 0
    return sum(piece.end - max(piece.start, first) for piece in layout.root.pieces if piece.end > first)
