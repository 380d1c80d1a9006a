"""A plan as JSON (PML page, "Explaining a prompt")."""

from __future__ import annotations

from typing import Any

from vllm_promptcache.contract.plan import CachedSegment, Plan, Segment
from vllm_promptcache.contract.unit import Unit


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan in JSON's types, as `explain --json` and the endpoint of the same name print it."""
    return {
        "schema": plan.schema,
        "digest": plan.digest,
        "num_cached_tokens": plan.num_cached_tokens,
        "num_new_tokens": plan.num_new_tokens,
        "num_repaired_tokens": plan.num_repaired_tokens,
        "next_position": plan.next_position,
        "units": [_unit(unit) for unit in plan.units],
        "segments": [_segment(segment) for segment in plan.segments],
    }


def _unit(unit: Unit) -> dict[str, Any]:
    return {
        "id": unit.id,
        "context": [seen.id for seen in unit.context],
        "token_ids": unit.token_ids.tolist(),
        "position_ids": unit.position_ids.tolist(),
        "kept": unit.kept.tolist(),
    }


def _segment(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, CachedSegment):
        return {"unit": segment.unit.id, "start": segment.start, "end": segment.end}
    return {
        "new": True,
        **({"repaired": True} if segment.is_repair else {}),
        "token_ids": list(segment.token_ids),
        "position_ids": segment.position_ids.tolist(),
        "source": segment.source,
    }
