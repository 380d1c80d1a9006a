"""Building a schema's layout: everything a prompt over it will need, once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import chain
from typing import Any

from vllm_promptcache.contract.plan import NewSegment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import IssueList, PMLError, quote
from vllm_promptcache.layout.draft import ModuleDraft, UnionDraft, draft_schema
from vllm_promptcache.layout.encoder import TextEncoder, Tokenizer
from vllm_promptcache.layout.parts import (
    ModuleLayout,
    ParameterLayout,
    PoolLayout,
    ScaffoldLayout,
    ToolsLayout,
    Trailing,
    UnionLayout,
)
from vllm_promptcache.layout.pools import make_pool, units_of
from vllm_promptcache.layout.scaffolds import make_scaffolds
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.layout.tools import lay_out_tools
from vllm_promptcache.layout.units import lay_out_module, make_unit
from vllm_promptcache.pml.limits import DEFAULT_LIMITS, Limits
from vllm_promptcache.pml.nodes import PoolNode, SchemaNode

DEFAULT_MIN_FREE_TOKENS = 16


def build_layout(
    schema: SchemaNode,
    tokenizer: Tokenizer | TextEncoder,
    max_model_len: int,
    min_free_tokens: int = DEFAULT_MIN_FREE_TOKENS,
    limits: Limits = DEFAULT_LIMITS,
) -> SchemaLayout:
    """Lays out a schema (PML page, "Positions" and "Encoding").

    Give the same `TextEncoder` for all schemas of a model: it remembers what it found out. Raises
    PMLError where the schema with `min_free_tokens` does not fit `max_model_len` positions, where a
    parameter's text is longer than its room, where the model has no such role, and beyond `limits`.
    """
    issues = IssueList()
    encoder = TextEncoder.of(tokenizer)
    root = draft_schema(schema, encoder, max_model_len, issues, limits)
    if root.end + min_free_tokens > max_model_len:
        what = (
            f"the schema takes {root.end} positions; with {min_free_tokens} to be left free that is more"
            f" than the model's {max_model_len}"
        )
        large = root.largest(max_model_len - min_free_tokens)
        if large is not None:
            what += f"; {quote(large.node.name)} alone takes {large.end - large.start}"
        issues.add((large or root).node.place.issue(what))
    issues.raise_if_any()
    builder = _Builder(schema, max_model_len, limits, issues)
    builder.module(root, None, (), ())
    modules = tuple([builder.modules[index] for index in range(len(builder.modules))])
    scaffolds = make_scaffolds(schema, root, builder.units, issues)
    issues.raise_if_any()
    members = [units_of(module.pool.members.values()) for module in modules if module.pool is not None]
    tools = lay_out_tools(root.tools, schema, encoder) if root.tools is not None else None
    units = (
        *(tools.context if tools is not None else ()),
        *builder.units.values(),
        *chain(*members),
        *(scaffold.unit for scaffold in scaffolds),
    )
    return SchemaLayout(
        name=schema.name,
        encode=schema.encode,
        digest=_digest(schema, modules, scaffolds, root.trailing, tools),
        num_positions=root.end,
        max_model_len=max_model_len,
        modules=modules,
        units=units,
        unit_places={unit: place for place, unit in enumerate(units)},
        scaffolds=tuple(scaffolds),
        trailing=tuple(root.trailing),
        tools=tools,
        encoder=encoder,
        node=schema,
        has_bos=root.has_bos,
    )


class _Builder:
    """Makes modules' layouts from the schema down, so that contexts are there before what sees them."""

    def __init__(self, schema: SchemaNode, max_model_len: int, limits: Limits, issues: IssueList) -> None:
        self._max_model_len = max_model_len
        self._schema = schema
        self._issues = issues
        self._limits = limits
        self._num_contexts = self._num_seen = 0
        # Stems that one unit is computed together with: others have the same context once more.
        self._joined: set[Unit | None] = set()
        self._sees_context = schema.encode != "isolated"
        self._sees_siblings = schema.encode == "sequence"
        self.units: dict[int, Unit] = {}
        self.modules: dict[int, ModuleLayout] = {}

    def module(
        self,
        draft: ModuleDraft,
        union: UnionLayout | None,
        context: tuple[Unit, ...],
        around: tuple[Unit, ...],
    ) -> ModuleLayout:
        """A module's layout, and those of all in it; `around` are what it sees of the modules around it."""
        unit = make_unit(draft.path, draft.runs, context) if draft.cache else None
        if unit is not None:
            self._count_contexts(unit)
            self.units[draft.index] = unit
            if self._sees_context:
                context, around = (*context, unit), (*around, unit)
        children: dict[str, ModuleLayout] = {}
        unions = {id(union): _union(union) for union in draft.unions}
        # What siblings further down may see, and the union each is in.
        before: list[tuple[UnionDraft | None, Unit]] = []
        for child in draft.children:
            child_union = unions[id(child.union)] if child.union else None
            seen = [unit for union_of, unit in before if union_of is None or union_of is not child.union]
            layout = self.module(child, child_union, (*context, *seen), around)
            if self._sees_siblings and _stands_for_union(child):
                before += [(child.union, unit) for unit in self._units_under(child)]
            children[layout.name] = layout
            if child_union is not None:
                members = child_union.members
                assert isinstance(members, dict)
                members[layout.name] = layout
        pool = None
        if isinstance(draft.node, PoolNode):
            pool = make_pool(draft, around, self._issues, self._count_contexts, self._max_model_len)
        named = {union.name: union for union in unions.values() if union.name is not None}
        module = lay_out_module(draft, unit, children, named, union, pool)
        self.modules[draft.index] = module
        return module

    def _count_contexts(self, unit: Unit) -> None:
        self._num_seen += len(unit.context)
        joins = unit.joins and unit.stem not in self._joined
        self._joined.add(unit.stem)
        self._num_contexts += 1 if joins else len(unit.context)
        for number, limit in (
            (self._num_contexts, self._limits.max_contexts),
            (self._num_seen, self._limits.max_seen),
        ):
            if number > limit:
                what = f"its modules see others more than {limit} times: make them fewer, or not"
                raise PMLError([self._schema.place.issue(f'{what} encode="sequence"')])

    def _units_under(self, draft: ModuleDraft) -> Iterator[Unit]:
        """What may be seen behind a module: its unit and those inside it, of unions what stands for them."""
        if draft.index in self.units:
            yield self.units[draft.index]
        for child in draft.children:
            if _stands_for_union(child):
                yield from self._units_under(child)


def _stands_for_union(draft: ModuleDraft) -> bool:
    """Whether what comes after may count on a module: it is in no union, or names itself for its union."""
    return draft.union is None or draft.union.node.scaffold == draft.node.name


def _union(draft: UnionDraft) -> UnionLayout:
    return UnionLayout(draft.index, draft.node.name, draft.start, draft.end, {}, draft.node.scaffold)


def _digest(
    schema: SchemaNode,
    modules: Sequence[ModuleLayout],
    scaffolds: Sequence[ScaffoldLayout],
    trailing: Sequence[Trailing],
    tools: ToolsLayout | None,
) -> str:
    structure = {
        "name": schema.name,
        "encode": schema.encode,
        "modules": [_module_structure(module) for module in modules],
        "scaffolds": [[s.unit.id, s.unit.digest, s.required, s.covered] for s in scaffolds],
        "trailing": [list(text.token_ids) for text in trailing],
        **({"tools": [unit.digest for unit in tools.context]} if tools else {}),
    }
    return sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()


def _module_structure(module: ModuleLayout) -> list[Any]:
    new = [p.segment for p in module.pieces if isinstance(p.segment, NewSegment)]
    return [
        module.path,
        module.start,
        module.end,
        module.cache,
        [module.union.index, module.union.name] if module.union else None,
        module.unit.digest if module.unit else None,
        [[list(segment.token_ids), segment.position_ids.tolist()] for segment in new],
        [_parameter_structure(parameter) for parameter in module.parameters.values()],
        module.messages,
        _pool_structure(module.pool) if module.pool else None,
    ]


def _pool_structure(pool: PoolLayout) -> list[Any]:
    separators = [node.text if node else "" for node in (pool.node.before, pool.node.after)]
    members = [_module_structure(member) for member in pool.members.values()]
    return [pool.num_positions, separators, members]


def _parameter_structure(parameter: ParameterLayout) -> list[Any]:
    default = parameter.default.segment if parameter.default else None
    token_ids = list(default.token_ids) if isinstance(default, NewSegment) else None
    return [parameter.name, parameter.start, parameter.num_positions, parameter.required, token_ids]
