"""Schemas in JSON, for programs that have their texts at hand: any text, with nothing to be escaped.

    {"name": "files", "modules": [{"name": "a.pdf", "text": "…"}, {"name": "b.pdf", "text": "…"}]}

Texts are taken as they are, every character. The tree of nodes is the one that PML of the same meaning has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag, ValidationError

from vllm_promptcache.errors import TOO_LARGE, IssueList, PMLError
from vllm_promptcache.pml.attributes import name_problem
from vllm_promptcache.pml.characters import describe_character
from vllm_promptcache.pml.limits import DEFAULT_LIMITS, Limits
from vllm_promptcache.pml.names import check_names
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
from vllm_promptcache.pml.source import Place, Source

_KINDS = ("parameter", "union", "pool", "tools", "role")


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ParameterForm(_Form):
    """A parameter of the module in whose `content` it stands."""

    parameter: str
    length: Annotated[int, Field(ge=1, le=999_999_999)]
    default: str | None = None
    required: bool = False
    scaffold: str = ""
    placeholder: Literal["unk", "none"] | None = None


class _WithContent(_Form):
    """What holds text and more: in the order of `content` or, shorter, its `text` and then its `modules`."""

    text: str = ""
    modules: Annotated[list[ContentForm], FailFast()] = []
    content: Annotated[list[ContentForm], FailFast()] = []


class ModuleForm(_WithContent):
    """A module."""

    name: str
    cache: bool = True


class UnionForm(_Form):
    """Modules of which a prompt takes at most one."""

    union: Annotated[list[ModuleForm], FailFast()]
    name: str | None = None
    scaffold: str | None = None


class PoolForm(_Form):
    """A pool, by its name, and its first members."""

    pool: str
    length: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    modules: Annotated[list[ModuleForm], FailFast()] = []


class ToolsForm(_Form):
    """Where the tools of a request are a module, and room for them."""

    tools: Literal[True]
    length: Annotated[int, Field(ge=1, le=999_999_999)] | None = None


class RoleForm(_WithContent):
    """A message."""

    role: Literal["system", "user", "assistant"]


def _kind(item: Any) -> str:
    if isinstance(item, str):
        return "text"
    given = item if isinstance(item, Mapping) else {}
    return next((kind for kind in _KINDS if kind in given), "module")


ContentForm = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[ParameterForm, Tag("parameter")]
    | Annotated[UnionForm, Tag("union")]
    | Annotated[PoolForm, Tag("pool")]
    | Annotated[ToolsForm, Tag("tools")]
    | Annotated[RoleForm, Tag("role")]
    | Annotated[ModuleForm, Tag("module")],
    Discriminator(_kind),
]


class SchemaForm(_WithContent):
    """A schema. `scaffolds` are lists of modules, each by its path."""

    name: str
    encode: Literal["context", "isolated", "sequence"] = "context"
    scaffolds: Annotated[list[Annotated[list[str], Field(min_length=1), FailFast()]], FailFast()] = []


def read_schema_form(data: Any, where: str = "body", limits: Limits = DEFAULT_LIMITS) -> SchemaNode:
    """The syntax tree of a schema in JSON's types.

    Raises PMLError with every mistake of names and texts, or with the first that each list has in its form;
    status 413 where the texts are larger than a document may be.
    """
    source = Source(where, b"")
    try:
        form = SchemaForm.model_validate(data)
    except ValidationError as error:
        raise PMLError([source.issue(_message(dict(one))) for one in error.errors()[:100]]) from None
    issues = IssueList()
    schema = _Builder(source, issues, limits).schema(form)
    check_names(schema, issues, limits)
    issues.raise_if_any()
    return schema


def _message(error: Mapping[str, Any]) -> str:
    *above, last = (*error["loc"],) or ("",)
    steps = [*[str(step) for step in above if step not in (*_KINDS, "module", "text")], str(last)]
    return f"{'.'.join(filter(None, steps)) or 'the schema'}: {error['msg']}"


class _Builder:
    """Forms to nodes, within limits."""

    def __init__(self, source: Source, issues: IssueList, limits: Limits) -> None:
        self._source = source
        self._issues = issues
        self._limits = limits
        self._num_modules = 0
        self._num_bytes = 0
        self._has_tools = False

    def schema(self, form: SchemaForm) -> SchemaNode:
        place = self._place(None, "schema", form.name)
        children = self._children(form, place, depth=1)
        if len(form.scaffolds) > self._limits.max_scaffolds:
            self._issues.add(place.issue(f"more than {self._limits.max_scaffolds} scaffolds"))
        scaffolds = [
            ScaffoldNode(tuple([tuple(path.split("/")) for path in paths]), self._place(place, "scaffold"))
            for paths in form.scaffolds[: self._limits.max_scaffolds]
        ]
        for child in children:
            if isinstance(child, ParameterNode):
                self._issues.add(child.place.issue("a parameter cannot stand directly under 'schema'"))
        return SchemaNode(form.name, form.encode, (*children, *scaffolds), place)

    def _place(self, parent: Place | None, tag: str, name: str | None = None) -> Place:
        place = Place(self._source, 0, parent, tag, name)
        if name is not None and (problem := name_problem(name)):
            self._issues.add(place.issue(problem))
        return place

    def _children(
        self, form: _WithContent, place: Place, depth: int, in_role: bool = False
    ) -> tuple[SchemaChild, ...]:
        given = form.model_fields_set
        if "content" in given and given & {"text", "modules"}:
            self._issues.add(place.issue("'content' stands for 'text' and 'modules': give one or the other"))
        items: Sequence[Any] = form.content if "content" in given else (form.text, *form.modules)
        if depth > self._limits.max_depth:
            raise PMLError([place.issue(f"more than {self._limits.max_depth} levels of elements")])
        children = [self._child(item, place, depth + 1, in_role) for item in items]
        return tuple([child for child in children if child is not None])

    def _child(self, item: Any, parent: Place, depth: int, in_role: bool) -> SchemaChild | None:
        if isinstance(item, str):
            return self._text(item, parent)
        if isinstance(item, ModuleForm):
            return self._module(item, parent, depth, in_role)
        if isinstance(item, UnionForm):
            place = self._place(parent, "union", item.name)
            members = self._members(item.union, place, depth, in_role)
            return UnionNode(item.name, item.scaffold, members, place)
        if isinstance(item, PoolForm):
            place = self._place(parent, "pool", item.pool)
            members = self._members(item.modules, place, depth, in_role)
            self._only_text(members)
            return PoolNode(item.pool, item.length, members, place)
        if isinstance(item, ToolsForm):
            return self._tools(item, parent)
        if isinstance(item, RoleForm):
            place = self._place(parent, item.role)
            if in_role:
                self._issues.add(place.issue("roles do not nest in each other"))
            return RoleNode(item.role, self._children(item, place, depth, in_role=True), place)
        return self._parameter(item, parent)

    def _module(self, form: ModuleForm, parent: Place, depth: int, in_role: bool) -> ModuleNode:
        place = self._place(parent, "module", form.name)
        self._num_modules += 1
        if self._num_modules > self._limits.max_modules:
            raise PMLError([place.issue(f"more than {self._limits.max_modules} modules")])
        return ModuleNode(form.name, form.cache, self._children(form, place, depth, in_role), place)

    def _tools(self, form: ToolsForm, parent: Place) -> ToolsNode | None:
        place = self._place(parent, "tools")
        above: Place | None = parent
        while above is not None and above.tag != "module":
            above = above.parent
        if above is not None:
            self._issues.add(place.issue("'tools' cannot stand in 'module'"))
        elif self._has_tools:
            self._issues.add(place.issue("a schema has one place for tools, and this is another"))
        self._has_tools = True
        return ToolsNode(form.length, place)

    def _members(
        self, forms: Sequence[ModuleForm], place: Place, depth: int, in_role: bool
    ) -> tuple[ModuleNode, ...]:
        return tuple([self._module(form, place, depth + 1, in_role) for form in forms])

    def _only_text(self, members: Sequence[ModuleNode]) -> None:
        for member in members:
            if not all(isinstance(child, TextNode | ParameterNode) for child in member.children):
                self._issues.add(member.place.issue("a pool's member holds text and parameters only"))

    def _parameter(self, form: ParameterForm, parent: Place) -> ParameterNode:
        place = self._place(parent, "parameter", form.parameter)
        self._check(form.scaffold, place)
        self._check(form.default or "", place)
        return ParameterNode(
            form.parameter, form.length, form.scaffold, form.default, form.required, form.placeholder, place
        )

    def _text(self, text: str, parent: Place) -> TextNode | None:
        place = self._place(parent, "")
        self._check(text, place)
        return TextNode(text, place) if text else None

    def _check(self, text: str, place: Place) -> None:
        """Refuses the one thing that is no text: half of a pair, as JSON can write it."""
        try:
            self._num_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            what = f"the text has {describe_character(text[error.start])} at index {error.start}"
            self._issues.add(place.issue(f"{what}, which is no text"))
        if self._num_bytes > self._limits.max_document_bytes:
            what = f"the texts are larger than the {self._limits.max_document_bytes} bytes that are allowed"
            raise PMLError([place.issue(what)], TOO_LARGE)
