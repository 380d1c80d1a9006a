"""The advisor: what each module's isolation does to the user's questions, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

from vllm_promptcache.advise.advice import Advice, ModuleEffect, RemedyEffect
from vllm_promptcache.advise.case import Case
from vllm_promptcache.advise.comparison import Comparison, Difference, Engine
from vllm_promptcache.advise.remedies import Remedy, SchemaChanges, repairs_for
from vllm_promptcache.blocks.geometry import lay_out_unit
from vllm_promptcache.contract.repair import TAIL
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.pml.nodes import SchemaNode
from vllm_promptcache.repairs.repaired import repaired


class Advisor:
    """Measures schemas on questions over them.

    ``build`` lays a changed schema out. ``tell`` hears of progress: how many more prompts were asked, and
    how many more are known to be asked.
    """

    def __init__(
        self,
        engine: Engine,
        build: Callable[[SchemaNode], SchemaLayout],
        block_size: int,
        tell: Callable[[int, int], None] = lambda done, known: None,
    ) -> None:
        self._engine = engine
        self._build = build
        self._block_size = block_size
        self._tell = tell

    def advise(self, schema: SchemaNode, layout: SchemaLayout, cases: Sequence[Case]) -> Advice:
        """All about one schema, of which ``layout`` is the layout, by questions over it."""
        repairs = repairs_for(layout, cases)
        self._tell(0, sum(2 + len(case.units) + len(repairs) for case in cases))
        comparison = Comparison(self._engine, layout, cases, lambda done: self._tell(done, 0))
        now = comparison.differences(layout, [(i, case.plan) for i, case in enumerate(cases)])
        causes = _causes(comparison, layout, cases, now)
        effects = [self._effect(remedy, layout, cases, comparison) for remedy in repairs]
        changes = SchemaChanges(
            schema,
            self._build,
            {m.unit: m.path.partition("/")[2] for m in layout.modules[1:] if m.unit is not None},
            {unit: sum(found) for unit, found in causes.items()},
        )
        remedies = changes.find(cases, with_tail=any(remedy.repair == TAIL for remedy in repairs))
        self._tell(0, len(remedies) * len(cases))
        effects += [self._effect(remedy, layout, cases, comparison) for remedy in remedies]
        modules = [
            ModuleEffect(unit.id, len(found), int(unit.kept.sum()), mean(found))
            for unit, found in causes.items()
        ]
        return Advice(
            schema.name,
            schema.encode,
            len(cases),
            tuple(sorted(modules, key=lambda m: -m.causes * m.questions)),
            _summary("now", now),
            tuple(effects),
        )

    def _effect(
        self, remedy: Remedy, layout: SchemaLayout, cases: Sequence[Case], comparison: Comparison
    ) -> RemedyEffect:
        plans = [case.plan if remedy.layout is layout else case.over(remedy.layout) for case in cases]
        plans = [repaired(plan, remedy.repair) for plan in plans]
        pairs = zip(plans, cases, strict=True)
        return _summary(
            remedy.name,
            comparison.differences(remedy.layout, list(enumerate(plans))),
            mean([float(plan.num_new_tokens - case.plan.num_new_tokens) for plan, case in pairs]),
            self._num_blocks(remedy.layout) - self._num_blocks(layout),
        )

    def _num_blocks(self, layout: SchemaLayout) -> int:
        return sum(
            lay_out_unit(unit.position_ids, unit.kept, self._block_size, unit.breaks).num_blocks
            for unit in layout.units
        )


def _causes(
    comparison: Comparison, layout: SchemaLayout, cases: Sequence[Case], now: Sequence[Difference]
) -> dict[Unit, list[float]]:
    """For each unit and each question that includes it, the divergence that is gone without its isolation."""
    anew = [(place, unit) for place, case in enumerate(cases) for unit in case.units]
    plans = [(place, cases[place].with_unit_anew(unit)) for place, unit in anew]
    causes: dict[Unit, list[float]] = {}
    for (place, unit), found in zip(anew, comparison.differences(layout, plans), strict=True):
        causes.setdefault(unit, []).append(now[place].divergence - found.divergence)
    return causes


def _summary(
    name: str, differences: Sequence[Difference], recomputed: float = 0.0, blocks: int = 0
) -> RemedyEffect:
    changed = sum(difference.is_changed for difference in differences)
    divergence = mean([difference.divergence for difference in differences])
    return RemedyEffect(name, divergence, changed, recomputed, blocks)
