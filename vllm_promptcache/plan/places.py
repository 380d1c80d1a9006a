"""Where the parts of a prompt stand: at home, or as much further on as new text before them needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.layout.parts import Piece
from vllm_promptcache.plan.turns import AnyPart, Floating


def place_parts(parts: Iterable[AnyPart]) -> list[Segment]:
    """The segments of parts in order.

    Flowing text, and tools, stand right behind what is before them. A piece stands at home where that leaves
    room for what is before it; else it, and all that is behind it, stands as many positions further on as are
    missing. What a unit holds behind such a place is new: its states stand where the unit begins.
    """
    segments: list[Segment] = []
    moved: dict[Unit, int] = {}
    end = shift = 0
    for part in parts:
        if isinstance(part, Piece):
            shift = max(shift, end - part.start)
            end = part.end + shift
            _add(segments, _moved(part.segment, shift, moved))
        elif isinstance(part, Floating):
            segments.append(CachedSegment(part.unit, 0, part.unit.num_tokens, end))
            end += part.unit.num_tokens
        elif part.token_ids:
            segments.append(NewSegment(part.token_ids, end, part.source))
            end += len(part.token_ids)
    return segments


def _moved(segment: Segment, shift: int, moved: dict[Unit, int]) -> Segment:
    if isinstance(segment, NewSegment):
        return replace(segment, first_position=segment.first_position + shift) if shift else segment
    if moved.setdefault(segment.unit, shift) == shift:
        return replace(segment, position=segment.position + shift) if shift else segment
    there = replace(segment, position=segment.position + shift)
    return there.renew(there.end, "tail")


def _add(segments: list[Segment], segment: Segment) -> None:
    """Adds a segment, as part of the last one where it goes on with that."""
    last = segments[-1] if segments else None
    if isinstance(last, CachedSegment) and isinstance(segment, CachedSegment):
        goes_on = (last.unit, last.end, last.position) == (segment.unit, segment.start, segment.position)
        if goes_on and last.end_position == segment.first_position:
            segments[-1] = last.part(last.start, segment.end)
            return
    segments.append(segment)
