"""Names in a prompt to places in its schema (PML page, "Prompt"). Needs no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vllm_promptcache.errors import IssueList, nearest, quote, unknown
from vllm_promptcache.layout.parts import MessageSpan, ModuleLayout, PoolLayout, UnionLayout
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.hints import NO_MEMBERS, Hints, Members, spellings
from vllm_promptcache.pml.names import next_step
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


# None is frozen: ends and neighbours become known later, and this runs for every request.
@dataclass(slots=True, eq=False)
class Included:
    """A module or pool that a prompt includes, or the schema itself, which has no `parent`.

    `message` is the prompt's message that it is included in, if any. `end` is one after its last included
    position, set later. `items` are what stands in a pool, in order: members, which have no parent, modules
    that came with the prompt, and new text.
    """

    module: ModuleLayout
    node: IncludeNode | PromptNode | ModuleNode
    parent: Included | None
    message: MessageNode | None = None
    end: int = 0
    items: list[Included | ModuleNode | TextNode] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class NewText:
    """New text in a prompt: a text run or a message, and what stands around it in the document.

    `before` and `after` are the nearest modules included in the same element, if any; `message` is the
    prompt's message that a text run stands in, if that has modules. `num_included_before` counts the
    modules that the document includes before it.
    """

    node: TextNode | MessageNode
    parent: Included
    before: Included | None
    after: Included | None
    message: MessageNode | None
    num_included_before: int


@dataclass(slots=True, eq=False)
class Resolution:
    """What a prompt includes, in document order with the schema itself first, and its new text.

    `texts` stand between modules or are in messages that hold modules; `rest` is what follows the last
    module outside of messages. `mask` has a bit set for the index of each included module. `messages` are
    the chat messages in the included modules' own text, by position. `complete` is false where a module
    could not be found, so that what would stand where is not known; `issues` say why.
    """

    prompt: PromptNode
    included: list[Included]
    texts: list[NewText]
    rest: list[NewText]
    mask: int
    messages: list[MessageSpan]
    complete: bool
    issues: IssueList

    @property
    def notes(self) -> tuple[str, ...]:
        """That the schema's order is used, where the prompt has another."""
        last: dict[int, ModuleLayout] = {}
        for included in self.included:
            before = last.get(id(included.parent))
            if before is not None and included.module.index < before.index:
                first, second = quote(included.module.name), quote(before.name)
                return (f"the schema's order is used: {first} stands before {second}",)
            last[id(included.parent)] = included.module
        return ()


def resolve_prompt(
    layout: SchemaLayout, prompt: PromptNode, issues: IssueList, members: Members | None = None
) -> Resolution:
    """Finds every module, union and parameter that a prompt names.

    `members` are those of pools beside the ones that the schema declares. Adds an issue for each unknown
    name, module included twice, second member of a union, and missing required argument. Changes nothing
    else.
    """
    return _Resolver(layout.root, issues, {} if members is None else members).resolve(prompt)


def find_way(module: ModuleLayout, name: str) -> tuple[list[ModuleLayout], str | None]:
    """The modules that a path leads through from one that it starts in, and what it names last.

    That is the last module, or, where that is a pool, the name of its member. No modules where a path
    leads nowhere. Of names that hold a '/', the longest one is meant; a path may name unions, or not.
    """
    path = name.split("/")
    way: list[ModuleLayout] = []
    start = 0
    is_union = False
    while start < len(path):
        if module.pool is not None:
            return way, "/".join(path[start:])
        end = next_step(module.children, path, start)
        is_union = end == start
        if not is_union:
            module = module.children["/".join(path[start:end])]
            way.append(module)
        elif (end := next_step(module.unions, path, start)) == start:
            return [], None
        start = end
    return ([], None) if is_union else (way, None)


class _Resolver:
    def __init__(self, root: ModuleLayout, issues: IssueList, members: Members) -> None:
        self._root = root
        self._issues = issues
        self._pool_members = members
        self._hints = Hints(root, members)
        self._included: list[Included] = []
        self._texts: list[NewText] = []
        self._mask = 0
        self._messages: list[MessageSpan] = []
        # The prompt's message whose children are looked up, if any.
        self._message: MessageNode | None = None
        self._complete = True
        self._members: dict[int, ModuleLayout] = {}
        self._by_index: dict[int, Included] = {}
        # Modules that are included only because a path leads through them, as far as is known.
        self._implied: dict[int, Included] = {}
        # What each name stands for in a pool in this prompt, by the pool's index.
        self._named: dict[int, dict[str, ModuleNode | ModuleLayout]] = {}

    def resolve(self, prompt: PromptNode) -> Resolution:
        parent = self._add(None, prompt, self._root)
        self._children(parent, prompt.children)
        num_included = len(self._included)
        rest = [text for text in self._texts if text.num_included_before == num_included]
        self._texts = [text for text in self._texts if text.num_included_before < num_included]
        for text in rest:
            if isinstance(text.node, MessageNode) and text.node.has_modules:
                self._message = text.node
                self._children(parent, text.node.children)
        for included in self._implied.values():
            assert isinstance(included.node, IncludeNode), "the schema is never implied"
            self._check_arguments(included.node, included.module)
        messages = sorted(self._messages)
        return Resolution(
            prompt, self._included, self._texts, rest, self._mask, messages, self._complete, self._issues
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
                text = NewText(child, parent, before, None, self._message, len(self._included))
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
        """What is named that is no module right here: a union, or a module further in, by its path."""
        node = self._as_spelled(parent.module, node)
        if node.name in parent.module.children:
            return self._module(parent, node, parent.module.children[node.name])
        union = parent.module.unions.get(node.name)
        if union is not None:
            return self._union(parent, node, union)
        way, member = find_way(parent.module, node.name)
        if not way:
            self._issues.add(node.place.issue(self._hints.unknown(parent.module, node.name)))
            self._complete = False
            return None
        last = way.pop() if member is None else None
        first: Included | None = None
        for module in way:
            implied = self._imply(parent, node, module)
            if implied is None:
                return None
            first, parent = first or implied, implied
        if last is not None:
            return self._module(parent, node, last) and first
        assert parent.module.pool is not None and member is not None, "only a pool has members"
        self._item(parent, replace(node, name=member), parent.module.pool)
        return first

    def _as_spelled(self, module: ModuleLayout, node: IncludeNode) -> IncludeNode:
        """The node with its name as the schema spells it: 'é' may be one character, or two."""
        for name in spellings(node.name):
            if name in module.children or name in module.unions or find_way(module, name)[0]:
                return replace(node, name=name)
        return node

    def _imply(self, parent: Included, node: IncludeNode, module: ModuleLayout) -> Included | None:
        """A module on the way of a path, which is included with what is in it."""
        if self._mask >> module.index & 1:
            return self._by_index[module.index]
        if not self._may_include(node, module):
            self._complete = False
            return None
        included = self._add(parent, IncludeNode(module.name, {}, (), node.place), module)
        self._implied[module.index] = included
        return included

    def _unknown_parameter(self, module: ModuleLayout, name: str) -> str:
        """What is wrong with an argument: whose it may be."""
        for other in (one.module for one in self._included):
            if name in other.parameters:
                return f"unknown parameter {quote(name)}; it is one of {quote(other.name)}"
        return unknown("parameter", name, module.parameters)

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
            for name in () if module is not None else spellings(child.name):
                module = module or union.members.get(name)
            if module is None:
                near = nearest(child.name, union.members) or child.name not in self._hints.elsewhere
                what = unknown("member", child.name, union.members)
                self._issues.add(
                    child.place.issue(what if near else self._hints.unknown(parent.module, child.name))
                )
                self._complete = False
            else:
                # At most one of a union's members is ever included.
                found = self._module(parent, child, module) or found
        return found

    def _module(self, parent: Included, node: IncludeNode, module: ModuleLayout) -> Included | None:
        included = self._implied.pop(module.index, None)
        if included is not None:
            included.node = node
        elif self._may_include(node, module):
            included = self._add(parent, node, module)
        else:
            self._complete = False
            return None
        if node.arguments or module.parameters:
            self._check_arguments(node, module)
        if module.pool is not None:
            self._pool(included, node, module.pool)
        elif node.children:
            self._children(included, node.children)
        return included

    def _pool(self, included: Included, node: IncludeNode, pool: PoolLayout) -> None:
        named = self._names_in(included, pool)
        for child in node.children:
            if isinstance(child, TextNode):
                included.items.append(child)
            elif isinstance(child, ModuleNode):
                if named.setdefault(child.name, child) is not child:
                    what = f"the name {quote(child.name)} is taken by another module in the pool"
                    self._issues.add(child.place.at("name").issue(what))
                included.items.append(child)
            else:
                self._item(included, child, pool)

    def _names_in(self, included: Included, pool: PoolLayout) -> dict[str, ModuleNode | ModuleLayout]:
        if included.module.index not in self._named:
            self._named[included.module.index] = dict(pool.members)
        return self._named[included.module.index]

    def _item(self, included: Included, node: IncludeNode, pool: PoolLayout) -> None:
        """Adds a member that is included by its name to what stands in a pool."""
        registered = self._pool_members.get(pool.path, NO_MEMBERS)
        named = self._names_in(included, pool)
        found = named.get(node.name) or registered.get(node.name)
        for name in () if found is not None else spellings(node.name):
            found = found or named.get(name) or registered.get(name)
        if found is None:
            names = [*pool.members, *registered]
            is_near = node.name not in self._hints.elsewhere or nearest(node.name, names) is not None
            what = (
                unknown("module", node.name, names)
                if is_near
                else self._hints.unknown(included.module, node.name)
            )
            self._issues.add(node.place.issue(what))
            self._complete = False
        elif isinstance(found, ModuleNode):
            included.items.append(found)
        else:
            named[node.name] = found
            included.items.append(self._member(node, found))

    def _member(self, node: IncludeNode, module: ModuleLayout) -> Included:
        for child in node.children:
            what = f"nothing can stand in the element of {quote(node.name)}, a member of a pool"
            self._issues.add(child.place.issue(what))
        member = Included(module, node, None)
        self._check_arguments(node, module)
        return member

    def _add(self, parent: Included | None, node: IncludeNode | PromptNode, module: ModuleLayout) -> Included:
        included = Included(module, node, parent, self._message)
        self._included.append(included)
        self._by_index[module.index] = included
        self._mask |= 1 << module.index
        if module.messages:
            self._messages += module.messages
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
                self._issues.add(node.place.at(name).issue(self._unknown_parameter(module, name)))
        for parameter in module.parameters.values():
            if parameter.required and not node.arguments.get(parameter.name, "").strip():
                what = f"parameter {quote(parameter.name)} of module {quote(module.name)} is required"
                self._issues.add(node.place.issue(what))
