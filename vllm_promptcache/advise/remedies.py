"""Remedies: what could be changed about requests or a schema so that modules see more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from vllm_promptcache.advise.case import Case
from vllm_promptcache.advise.changes import checked, encoded, with_scaffold, without_cache
from vllm_promptcache.contract.repair import NONE, TAIL, Repair
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.pml.nodes import SchemaNode
from vllm_promptcache.repairs.repaired import repaired

# Tried on every question; one that makes the same plans as another before it is left out.
REPAIRS = tuple(map(Repair.parse, ("tail", "link:4", "link:16", "link:16+tail", "link:64", "link:64+tail")))


@dataclass(frozen=True, eq=False)
class Remedy:
    """One thing to do, by the name under which a user knows it: a repair, another layout, or both."""

    name: str
    layout: SchemaLayout
    repair: Repair = NONE


def repairs_for(layout: SchemaLayout, cases: Iterable[Case]) -> list[Remedy]:
    """The repairs that change the plan of any of the questions, each in another way."""
    cases = list(cases)
    found: list[Remedy] = []
    seen = [[case.plan.repaired_ranges for case in cases]]
    for repair in REPAIRS:
        ranges = [repaired(case.plan, repair).repaired_ranges for case in cases]
        if ranges not in seen:
            seen.append(ranges)
            found.append(Remedy(f"repair {repair}", layout, repair))
    return found


@dataclass(frozen=True, eq=False)
class SchemaChanges:
    """Finds changes of a schema that are worth trying.

    ``build`` lays a schema out; ``modules`` are the paths, as scaffolds name them, of the modules whose own
    units they are; ``causes`` is how much divergence a unit's isolation causes, over all questions.
    """

    schema: SchemaNode
    build: Callable[[SchemaNode], SchemaLayout]
    modules: Mapping[Unit, str]
    causes: Mapping[Unit, float]

    def find(self, cases: Sequence[Case], *, with_tail: bool) -> list[Remedy]:
        """What the schema could say instead; scaffolds and sequences are tried ``with_tail`` as well."""
        found: list[Remedy] = []
        for name, schema in self._changed(cases):
            try:
                layout = self.build(checked(schema))
            except PMLError:
                continue  # the schema says so already, or says what does not go together with it
            found.append(Remedy(name, layout))
            if with_tail and ("<scaffold" in name or name.startswith('encode="sequence"')):
                found.append(Remedy(f"{name}, repair {TAIL}", layout, TAIL))
        return found

    def _changed(self, cases: Sequence[Case]) -> Iterator[tuple[str, SchemaNode]]:
        bases = {"": self.schema}
        if self.schema.encode == "isolated":
            bases['encode="context", '] = encoded(self.schema, "context")
            yield 'encode="context"', encoded(self.schema, "context")
        if self.schema.encode != "sequence" and len(self.modules) > 1:
            yield 'encode="sequence"', encoded(self.schema, "sequence")
        for names in self._groups(cases):
            scaffold = f'<scaffold modules="{" ".join(names)}"/>'
            for prefix, base in bases.items():
                yield f"{prefix}{scaffold}", with_scaffold(base, [tuple(n.split("/")) for n in names])
        known = [unit for unit in self.causes if unit in self.modules]
        if known:
            worst = self.modules[max(known, key=lambda unit: self.causes[unit])]
            yield f'cache="false" on {worst}', without_cache(self.schema, tuple(worst.split("/")))

    def _groups(self, cases: Sequence[Case]) -> list[list[str]]:
        """Modules that a scaffold could hold: the pair that causes most, and what is oftenest together."""
        sets = [frozenset(unit for unit in case.units if unit in self.modules) for case in cases]
        pairs: Counter[frozenset[Unit]] = Counter()
        for included in sets:
            pairs.update(frozenset(pair) for pair in combinations(included, 2))
        groups: list[frozenset[Unit]] = []
        if pairs:
            groups.append(
                max(pairs, key=lambda pair: (sum(self.causes.get(u, 0.0) for u in pair), pairs[pair]))
            )
            groups.append(Counter(s for s in sets if len(s) > 1).most_common(1)[0][0])
        return [sorted(self.modules[unit] for unit in group) for group in dict.fromkeys(groups)]
