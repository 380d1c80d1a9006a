"""A plan with a repair carried out: fewer tokens reused, the same tokens at the same positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_promptcache.contract.plan import CachedSegment, Plan, Segment
from vllm_promptcache.contract.repair import FULL, NONE, Repair
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.repairs.close import close_up
from vllm_promptcache.repairs.link import renew_heads
from vllm_promptcache.repairs.tail import renew_tails


def repaired(plan: Plan, repair: Repair) -> Plan:
    """What is asked of the engine instead of a plan that nothing was repaired in (docs/semantics.md)."""
    if repair == NONE:
        return plan
    segments: Sequence[Segment] = plan.segments
    if repair.full:
        segments = [s.renew(s.end, "full") if isinstance(s, CachedSegment) else s for s in segments]
    else:
        if repair.tail:
            segments = renew_tails(segments)
        if repair.link_tokens:
            segments = renew_heads(segments, repair.link_tokens)
        if repair.close:
            segments = close_up(segments)
    return Plan(plan.schema, plan.digest, _still_used(plan.units, segments), tuple(segments))


def without_reuse(plan: Plan) -> Plan:
    """The plan that reuses nothing: the honest baseline of any comparison."""
    return repaired(plan, FULL)


def _still_used(units: Iterable[Unit], segments: Iterable[Segment]) -> tuple[Unit, ...]:
    """The units that segments name and those of their contexts, in the order given."""
    used: set[Unit] = set()
    pending = [segment.unit for segment in segments if isinstance(segment, CachedSegment)]
    while pending:
        unit = pending.pop()
        if unit not in used:
            used.add(unit)
            pending += unit.context
    return tuple(unit for unit in units if unit in used)
