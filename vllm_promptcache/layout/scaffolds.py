"""Scaffolds: modules that are encoded together once more (PML page, "Encoding"; paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.draft import ModuleDraft, Run
from vllm_promptcache.layout.parts import ScaffoldLayout, ScaffoldPiece
from vllm_promptcache.layout.units import make_unit, piece_ranges
from vllm_promptcache.plan.plan import CachedSegment
from vllm_promptcache.plan.unit import Unit
from vllm_promptcache.pml.names import flatten_roles
from vllm_promptcache.pml.nodes import ScaffoldNode, SchemaNode


def make_scaffolds(
    schema: SchemaNode,
    root: ModuleDraft,
    units: Mapping[int, Unit],
    issues: IssueList,
) -> list[ScaffoldLayout]:
    """The scaffolds of a schema in the order in which they are preferred: most modules, then first.

    `units` maps the index of each module that has one to its unit. Names have been checked before.
    """
    scaffolds: list[tuple[int, ScaffoldLayout]] = []
    seen: set[int] = set()
    for node in flatten_roles(schema.children):
        if not isinstance(node, ScaffoldNode):
            continue
        chains = sorted((_chain(root, path) for path in node.modules), key=lambda chain: chain[-1].index)
        listed = [chain[-1] for chain in chains]
        required = _mask(listed)
        if required in seen:
            issues.add(node.place.at("modules").issue("another scaffold names the same modules"))
            continue
        seen.add(required)
        scaffold = _make_scaffold(schema, chains, units)
        if scaffold is not None:
            scaffolds.append((len(listed), scaffold))
    # sort() keeps document order among equals.
    return [scaffold for _, scaffold in sorted(scaffolds, key=lambda item: -item[0])]


def _make_scaffold(
    schema: SchemaNode,
    chains: Sequence[Sequence[ModuleDraft]],
    units: Mapping[int, Unit],
) -> ScaffoldLayout | None:
    listed = [chain[-1] for chain in chains]
    listed_indexes = {module.index for module in listed}
    covered = {module.index: module for module in listed}
    for module in listed:
        covered.update((stand_in.index, stand_in) for stand_in in _stand_ins(module, listed_indexes))
    enclosing = {module.index for chain in chains for module in chain[:-1]} - covered.keys()
    if schema.encode == "isolated":
        enclosing = set()
    context = [units[index] for index in sorted(enclosing) if index in units]
    owned = [(run, module.index) for module in covered.values() for run in module.runs]
    owned.sort(key=lambda item: item[0].start)
    paths = [module.path.partition("/")[2] for module in listed]
    unit = make_unit(f"{schema.name}:{'+'.join(paths)}", [run for run, _ in owned], context)
    if unit is None:
        return None
    return ScaffoldLayout(unit, _mask(listed), _mask(covered.values()), _pieces(unit, owned))


def _pieces(unit: Unit, owned: Sequence[tuple[Run, int]]) -> tuple[ScaffoldPiece, ...]:
    owners = np.concatenate([np.full(len(run.token_ids), index, np.int64) for run, index in owned])
    pieces = []
    for start, end in piece_ranges(unit, owners):
        first, last = int(unit.position_ids[start]), int(unit.position_ids[end - 1])
        pieces.append(ScaffoldPiece(int(owners[start]), first, last + 1, CachedSegment(unit, start, end)))
    return tuple(pieces)


def _chain(root: ModuleDraft, path: Sequence[str]) -> list[ModuleDraft]:
    """The modules on the way to the one at `path`: the schema first, the module itself last."""
    chain = [root]
    for name in path:
        chain.append(next(child for child in chain[-1].children if child.node.name == name))
    return chain


def _stand_ins(module: ModuleDraft, listed: set[int]) -> Iterator[ModuleDraft]:
    """The members that stand for unions inside a listed module, at any depth, as far as unlisted.

    What hangs below another member of such a union is left alone: it would take the same positions.
    """
    for child in module.children:
        if child.union is None:
            yield from _stand_ins(child, listed)
        elif child.node.name == child.union.node.scaffold and child.cache:
            others = [other for other in module.children if other.union is child.union and other is not child]
            if any(_holds_listed(other, listed) for other in others):
                continue
            if child.index not in listed:
                yield child
            yield from _stand_ins(child, listed)


def _holds_listed(module: ModuleDraft, listed: set[int]) -> bool:
    return module.index in listed or any(_holds_listed(child, listed) for child in module.children)


def _mask(modules: Iterable[ModuleDraft]) -> int:
    mask = 0
    for module in modules:
        mask |= 1 << module.index
    return mask
