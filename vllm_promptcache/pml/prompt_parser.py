"""A `<prompt>` element to its nodes (PML page, "Prompt"). On the path of every request: kept lean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_promptcache.errors import IssueList, quote
from vllm_promptcache.pml.attributes import RESERVED_NAMES, ROLES, Attributes
from vllm_promptcache.pml.content import read_content
from vllm_promptcache.pml.nodes import (
    IncludeNode,
    MessageNode,
    ModuleNode,
    PromptChild,
    PromptNode,
    TextNode,
)
from vllm_promptcache.pml.reader import Characters, Element
from vllm_promptcache.pml.space import DEDENT, DEFAULT_SPACE, SPACE_KINDS, is_white, released

NOT_IN_A_POOL = "a prompt may bring modules only in the element of a pool"


class PromptParser:
    """Parses a prompt, adding issues to `issues` and going on."""

    def __init__(self, issues: IssueList) -> None:
        self._issues = issues

    def prompt(self, element: Element, space: str = DEFAULT_SPACE) -> PromptNode:
        """The node of a `<prompt>` element; `space` is what it inherits."""
        attributes = Attributes(element, self._issues, ("schema", "space"))
        inside = attributes.space(space)
        schema = attributes.text("schema")
        if schema is None:
            attributes.missing("schema")
        children: list[PromptChild] = []
        for child in self._children(element, inside):
            if isinstance(child, TextNode):
                children.append(child)
            elif child.tag in ROLES:
                children.append(self._message(child, inside))
            elif node := self._child(child, inside):
                if isinstance(node, ModuleNode):
                    self._issues.add(node.place.issue("'module' cannot stand in a prompt"))
                else:
                    children.append(node)
        self._messages_come_last(children)
        return PromptNode(schema or "", tuple(children), element.place)

    def _children(self, element: Element, space: str) -> Sequence[Element | TextNode]:
        """The elements and texts in an element, without white space that lays out markup."""
        if space == DEDENT and all(
            isinstance(child, Element) or _is_white(child) for child in element.children
        ):
            return [child for child in element.children if isinstance(child, Element)]
        content = read_content(element, space)
        children: list[Element | TextNode] = []
        for i, text in enumerate(content.texts):
            if text and not (space == DEDENT and is_white(text)):
                children.append(TextNode(released(text), content.places[i]))
            children += content.elements[i : i + 1]
        return [*children, *content.silent]

    def _child(self, child: Element, space: str) -> IncludeNode | ModuleNode | None:
        if child.tag == "use":
            return self._use(child, space)
        if child.tag == "module":
            return self._module(child, space)
        if child.tag in RESERVED_NAMES:
            self._issues.add(child.place.issue(_misplaced(child.tag)))
            return None
        if not child.attributes and not child.children:
            return IncludeNode(child.tag, child.attributes, (), child.place)
        return self._include(child, space)

    def _use(self, element: Element, space: str) -> IncludeNode:
        """As the element that is called what `module` says."""
        module = element.attributes.get("module")
        if not module:
            Attributes(element, self._issues, tuple(element.attributes)).missing("module")
        arguments = {name: text for name, text in element.attributes.items() if name != "module"}
        return self._include(replace(element, tag=module or "", attributes=arguments), space)

    def _module(self, element: Element, space: str) -> ModuleNode:
        """A module that comes with the prompt: text only."""
        attributes = Attributes(element, self._issues, ("name", "space"))
        texts = self._texts(element, attributes.space(space), "a module that comes with a prompt")
        return ModuleNode(attributes.name() or "", True, texts, element.place)

    def _include(self, element: Element, space: str) -> IncludeNode:
        arguments = dict(element.attributes)
        kind = arguments.pop("space", None)
        if kind in SPACE_KINDS:
            space = kind
        elif kind is not None:
            self._bad_space(element)
        nodes: list[IncludeNode | TextNode | ModuleNode | None] = []
        for child in self._children(element, space):
            if isinstance(child, TextNode):
                nodes.append(child)
            elif child.tag == "argument":
                self._argument(child, space, arguments)
            else:
                nodes.append(self._child(child, space))
        children = tuple([node for node in nodes if node is not None])
        return IncludeNode(element.tag, arguments, children, element.place)

    def _argument(self, element: Element, space: str, arguments: dict[str, str]) -> None:
        """Adds an argument that has an element of its own."""
        attributes = Attributes(element, self._issues, ("name", "space"))
        name = attributes.name() or ""
        texts = self._texts(element, attributes.space(space), "an argument")
        if name in arguments:
            self._issues.add(element.place.at("name").issue(f"the argument {quote(name)} is given twice"))
        arguments[name] = "".join([text.text for text in texts])

    def _bad_space(self, element: Element) -> None:
        Attributes(element, self._issues, tuple(element.attributes)).space(DEFAULT_SPACE)

    def _message(self, element: Element, space: str) -> MessageNode:
        attributes = Attributes(element, self._issues, ("space",))
        inside = attributes.space(space)
        nodes = [
            child if isinstance(child, TextNode) else self._child(child, inside)
            for child in self._children(element, inside)
        ]
        children: list[IncludeNode | TextNode] = []
        for node in nodes:
            if isinstance(node, ModuleNode):
                self._issues.add(node.place.issue("'module' cannot stand in a message"))
            elif node is not None:
                children.append(node)
        return MessageNode(element.tag, tuple(children), element.place)

    def _texts(self, element: Element, space: str, what: str) -> tuple[TextNode, ...]:
        """The text runs of an element that holds nothing else."""
        texts: list[TextNode] = []
        for child in self._children(element, space):
            if isinstance(child, TextNode):
                texts.append(child)
            else:
                self._issues.add(child.place.issue(f"{what} holds text only"))
        return tuple(texts)

    def _messages_come_last(self, children: list[PromptChild]) -> None:
        included_later = False
        for child in reversed(children):
            if isinstance(child, IncludeNode):
                included_later = True
            elif included_later and isinstance(child, MessageNode):
                what = f"a {child.role!r} message can stand only after the last module of a prompt"
                self._issues.add(child.place.issue(what))


def _is_white(characters: Characters) -> bool:
    return all(is_white(text) and not is_kept for text, is_kept in characters.parts)


def _misplaced(tag: str) -> str:
    """What is wrong with an element of PML's own in a prompt."""
    if tag in ROLES:
        return f"{quote(tag)} can stand only directly in the prompt, after the last module"
    if tag == "argument":
        return "'argument' can stand only in the element of a module"
    return f"{quote(tag)} cannot stand in a prompt"
