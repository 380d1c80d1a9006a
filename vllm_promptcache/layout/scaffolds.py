"""Scaffolds: modules that are encoded together once more (PML page, "Encoding"; paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.draft import ModuleDraft
from vllm_promptcache.layout.parts import ScaffoldLayout, ScaffoldPiece
from vllm_promptcache.layout.units import make_unit, piece_ranges
from vllm_promptcache.pml.names import flatten_roles, next_step
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
        ways = sorted((_way_to(root, path) for path in node.modules), key=lambda way: way[-1].index)
        listed = [way[-1] for way in ways]
        required = _mask(listed)
        if required in seen:
            issues.add(node.place.at("modules").issue("another scaffold names the same modules"))
            continue
        seen.add(required)
        scaffold = _make_scaffold(schema, ways, units)
        if scaffold is not None:
            scaffolds.append((len(listed), scaffold))
    # sort() keeps document order among equals.
    return [scaffold for _, scaffold in sorted(scaffolds, key=lambda item: -item[0])]


def _make_scaffold(
    schema: SchemaNode,
    ways: Sequence[Sequence[ModuleDraft]],
    units: Mapping[int, Unit],
) -> ScaffoldLayout | None:
    listed = [way[-1] for way in ways]
    listed_indexes = {module.index for module in listed}
    covered = {module.index: module for module in listed}
    holding: dict[int, set[int]] = {}
    for module in chain.from_iterable(ways):
        if module.union is not None:
            holding.setdefault(module.union.index, set()).add(module.index)
    for module in listed:
        stand_ins = _stand_ins(module, listed_indexes, holding)
        covered.update((stand_in.index, stand_in) for stand_in in stand_ins)
    enclosing = {module.index for way in ways for module in way[:-1]} - covered.keys()
    if schema.encode == "isolated":
        enclosing = set()
    context = [units[index] for index in sorted(enclosing) if index in units]
    owned = [(run, module.index) for module in covered.values() for run in module.runs]
    owned.sort(key=lambda item: item[0].start)
    paths = [module.path.partition("/")[2] for module in listed]
    unit = make_unit(f"{schema.name}:{'+'.join(paths)}", [run for run, _ in owned], context)
    if unit is None:
        return None
    owners = np.concatenate([np.full(len(run.token_ids), index, np.int64) for run, index in owned])
    unit = replace(unit, breaks=_breaks(owners, listed_indexes))
    return ScaffoldLayout(unit, _mask(listed), _mask(covered.values()), _pieces(unit, owners))


def _breaks(owners: NDArray[np.int64], listed: set[int]) -> tuple[int, ...]:
    """Where a stand-in's text meets another module's: a prompt may include only one of them."""
    changes = np.flatnonzero(np.diff(owners)) + 1
    return tuple(int(i) for i in changes if not {int(owners[i - 1]), int(owners[i])} <= listed)


def _pieces(unit: Unit, owners: NDArray[np.int64]) -> tuple[ScaffoldPiece, ...]:
    pieces = []
    for start, end in piece_ranges(unit, owners):
        first, last = int(unit.position_ids[start]), int(unit.position_ids[end - 1])
        pieces.append(ScaffoldPiece(int(owners[start]), first, last + 1, CachedSegment(unit, start, end)))
    return tuple(pieces)


def _way_to(root: ModuleDraft, path: Sequence[str]) -> list[ModuleDraft]:
    """The modules on the way to the one at `path`: the schema first, the module itself last."""
    modules = [root]
    start = 0
    while start < len(path):
        names = modules[-1].children_by_name
        end = next_step(names, path, start)
        modules.append(names["/".join(path[start:end])])
        start = end
    return modules


def _stand_ins(
    module: ModuleDraft, listed: set[int], holding: Mapping[int, set[int]]
) -> Iterator[ModuleDraft]:
    """The members that stand for unions inside a listed module, at any depth, as far as unlisted.

    `holding` maps each union to its members that are listed or hold a listed module. What hangs below
    a member that does not stand for its union is left alone: it would take the same positions.
    """
    for child in module.children:
        if child.union is None:
            yield from _stand_ins(child, listed, holding)
        elif child.node.name == child.union.node.scaffold and child.cache:
            if holding.get(child.union.index, set()) - {child.index}:
                continue
            if child.index not in listed:
                yield child
            yield from _stand_ins(child, listed, holding)


def _mask(modules: Iterable[ModuleDraft]) -> int:
    mask = 0
    for module in modules:
        mask |= 1 << module.index
    return mask
