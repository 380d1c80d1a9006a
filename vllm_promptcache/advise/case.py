"""A question, ready to be planned over other layouts: the same tokens at the same positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.nodes import PromptNode

# What the composer calls the text that follows a prompt's PML.
_TAIL_SOURCES = ("messages", "prompt")


@dataclass(frozen=True, eq=False)
class Case:
    """A question: its ``node``, and its ``plan`` with nothing repaired."""

    node: PromptNode
    plan: Plan

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The units that are reused, each once, in position order; not those that are only context."""
        reused = [s.unit for s in self.plan.segments if isinstance(s, CachedSegment)]
        return tuple(dict.fromkeys(reused))

    def over(self, layout: SchemaLayout) -> Plan:
        """The plan of the same question over another layout of its schema. Raises PMLError."""
        return build_plan(layout, self.node, self._tail)

    def with_unit_anew(self, unit: Unit) -> Plan:
        """The plan in which one unit alone is computed anew, in sight of everything before it."""
        segments = [
            s.renew(s.end, "anew") if isinstance(s, CachedSegment) and s.unit is unit else s
            for s in self.plan.segments
        ]
        return replace(self.plan, segments=tuple(segments))

    @property
    def _tail(self) -> Sequence[tuple[Sequence[int], str]]:
        new = [s for s in self.plan.segments if isinstance(s, NewSegment)]
        return [(s.token_ids, s.source) for s in new if s.source in _TAIL_SOURCES]
