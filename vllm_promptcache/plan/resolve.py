"""Names in a prompt to places in its schema (PML page, "Prompt"). Needs no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_promptcache.errors import IssueList, quote, unknown
from vllm_promptcache.layout.parts import ModuleLayout, UnionLayout
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.pml.nodes import IncludeNode, MessageNode, PromptChild, PromptNode, TextNode
from vllm_promptcache.pml.space import is_white


# Neither is frozen: ends and neighbours become known later, and this runs for every request.
@dataclass(slots=True, eq=False)
class Included:
    """A module that a prompt includes. `end` is one after its last included position, set later."""

    module: ModuleLayout
    node: IncludeNode | PromptNode
    children: list[Included] = field(default_factory=list)
    end: int = 0


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

    `mask` has a bit set for the index of each included module. `complete` is false where a module
    could not be found, so that what would stand where is not known.
    """

    included: list[Included]
    texts: list[NewText]
    mask: int
    complete: bool


def resolve_prompt(layout: SchemaLayout, prompt: PromptNode, issues: IssueList) -> Resolution:
    """Finds every module, union and parameter that a prompt names.

    Adds an issue for each unknown name, module included twice, second member of a union, and missing
    required argument. Changes nothing else.
    """
    return _Resolver(layout, issues).resolve(prompt)


class _Resolver:
    def __init__(self, layout: SchemaLayout, issues: IssueList) -> None:
        self._root = layout.root
        self._issues = issues
        self._members: dict[int, ModuleLayout] = {}
        self._result = Resolution([], [], 1, True)

    def resolve(self, prompt: PromptNode) -> Resolution:
        root = Included(self._root, prompt)
        self._result.included.append(root)
        self._children(root, prompt.children)
        return self._result

    def _children(self, parent: Included, children: Sequence[PromptChild]) -> None:
        before: Included | None = None
        waiting: list[NewText] = []
        for child in children:
            if not isinstance(child, IncludeNode):
                text = NewText(child, parent, before, None, len(self._result.included))
                self._result.texts.append(text)
                if before is None:
                    waiting.append(text)
                continue
            for included in self._include(parent, child):
                before = included
                for text in waiting:
                    text.after = included
                waiting.clear()

    def _include(self, parent: Included, node: IncludeNode) -> list[Included]:
        """The modules that an element includes: one, or the member that stands in a union's element."""
        module = parent.module.children.get(node.name)
        if module is not None:
            included = self._module(parent, node, module)
            return [included] if included else []
        union = parent.module.unions.get(node.name)
        if union is not None:
            return self._union(parent, node, union)
        names = [*parent.module.children, *parent.module.unions]
        self._issues.add(node.place.issue(unknown("module", node.name, names)))
        self._result.complete = False
        return []

    def _union(self, parent: Included, node: IncludeNode, union: UnionLayout) -> list[Included]:
        for name in node.arguments:
            what = f"a union has no parameters, so {quote(name)} means nothing here"
            self._issues.add(node.place.at(name).issue(what))
        found: list[Included] = []
        for child in node.children:
            if isinstance(child, TextNode):
                if not is_white(child.text):
                    what = f"text cannot stand in the element of union {quote(node.name)}"
                    self._issues.add(child.place.issue(what))
                continue
            module = union.members.get(child.name)
            if module is None:
                self._issues.add(child.place.issue(unknown("member", child.name, union.members)))
                self._result.complete = False
            elif included := self._module(parent, child, module):
                found.append(included)
        return found

    def _module(self, parent: Included, node: IncludeNode, module: ModuleLayout) -> Included | None:
        if not self._may_include(node, module):
            self._result.complete = False
            return None
        included = Included(module, node)
        self._result.included.append(included)
        self._result.mask |= 1 << module.index
        parent.children.append(included)
        if node.arguments or module.parameters:
            self._check_arguments(node, module)
        if node.children:
            self._children(included, node.children)
        return included

    def _may_include(self, node: IncludeNode, module: ModuleLayout) -> bool:
        if self._result.mask >> module.index & 1:
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
