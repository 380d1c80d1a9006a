"""A plan with a repair carried out: fewer tokens reused, the same tokens at the same positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from vllm_promptcache.contract.plan import CachedSegment, Plan, Segment
from vllm_promptcache.contract.repair import FULL, NONE, Repair
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.repairs.auto import Auto
from vllm_promptcache.repairs.close import Close
from vllm_promptcache.repairs.full import Full
from vllm_promptcache.repairs.link import Link
from vllm_promptcache.repairs.step import RepairStep
from vllm_promptcache.repairs.tail import Tail

# Of two steps that make as much of a segment new, the first names it.
STEPS: dict[str, Callable[..., RepairStep]] = {
    "full": Full,
    "tail": Tail,
    "close": Close,
    "auto": Auto,
    "link": Link,
}


def steps_of(repair: Repair, schema: str) -> dict[str, RepairStep]:
    """A repair's steps by their names, in the order of `STEPS`, for prompts over a schema of this name."""
    given: dict[str, tuple[object, ...]] = {
        step.name: () if step.number is None else (step.number,) for step in repair.steps
    }
    if "auto" in given:
        given["auto"] = (schema,)
    return {name: make(*given[name]) for name, make in STEPS.items() if name in given}


def repaired(plan: Plan, repair: Repair) -> Plan:
    """What is asked of the engine instead of a plan that nothing was repaired in (docs/semantics.md).

    New is what any of the repair's steps makes new of the plan as it is.
    """
    if repair == NONE:
        return plan
    steps = steps_of(repair, plan.schema)
    segments: Sequence[Segment] = list(_renewed(plan.segments, steps))
    for step in steps.values():
        segments = step.placed(segments)
    return replace(plan, units=_still_used(plan.units, segments), segments=tuple(segments))


def without_reuse(plan: Plan) -> Plan:
    """The plan that reuses nothing: the honest baseline of any comparison."""
    return repaired(plan, FULL)


def _renewed(segments: Sequence[Segment], steps: dict[str, RepairStep]) -> Iterator[Segment]:
    """The segments, of each reused one as many tokens new as the step that makes most of it new says."""
    counts = {name: step.renewed(segments) for name, step in steps.items()}
    for index, segment in enumerate(segments):
        name = max(counts, key=lambda name: counts[name][index])
        if isinstance(segment, CachedSegment) and (count := counts[name][index]):
            cut = segment.start + count
            yield segment.renew(cut, name)
            if cut < segment.end:
                yield segment.part(cut, segment.end)
        else:
            yield segment


def _still_used(units: Iterable[Unit], segments: Iterable[Segment]) -> tuple[Unit, ...]:
    """The units that segments name and those of their contexts, in the order given."""
    used: set[Unit] = set()
    pending = [segment.unit for segment in segments if isinstance(segment, CachedSegment)]
    while pending:
        unit = pending.pop()
        if unit not in used:
            used.add(unit)
            pending += unit.seen
    return tuple(unit for unit in units if unit in used)
