"""Tails: what a unit holds behind something that its states have not seen is computed anew.

That is the schema's own text behind modules, such as the words that end a message around them, and a
module's text behind an argument or a module inside it.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit


def renew_tails(segments: Iterable[Segment]) -> list[Segment]:
    """The segments, those new that follow another segment of their unit with something else between."""
    renewed: list[Segment] = []
    # For each unit where it stands, how many segments there were when the last one of its own was put there.
    ended: dict[tuple[Unit, int], int] = {}
    for segment in segments:
        if isinstance(segment, CachedSegment):
            unit = segment.unit, segment.position
            if ended.get(unit, len(renewed)) < len(renewed):
                renewed.append(segment.renew(segment.end, "tail"))
                continue
            ended[unit] = len(renewed) + 1
        renewed.append(segment)
    return renewed
