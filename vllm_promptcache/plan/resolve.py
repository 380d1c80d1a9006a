"""Names in a prompt to places in its schema (PML page, "Prompt"). Needs no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from vllm_promptcache.errors import IssueList, quote, unknown
from vllm_promptcache.layout.parts import ModuleLayout, PoolLayout, UnionLayout
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.pml.nodes import (
    IncludeNode,
    MessageNode,
    ModuleNode,
    PromptChild,
    PromptNode,
    TextNode,
)
from vllm_promptcache.pml.prompt_parser import NOT_IN_A_POOL
from vllm_promptcache.pml.space import is_white

# Members of pools that are in no schema's text, by the pools' paths and their names.
Members = Mapping[str, Mapping[str, ModuleLayout]]
_NO_MEMBERS: Mapping[str, ModuleLayout] = {}


# None is frozen: ends and neighbours become known later, and this runs for every request.
@dataclass(slots=True, eq=False)
class Included:
    """A module or pool that a prompt includes, or the schema itself, which has no `parent`.

    `end` is one after its last included position, set later. `items` are what stands in a pool, in order:
    members, which have no parent, modules that came with the prompt, and new text.
    """

    module: ModuleLayout
    node: IncludeNode | PromptNode | ModuleNode
    parent: Included | None
    end: int = 0
    items: list[Included | ModuleNode | TextNode] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class NewText:
    """New text in a prompt: a text run or a message, and what stands around it in the document.

    `before` and `after` are the nearest modules included in the same element, if any.
    `num_included_before` counts the modules that the document includes before it.
    """

    node: TextNode | MessageNode
    parent: Included
    before: Included | None
    after: Included | None
    num_included_before: int


@dataclass(slots=True, eq=False)
class Resolution:
    """What a prompt includes, in document order with the schema itself first, and its new text.

    `mask` has a bit set for the index of each included module. `schema_roles` are the chat roles in the
    included modules' own text, by position. `complete` is false where a module could not be found, so
    that what would stand where is not known; `issues` say why.
    """

    prompt: PromptNode
    included: list[Included]
    texts: list[NewText]
    mask: int
    schema_roles: list[str]
    complete: bool
    issues: IssueList

    @property
    def roles(self) -> tuple[str, ...]:
        """All chat roles of the prompt's PML, the schema's first, in order."""
        messages = (text.node for text in self.texts if isinstance(text.node, MessageNode))
        return (*self.schema_roles, *(message.role for message in messages))


def resolve_prompt(
    layout: SchemaLayout, prompt: PromptNode, issues: IssueList, members: Members | None = None
) -> Resolution:
    """Finds every module, union and parameter that a prompt names.

    `members` are those of pools beside the ones that the schema declares. Adds an issue for each unknown
    name, module included twice, second member of a union, and missing required argument. Changes nothing
    else.
    """
    return _Resolver(issues, members or {}).resolve(layout.root, prompt)


class _Resolver:
    def __init__(self, issues: IssueList, members: Members) -> None:
        self._issues = issues
        self._pool_members = members
        self._included: list[Included] = []
        self._texts: list[NewText] = []
        self._mask = 0
        self._placed_roles: list[tuple[int, str]] = []
        self._complete = True
        self._members: dict[int, ModuleLayout] = {}

    def resolve(self, root: ModuleLayout, prompt: PromptNode) -> Resolution:
        self._children(self._add(None, prompt, root), prompt.children)
        roles = [role for _, role in sorted(self._placed_roles, key=itemgetter(0))]
        return Resolution(
            prompt, self._included, self._texts, self._mask, roles, self._complete, self._issues
        )

    def _children(self, parent: Included, children: Sequence[PromptChild | ModuleNode]) -> None:
        modules = parent.module.children
        before: Included | None = None
        waiting: list[NewText] = []
        for child in children:
            if isinstance(child, ModuleNode):
                self._issues.add(child.place.issue(NOT_IN_A_POOL))
                continue
            if not isinstance(child, IncludeNode):
                text = NewText(child, parent, before, None, len(self._included))
                self._texts.append(text)
                if before is None:
                    waiting.append(text)
                continue
            module = modules.get(child.name)
            if module is not None:
                included = self._module(parent, child, module)
            else:
                included = self._other(parent, child)
            if included is not None:
                before = included
                for text in waiting:
                    text.after = included
                waiting.clear()

    def _other(self, parent: Included, node: IncludeNode) -> Included | None:
        """The member that stands in a union's element, if that is what an element names."""
        union = parent.module.unions.get(node.name)
        if union is not None:
            return self._union(parent, node, union)
        names = [*parent.module.children, *parent.module.unions]
        self._issues.add(node.place.issue(unknown("module", node.name, names)))
        self._complete = False
        return None

    def _union(self, parent: Included, node: IncludeNode, union: UnionLayout) -> Included | None:
        for name in node.arguments:
            what = f"a union has no parameters, so {quote(name)} means nothing here"
            self._issues.add(node.place.at(name).issue(what))
        found: Included | None = None
        for child in node.children:
            if isinstance(child, TextNode):
                if not is_white(child.text):
                    what = f"text cannot stand in the element of union {quote(node.name)}"
                    self._issues.add(child.place.issue(what))
                continue
            if isinstance(child, ModuleNode):
                self._issues.add(child.place.issue(NOT_IN_A_POOL))
                continue
            module = union.members.get(child.name)
            if module is None:
                self._issues.add(child.place.issue(unknown("member", child.name, union.members)))
                self._complete = False
            else:
                # At most one of a union's members is ever included.
                found = self._module(parent, child, module) or found
        return found

    def _module(self, parent: Included, node: IncludeNode, module: ModuleLayout) -> Included | None:
        if not self._may_include(node, module):
            self._complete = False
            return None
        included = self._add(parent, node, module)
        if node.arguments or module.parameters:
            self._check_arguments(node, module)
        if module.pool is not None:
            self._pool(included, node, module.pool)
        elif node.children:
            self._children(included, node.children)
        return included

    def _pool(self, included: Included, node: IncludeNode, pool: PoolLayout) -> None:
        registered = self._pool_members.get(pool.path, _NO_MEMBERS)
        # What each name stands for in this prompt.
        named: dict[str, ModuleNode | ModuleLayout] = dict(pool.members)
        for child in node.children:
            if isinstance(child, TextNode):
                included.items.append(child)
            elif isinstance(child, ModuleNode):
                if named.setdefault(child.name, child) is not child:
                    what = f"the name {quote(child.name)} is taken by another module in the pool"
                    self._issues.add(child.place.at("name").issue(what))
                included.items.append(child)
            else:
                found = named.get(child.name) or registered.get(child.name)
                if found is None:
                    names = [*pool.members, *registered]
                    self._issues.add(child.place.issue(unknown("module", child.name, names)))
                    self._complete = False
                elif isinstance(found, ModuleNode):
                    included.items.append(found)
                else:
                    named[child.name] = found
                    included.items.append(self._member(child, found))

    def _member(self, node: IncludeNode, module: ModuleLayout) -> Included:
        for child in node.children:
            what = f"nothing can stand in the element of {quote(node.name)}, a member of a pool"
            self._issues.add(child.place.issue(what))
        member = Included(module, node, None)
        self._check_arguments(node, module)
        return member

    def _add(self, parent: Included | None, node: IncludeNode | PromptNode, module: ModuleLayout) -> Included:
        included = Included(module, node, parent)
        self._included.append(included)
        self._mask |= 1 << module.index
        if module.roles:
            self._placed_roles += module.roles
        return included

    def _may_include(self, node: IncludeNode, module: ModuleLayout) -> bool:
        if self._mask >> module.index & 1:
            self._issues.add(node.place.issue(f"module {quote(node.name)} is included twice"))
            return False
        if module.union is None:
            return True
        other = self._members.setdefault(module.union.index, module)
        if other is not module:
            what = f"{quote(node.name)} and {quote(other.name)} are members of one union: choose one"
            self._issues.add(node.place.issue(what))
            return False
        return True

    def _check_arguments(self, node: IncludeNode, module: ModuleLayout) -> None:
        for name in node.arguments:
            if name not in module.parameters:
                what = unknown("parameter", name, module.parameters)
                self._issues.add(node.place.at(name).issue(what))
        for parameter in module.parameters.values():
            if parameter.required and parameter.name not in node.arguments:
                what = f"parameter {quote(parameter.name)} of module {quote(module.name)} is required"
                self._issues.add(node.place.issue(what))
