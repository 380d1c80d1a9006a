"""Tails: what a unit holds behind something that its states have not seen is computed anew."""

from __future__ import annotations

from dataclasses import replace

from vllm_promptcache.plan.plan import NewSegment, Plan, Segment


def renew_tails(plan: Plan) -> Plan:
    """The plan with each unit's segments computed anew that follow another segment of the same unit with
    something else between them.

    That is the schema's own text behind modules, such as the words that end a message around them, and a
    module's text behind an argument or a module inside it.
    """
    segments: list[Segment] = []
    begun: dict[str, int] = {}
    for segment in plan.segments:
        if not isinstance(segment, NewSegment):
            unit, start, end = segment.unit, segment.start, segment.end
            if begun.get(unit.id, len(segments)) < len(segments):
                first = int(unit.position_ids[start])
                segments.append(NewSegment(unit.token_list[start:end], first, f"tail:{unit.id}"))
                continue
            # Segments of one unit with nothing between them have seen each other.
            begun[unit.id] = len(segments) + 1
        segments.append(segment)
    return replace(plan, segments=tuple(segments))
