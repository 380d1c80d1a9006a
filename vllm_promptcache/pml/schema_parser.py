"""A `<schema>` element to its nodes (PML page, "Schema elements")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from vllm_promptcache.errors import IssueList, PMLError, quote, unknown
from vllm_promptcache.pml.attributes import ROLES, Attributes
from vllm_promptcache.pml.content import read_content
from vllm_promptcache.pml.files import read_text_file
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.nodes import (
    ModuleNode,
    ParameterNode,
    PoolNode,
    RoleNode,
    ScaffoldNode,
    SchemaChild,
    SchemaNode,
    TextNode,
    ToolsNode,
    UnionNode,
)
from vllm_promptcache.pml.reader import Element
from vllm_promptcache.pml.separators import LINE, STAY, take_separators
from vllm_promptcache.pml.source import Place
from vllm_promptcache.pml.space import DEDENT, DEFAULT_SPACE, apply_space, is_white, released

_IN_SCHEMA = ("module", "union", "pool", "tools", "scaffold", *ROLES)
_IN_MODULE = ("module", "union", "pool", "parameter", "param", *ROLES)
_IN_MEMBER = ("parameter", "param")
_ELEMENTS = frozenset({*_IN_SCHEMA, *_IN_MODULE, "schema", "prompt", "pml"})


@dataclass(frozen=True)
class _Surroundings:
    """What an element inherits from those around it."""

    space: str
    separator: str | None
    allowed: tuple[str, ...]
    in_role: bool = False
    in_pool: bool = False

    @property
    def separators(self) -> str:
        """What becomes of white space beside modules."""
        return self.separator or (LINE if self.space == DEDENT else STAY)


class SchemaParser:
    """Parses schemas of one document, adding issues to `issues` and going on.

    `folder` is where `src` paths start; None for a document that arrived in a request.
    """

    def __init__(self, issues: IssueList, limits: Limits, folder: Path | None) -> None:
        self._issues = issues
        self._limits = limits
        self._folder = folder
        self._num_modules = 0
        self._num_scaffolds = 0
        self._num_roles = 0
        self._has_tools = False

    def schema(self, element: Element, space: str = DEFAULT_SPACE) -> SchemaNode:
        """The node of a `<schema>` element; `space` is what it inherits."""
        self._has_tools = False
        attributes = Attributes(element, self._issues, ("name", "encode", "space", "separator"))
        surroundings = _Surroundings(attributes.space(space), attributes.separator(None), _IN_SCHEMA)
        return SchemaNode(
            attributes.name() or "",
            attributes.choice("encode", ("context", "isolated", "sequence")) or "context",
            self._children(element, surroundings),
            element.place,
        )

    def _tools(self, element: Element) -> ToolsNode | None:
        attributes = Attributes(element, self._issues, ("length", "space"))
        attributes.space(DEFAULT_SPACE)
        length = attributes.length_or_none()
        self._nothing_in(element)
        if self._has_tools:
            self._issues.add(element.place.issue("a schema has one place for tools, and this is another"))
            return None
        self._has_tools = True
        return ToolsNode(length, element.place)

    def _children(self, element: Element, around: _Surroundings) -> tuple[SchemaChild, ...]:
        content = read_content(element, around.space)
        nodes: list[SchemaChild | None] = []
        texts = content.texts
        for i, child in enumerate(content.elements):
            num_roles = self._num_roles
            nodes.append(self._child(child, around, element))
            if around.space == DEDENT and self._num_roles > num_roles:
                # A chat template writes what stands between messages.
                texts[i : i + 2] = ["" if is_white(text) else text for text in texts[i : i + 2]]
        are_modules = [isinstance(node, ModuleNode | UnionNode | PoolNode | ToolsNode) for node in nodes]
        taken = take_separators(texts, are_modules, around.separators)
        children: list[SchemaChild | None] = []
        for i, node in enumerate(nodes):
            before, after = content.places[i : i + 2]
            children.append(_text(taken.texts[i], before))
            children.append(
                _with_separators(node, _text(taken.before[i], before), _text(taken.after[i], after))
            )
        children.append(_text(taken.texts[-1], content.places[-1]))
        children += [self._child(child, around, element) for child in content.silent]
        return tuple([child for child in children if child is not None])

    def _child(self, child: Element, around: _Surroundings, parent: Element) -> SchemaChild | None:
        tag = child.tag
        if tag not in around.allowed:
            self._issues.add(child.place.issue(_misplaced(child, around, parent)))
            near = [] if tag in _ELEMENTS else get_close_matches(tag[:64], around.allowed, n=1)
            if not near:
                return None
            # Read as what was meant, so that one mistake does not make another.
            tag = near[0]
        return self._element(child, tag, around)

    def _element(self, child: Element, tag: str, around: _Surroundings) -> SchemaChild | None:
        if tag == "module":
            return self._module(child, around)
        if tag == "union":
            return self._union(child, around)
        if tag == "scaffold":
            return self._scaffold(child)
        if tag == "pool":
            return self._pool(child, around)
        if tag == "tools":
            return self._tools(child)
        if tag in ROLES:
            return self._role(child, around)
        return self._parameter(child)

    def _module(self, element: Element, around: _Surroundings) -> ModuleNode:
        self._num_modules += 1
        if self._num_modules > self._limits.max_modules:
            raise PMLError([element.place.issue(f"more than {self._limits.max_modules} modules")])
        attributes = Attributes(element, self._issues, ("name", "cache", "src", "space", "separator"))
        allowed = tuple([tag for tag in _IN_MODULE if not (around.in_role and tag in ROLES)])
        if around.in_pool:
            allowed = _IN_MEMBER
        inside = self._inside(attributes, around, allowed, around.in_role)
        children = self._children(element, inside)
        src = attributes.text("src")
        if src is not None and (text := self._src(element, src, inside.space)):
            children = (text, *children)
        return ModuleNode(attributes.name() or "", attributes.flag("cache", True), children, element.place)

    def _inside(
        self, attributes: Attributes, around: _Surroundings, allowed: tuple[str, ...], in_role: bool
    ) -> _Surroundings:
        separator = attributes.separator(around.separator)
        return _Surroundings(attributes.space(around.space), separator, allowed, in_role, around.in_pool)

    def _src(self, element: Element, src: str, space: str) -> TextNode | None:
        place = element.place.at("src")
        if self._folder is None:
            self._issues.add(place.issue("'src' is allowed only in schemas that are loaded from disk"))
            return None
        try:
            characters = read_text_file(self._folder, src, place, self._limits)
        except PMLError as error:
            self._issues.extend(error.issues)
            return None
        ((text, _),) = characters.parts
        # A file's lines are no layout of markup; its last one ends in a line break all the same.
        text = text.removesuffix("\n") if space == DEDENT else apply_space(text, space)
        return _text(text, characters.place)

    def _union(self, element: Element, around: _Surroundings) -> UnionNode:
        attributes = Attributes(element, self._issues, ("name", "scaffold", "space", "separator"))
        inside = self._inside(attributes, around, ("module",), around.in_role)
        members = self._members(element, inside)
        name = attributes.name(required=False)
        return UnionNode(name, attributes.text("scaffold"), members, element.place)

    def _pool(self, element: Element, around: _Surroundings) -> PoolNode:
        attributes = Attributes(element, self._issues, ("name", "length", "space"))
        inside = replace(around, space=attributes.space(around.space), allowed=("module",), in_pool=True)
        members = self._members(element, inside)
        return PoolNode(attributes.name() or "", attributes.length_or_none(), members, element.place)

    def _members(self, element: Element, inside: _Surroundings) -> tuple[ModuleNode, ...]:
        """The modules of an element that holds nothing else."""
        nodes = [self._child(child, inside, element) for child in self._elements_only(element)]
        return tuple([node for node in nodes if isinstance(node, ModuleNode)])

    def _parameter(self, element: Element) -> ParameterNode:
        names = ("name", "length", "scaffold", "default", "required", "placeholder", "space")
        attributes = Attributes(element, self._issues, names)
        attributes.space(DEFAULT_SPACE)
        self._nothing_in(element)
        return ParameterNode(
            attributes.name() or "",
            attributes.length(),
            attributes.text("scaffold") or "",
            attributes.text("default"),
            attributes.flag("required", False),
            attributes.choice("placeholder", ("unk", "none")),
            element.place,
        )

    def _scaffold(self, element: Element) -> ScaffoldNode:
        self._num_scaffolds += 1
        if self._num_scaffolds > self._limits.max_scaffolds:
            raise PMLError([element.place.issue(f"more than {self._limits.max_scaffolds} scaffolds")])
        attributes = Attributes(element, self._issues, ("modules", "space"))
        attributes.space(DEFAULT_SPACE)
        modules = attributes.text("modules")
        paths = [*(modules or "").split(), *self._used(element)]
        if modules is None and not element.children:
            attributes.missing("modules")
        elif not paths:
            self._issues.add(element.place.at("modules").issue("a scaffold needs at least one module"))
        return ScaffoldNode(tuple([tuple(path.split("/")) for path in paths]), element.place)

    def _used(self, element: Element) -> Iterator[str]:
        """The modules that a scaffold's `use` elements name."""
        for child in self._elements_only(element):
            if child.tag != "use":
                self._issues.add(child.place.issue(f"{quote(element.tag)} can hold nothing but 'use'"))
                continue
            attributes = Attributes(child, self._issues, ("module",))
            if path := attributes.text("module"):
                yield path
            else:
                attributes.missing("module")

    def _role(self, element: Element, around: _Surroundings) -> RoleNode:
        self._num_roles += 1
        attributes = Attributes(element, self._issues, ("space", "separator"))
        allowed = tuple([tag for tag in around.allowed if tag not in ROLES])
        inside = self._inside(attributes, around, allowed, True)
        return RoleNode(element.tag, self._children(element, inside), element.place)

    def _nothing_in(self, element: Element) -> None:
        for child in self._elements_only(element):
            self._issues.add(child.place.issue(f"{quote(element.tag)} cannot have anything in it"))

    def _elements_only(self, element: Element) -> list[Element]:
        """The child elements of an element that holds no text."""
        elements = []
        for child in element.children:
            if isinstance(child, Element):
                elements.append(child)
            elif not all(is_white(text) for text, _ in child.parts):
                self._issues.add(child.place.issue(f"text cannot stand in {quote(element.tag)}"))
        return elements


def _text(text: str, place: Place) -> TextNode | None:
    return TextNode(released(text), place) if text else None


def _with_separators(
    node: SchemaChild | None, before: TextNode | None, after: TextNode | None
) -> SchemaChild | None:
    """A module, or each of a union's or pool's members, with the white space that goes with it.

    What goes with tools is nobody's: a chat template writes what stands around them.
    """
    if (before is None and after is None) or isinstance(node, ToolsNode):
        return node
    if isinstance(node, UnionNode):
        members = [_with_separators(member, before, after) for member in node.members]
        return replace(node, members=tuple([m for m in members if isinstance(m, ModuleNode)]))
    if isinstance(node, PoolNode):
        return replace(node, before=before, after=after)
    assert isinstance(node, ModuleNode), "separators are given to modules and unions"
    children = (before, *node.children, after)
    return replace(node, children=tuple([child for child in children if child is not None]))


def _misplaced(child: Element, around: _Surroundings, parent: Element) -> str:
    if child.tag not in _ELEMENTS:
        return unknown("element", child.tag, around.allowed)
    if around.in_role and child.tag in ROLES:
        return "roles do not nest in each other"
    if child.tag in ("parameter", "param") and "scaffold" in around.allowed:
        return "a parameter cannot stand directly under 'schema': put it in a module"
    return f"{quote(child.tag)} cannot stand in {quote(parent.tag)}"
