"""Plain prompts: what is asked of a model whose states cannot be composed."""

from __future__ import annotations

from dataclasses import replace

from vllm_promptcache.contract.plan import NewSegment, Plan
from vllm_promptcache.contract.repair import RECURRENT
from vllm_promptcache.repairs.repaired import without_reuse


def plain_prompt(plan: Plan) -> Plan:
    """A plan's tokens, all new, at positions from 0 on without gaps; a note says so.

    A recurrent layer knows no positions, and so no gaps.
    """
    segments: list[NewSegment] = []
    position = 0
    for segment in without_reuse(plan).segments:
        assert isinstance(segment, NewSegment)
        segments.append(replace(segment, first_position=position))
        position += segment.num_tokens
    return replace(plan, segments=tuple(segments), units=(), notes=(*plan.notes, RECURRENT))
