"""A question, ready to be planned over other layouts: the same tokens at the same positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_chat, build_resolved
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.nodes import PromptNode


@dataclass(frozen=True, eq=False)
class Case:
    """A question: its ``plan`` with nothing repaired, and what plans it ``over`` another layout of its
    schema, which raises PMLError where it does not fit."""

    plan: Plan
    over: Callable[[SchemaLayout], Plan]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The units that are reused, each once, in position order; not those that are only context."""
        reused = [s.unit for s in self.plan.segments if isinstance(s, CachedSegment)]
        return tuple(dict.fromkeys(reused))

    def with_unit_anew(self, unit: Unit) -> Plan:
        """The plan in which one unit alone is computed anew, in sight of everything before it."""
        segments = [
            s.renew(s.end, "anew") if isinstance(s, CachedSegment) and s.unit is unit else s
            for s in self.plan.segments
        ]
        return replace(self.plan, segments=tuple(segments))


def plan_over(layout: SchemaLayout, node: PromptNode, turns: Turns | None, text: str = "") -> Plan:
    """The plan of a question over a layout: a chat's, or else that of a prompt with a text behind it.

    Raises PMLError where it does not fit.
    """
    resolution = resolve_prompt(layout, node, IssueList())
    if turns is not None:
        return build_chat(layout, resolution, turns)
    return build_resolved(layout, resolution, [(layout.encoder.encode(text), "prompt")])
