"""The names of a schema: unique among siblings, and known where a scaffold or union refers to them.

Works on the syntax tree alone, so that names can be checked without a tokenizer.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from vllm_promptcache.errors import IssueList, PMLError, quote, unknown
from vllm_promptcache.pml.attributes import MAX_NAME_CHARACTERS
from vllm_promptcache.pml.limits import DEFAULT_LIMITS, Limits
from vllm_promptcache.pml.nodes import (
    ModuleNode,
    ParameterNode,
    PoolNode,
    RoleNode,
    ScaffoldNode,
    SchemaChild,
    SchemaNode,
    UnionNode,
)
from vllm_promptcache.pml.source import Place


def check_names(schema: SchemaNode, issues: IssueList, limits: Limits = DEFAULT_LIMITS) -> None:
    """Adds an issue for every name that is taken twice or not known.

    Raises PMLError where modules' paths have more characters than `limits` allow.
    """
    if "/" in schema.name:
        # It stands in addresses, and in front of its modules' paths.
        issues.add(schema.place.at("name").issue(f"the name {quote(schema.name)} of a schema has a '/'"))
    _check_siblings(schema.children, issues)
    _PathChecker(issues, limits).check(schema)
    checker = _ScaffoldChecker(schema, issues)
    for scaffold in flatten_roles(schema.children):
        if isinstance(scaffold, ScaffoldNode):
            checker.check(scaffold)


def flatten_roles(children: Sequence[SchemaChild]) -> Iterator[SchemaChild]:
    """Children with those of roles in their place: a role's modules belong to what it stands in."""
    for child in children:
        if isinstance(child, RoleNode):
            yield from flatten_roles(child.children)
        else:
            yield child


def _check_siblings(children: Sequence[SchemaChild], issues: IssueList) -> None:
    taken: set[str] = set()
    parameters: set[str] = set()
    for child in flatten_roles(children):
        if isinstance(child, ParameterNode):
            _take(child, parameters, "parameter", issues)
        elif isinstance(child, ModuleNode):
            _take(child, taken, "module", issues)
            _check_siblings(child.children, issues)
        elif isinstance(child, UnionNode):
            _take(child, taken, "union", issues)
            for member in child.members:
                _take(member, taken, "module", issues)
                _check_siblings(member.children, issues)
            _check_stand_in(child, issues)
        elif isinstance(child, PoolNode):
            _take(child, taken, "pool", issues)
            _check_siblings(child.members, issues)


def _take(
    node: ModuleNode | UnionNode | ParameterNode | PoolNode, taken: set[str], kind: str, issues: IssueList
) -> None:
    if not node.name:
        return
    if node.name in taken:
        what = f"the name {quote(node.name)} is taken by another {kind} next to it"
        if kind != "parameter":
            others = "module, union or pool" if kind == "pool" else "module or union"
            what = f"the name {quote(node.name)} is taken by another {others} next to it"
        issues.add(node.place.at("name").issue(what))
    taken.add(node.name)


def _check_stand_in(union: UnionNode, issues: IssueList) -> None:
    names = [member.name for member in union.members]
    if union.scaffold is not None and union.scaffold not in names:
        issues.add(union.place.at("scaffold").issue(unknown("member", union.scaffold, names)))


def next_step(names: Container[str], path: Sequence[str], start: int) -> int:
    """Where the name ends that a path, cut at each '/', goes on with at `start`: the longest of `names`.

    `start` itself where it is none of them.
    """
    end, characters = start, -1
    while end < len(path) and characters <= MAX_NAME_CHARACTERS:
        characters += len(path[end]) + 1
        end += 1
    while end > start and "/".join(path[start:end]) not in names:
        end -= 1
    return end


class _PathChecker:
    """Counts the characters of modules' paths, and finds two that are the same: names may hold a '/'."""

    def __init__(self, issues: IssueList, limits: Limits) -> None:
        self._issues = issues
        self._max_characters = limits.max_path_characters
        self._num_characters = 0
        self._has_slash = False
        self._paths: set[str] = set()

    def check(self, schema: SchemaNode) -> None:
        self._count(schema.children, len(schema.name))
        if self._has_slash:
            self._compare(schema.children, "")

    def _count(self, children: Sequence[SchemaChild], num_characters_above: int) -> None:
        for node in _with_paths(children):
            num_characters = num_characters_above + 1 + len(node.name)
            self._num_characters += num_characters
            if self._num_characters > self._max_characters:
                what = f"the modules' paths have more than {self._max_characters} characters: shorten names"
                raise PMLError([node.place.at("name").issue(what)])
            self._has_slash = self._has_slash or "/" in node.name
            self._count(_inside(node), num_characters)

    def _compare(self, children: Sequence[SchemaChild], above: str) -> None:
        for node in _with_paths(children):
            path = f"{above}/{node.name}"
            if path in self._paths and "/" in path[1:]:
                what = f"the path {quote(path[1:])} of the module is that of another one"
                self._issues.add(node.place.at("name").issue(what))
            self._paths.add(path)
            self._compare(_inside(node), path)


def _with_paths(children: Sequence[SchemaChild]) -> Iterator[ModuleNode | PoolNode]:
    """The modules and pools directly in an element, members of unions among them."""
    for child in flatten_roles(children):
        if isinstance(child, ModuleNode | PoolNode):
            yield child
        elif isinstance(child, UnionNode):
            yield from child.members


def _inside(node: ModuleNode | PoolNode) -> Sequence[SchemaChild]:
    return node.members if isinstance(node, PoolNode) else node.children


class _ScaffoldChecker:
    """Finds modules by their paths; remembers the names in each module, of which there may be many."""

    def __init__(self, schema: SchemaNode, issues: IssueList) -> None:
        self._schema = schema
        self._issues = issues
        self._members: dict[int, dict[str, tuple[ModuleNode, UnionNode | None]]] = {}

    def check(self, scaffold: ScaffoldNode) -> None:
        place = scaffold.place.at("modules")
        # Which member of each union the scaffold takes, by the union's place in the document.
        chosen: dict[int, str] = {}
        seen: set[int] = set()
        for path in scaffold.modules:
            module = self._follow(path, place, chosen)
            if module is None:
                continue
            if id(module) in seen:
                self._issues.add(place.issue(f"module {quote('/'.join(path))} is named twice"))
            elif not module.cache:
                what = f'module {quote("/".join(path))} has cache="false" and cannot be encoded in a scaffold'
                self._issues.add(place.issue(what))
            seen.add(id(module))

    def _follow(self, path: tuple[str, ...], place: Place, chosen: dict[int, str]) -> ModuleNode | None:
        module: SchemaNode | ModuleNode = self._schema
        start = 0
        while start < len(path):
            end = next_step(self._modules(module), path, start)
            if end == start:
                self._issues.add(place.issue(self._unknown_step(module, path[start], path)))
                return None
            module, union = self._modules(module)["/".join(path[start:end])]
            if union is not None and (other := chosen.setdefault(id(union), module.name)) != module.name:
                what = f"{quote(module.name)} and {quote(other)} are members of one union: no prompt has both"
                self._issues.add(place.issue(what))
            start = end
        assert isinstance(module, ModuleNode), "a path has at least one name"
        return module

    def _unknown_step(self, module: SchemaNode | ModuleNode, name: str, path: tuple[str, ...]) -> str:
        unions = {child.name for child in flatten_roles(module.children) if isinstance(child, UnionNode)}
        if name in unions:
            return f"{quote(name)} is a union: paths name its members without it"
        where = f" in {quote('/'.join(path))}" if len(path) > 1 else ""
        return unknown("module", name, self._modules(module)) + where

    def _modules(self, module: SchemaNode | ModuleNode) -> dict[str, tuple[ModuleNode, UnionNode | None]]:
        """The modules directly in another one, by name, and the unions they are members of."""
        if id(module) not in self._members:
            members: dict[str, tuple[ModuleNode, UnionNode | None]] = {}
            for child in flatten_roles(module.children):
                if isinstance(child, ModuleNode):
                    members.setdefault(child.name, (child, None))
                elif isinstance(child, UnionNode):
                    for member in child.members:
                        members.setdefault(member.name, (member, child))
            self._members[id(module)] = members
        return self._members[id(module)]
