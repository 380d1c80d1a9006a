"""A plan as JSON (PML page, "Explaining a prompt")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vllm_promptcache.contract.plan import CachedSegment, Plan, Segment
from vllm_promptcache.contract.unit import Unit


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan in JSON's types, as `explain --json` and the endpoint of the same name print it."""
    fields, units, segments = plan_parts(plan)
    return {**fields, "units": list(units), "segments": list(segments)}


def plan_parts(plan: Plan) -> tuple[dict[str, Any], Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
    """The plan in JSON's types: its short fields, its units and its segments, one by one."""
    fields = {
        "schema": plan.schema,
        "digest": plan.digest,
        "num_cached_tokens": plan.num_cached_tokens,
        "num_new_tokens": plan.num_new_tokens,
        "num_repaired_tokens": plan.num_repaired_tokens,
        "next_position": plan.next_position,
        **({"notes": list(plan.notes)} if plan.notes else {}),
    }
    units = (_unit(unit, moved) for unit, moved in plan.placed_units)
    num_plain = _num_plain(plan.segments)
    return fields, units, (_segment(s, is_plain=i < num_plain) for i, s in enumerate(plan.segments))


def plan_size(plan: Plan) -> int:
    """About how many bytes the plan takes as JSON: at least half of it, and at most four times as many."""
    num_bytes = 300 + 16 * plan.num_new_tokens + 100 * len(plan.segments)
    for unit, _ in plan.placed_units:
        num_bytes += 180 + 22 * unit.num_tokens + len(unit.id)
        num_bytes += sum([len(seen.id) + 4 for seen in unit.context])
    return num_bytes


def _name(unit: Unit, moved: int) -> str:
    return f"{unit.id}@{unit.home + moved}" if moved else unit.id


def _unit(unit: Unit, moved: int) -> dict[str, Any]:
    return {
        "id": _name(unit, moved),
        "digest": unit.digest,
        "context": [_name(seen, moved) for seen in unit.context],
        "token_ids": unit.token_ids.tolist(),
        "position_ids": (unit.position_ids + moved).tolist(),
        "kept": unit.kept.tolist(),
    }


def _num_plain(segments: Sequence[Segment]) -> int:
    """How many segments at the start are a plain prefix: new, without a gap from the first position on."""
    position = 0
    for index, segment in enumerate(segments):
        if isinstance(segment, CachedSegment) or segment.first_position != position:
            return index
        position += segment.num_tokens
    return len(segments)


def _segment(segment: Segment, *, is_plain: bool) -> dict[str, Any]:
    if isinstance(segment, CachedSegment):
        return {"unit": _name(segment.unit, segment.moved), "start": segment.start, "end": segment.end}
    return {
        "new": True,
        **({"plain": True} if is_plain else {}),
        **({"repaired": True} if segment.is_repair else {}),
        "token_ids": list(segment.token_ids),
        "position_ids": segment.position_ids.tolist(),
        "source": segment.source,
    }
