"""New text between modules: it stands where positions are free (PML page, "Prompt")."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_promptcache.errors import quote
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.layout.units import new_piece
from vllm_promptcache.plan.resolve import Included, NewText, Resolution
from vllm_promptcache.plan.track import Track
from vllm_promptcache.pml.nodes import TextNode


def write_between(layout: SchemaLayout, resolution: Resolution, track: Track) -> None:
    """Adds the text between modules to the track, in document order; sets the ends of included modules.

    Adds an issue for each text that does not fit. A message's text moves what it stands before, and is left
    to others.
    """
    if not resolution.texts:
        return
    _set_ends(resolution.included)
    modules = {piece.start: one.module for one in resolution.included for piece in one.module.pieces}
    for text in resolution.texts:
        node = text.node
        if not isinstance(node, TextNode) or text.message is not None:
            continue
        token_ids = layout.encoder.encode(node.text)
        if not token_ids:
            continue
        start, end = track.room(_start(text, track))
        if end is None or len(token_ids) <= end - start:
            track.put(new_piece(token_ids, start, node.place.label("prompt")))
            continue
        what = f"the text of {quote(modules[end].path)}" if end in modules else "what is included next"
        what = f"the text has {len(token_ids)} tokens; {end - start} fit before {what}"
        resolution.issues.add(node.place.issue(what))


def _set_ends(included: Sequence[Included]) -> None:
    """Sets the ends of included modules, which know those of their arguments only."""
    # From the innermost out: a module ends where the last thing included in it ends.
    for one in reversed(included):
        module = one.module
        one.end = max(one.end, module.start if module.own_end is None else module.own_end)
        if one.parent is not None:
            one.parent.end = max(one.parent.end, one.end)


def _start(text: NewText, track: Track) -> int:
    """Where text starts that has a module after it."""
    if text.before is not None:
        return text.before.end
    if text.after is not None:
        return max(text.parent.module.start, track.end_before(text.after.module.start))
    return text.parent.end
