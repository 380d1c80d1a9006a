"""Changes of a schema that let its modules see more, made in its syntax tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vllm_promptcache.errors import IssueList
from vllm_promptcache.pml.names import check_names
from vllm_promptcache.pml.nodes import (
    ModuleNode,
    RoleNode,
    ScaffoldNode,
    SchemaChild,
    SchemaNode,
    UnionNode,
)

Path = tuple[str, ...]


def encoded(schema: SchemaNode, encode: str) -> SchemaNode:
    """The schema with another ``encode``."""
    return replace(schema, encode=encode)


def with_scaffold(schema: SchemaNode, modules: Iterable[Path]) -> SchemaNode:
    """The schema with one more scaffold over modules, each by its names from the schema on."""
    scaffold = ScaffoldNode(tuple(modules), schema.place)
    return replace(schema, children=(*schema.children, scaffold))


def without_cache(schema: SchemaNode, module: Path) -> SchemaNode:
    """The schema with ``cache="false"`` on a module."""
    return replace(schema, children=_without_cache(schema.children, module))


def checked(schema: SchemaNode) -> SchemaNode:
    """The schema, if what it says goes together. Raises PMLError."""
    issues = IssueList()
    check_names(schema, issues)
    issues.raise_if_any()
    return schema


def _without_cache(children: Sequence[SchemaChild], path: Path) -> tuple[SchemaChild, ...]:
    return tuple([_change(child, path) for child in children])


def _change(child: SchemaChild, path: Path) -> SchemaChild:
    if isinstance(child, RoleNode):
        return replace(child, children=_without_cache(child.children, path))
    if isinstance(child, UnionNode):
        return replace(child, members=tuple([_change_module(member, path) for member in child.members]))
    return _change_module(child, path) if isinstance(child, ModuleNode) else child


def _change_module(module: ModuleNode, path: Path) -> ModuleNode:
    if module.name != path[0]:
        return module
    if len(path) == 1:
        return replace(module, cache=False)
    return replace(module, children=_without_cache(module.children, path[1:]))
