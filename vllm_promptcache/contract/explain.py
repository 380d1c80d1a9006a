"""A plan as JSON (PML page, "Explaining a prompt")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vllm_promptcache.contract.plan import CachedSegment, Plan, Segment
from vllm_promptcache.contract.unit import Placement, Unit


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan in JSON's types, as `explain --json` and the endpoint of the same name print it."""
    fields, units, segments = plan_parts(plan)
    return {**fields, "units": list(units), "segments": list(segments)}


def placed_names(plan: Plan) -> dict[str, Placement]:
    """Where the units of a plan stand, by the names that `plan_to_json` gives them."""
    return {name: Placement(unit.digest, unit.home + moved) for (unit, moved), name in _names(plan).items()}


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
    names = _names(plan)
    units = (_unit(unit, moved, names) for unit, moved in plan.placed_units)
    num_plain = num_plain_segments(plan.segments)
    return fields, units, (_segment(s, names, is_plain=i < num_plain) for i, s in enumerate(plan.segments))


def plan_size(plan: Plan) -> int:
    """About how many bytes the plan takes as JSON: at least half of it, and at most four times as many."""
    num_bytes = 300 + 16 * plan.num_new_tokens + 100 * len(plan.segments)
    for unit, _ in plan.placed_units:
        num_bytes += 180 + 22 * unit.num_tokens + len(unit.id)
        num_bytes += sum([len(seen.id) + 4 for seen in unit.context])
    return num_bytes


Names = dict[tuple[Unit, int], str]


def _names(plan: Plan) -> Names:
    """What units are called where they stand: by their ids, with the position where they are moved. Each has
    a name of its own, though a module may be called as another one where that stands."""
    names: Names = {}
    taken: set[str] = set()
    for unit, moved in sorted(plan.placed_units, key=lambda placed: placed[1] != 0):
        called = name = f"{unit.id}@{unit.home + moved}" if moved else unit.id
        number = 1
        while name in taken:
            number += 1
            name = f"{called}#{number}"
        taken.add(name)
        names[unit, moved] = name
    return names


def _unit(unit: Unit, moved: int, names: Names) -> dict[str, Any]:
    return {
        "id": names[unit, moved],
        "digest": unit.digest,
        "context": [names[seen, moved] for seen in unit.context],
        "token_ids": unit.token_ids.tolist(),
        "position_ids": (unit.position_ids + moved).tolist(),
        "kept": unit.kept.tolist(),
    }


def num_plain_segments(segments: Sequence[Segment]) -> int:
    """How many segments at the start are a plain prefix: new, without a gap from the first position on."""
    position = 0
    for index, segment in enumerate(segments):
        if isinstance(segment, CachedSegment) or segment.first_position != position:
            return index
        position += segment.num_tokens
    return len(segments)


def _segment(segment: Segment, names: Names, *, is_plain: bool) -> dict[str, Any]:
    if isinstance(segment, CachedSegment):
        return {"unit": names[segment.unit, segment.moved], "start": segment.start, "end": segment.end}
    return {
        "new": True,
        **({"plain": True} if is_plain else {}),
        **({"repaired": True} if segment.is_repair else {}),
        "token_ids": list(segment.token_ids),
        "position_ids": segment.position_ids.tolist(),
        "source": segment.source,
    }
