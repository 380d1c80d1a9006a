"""The syntax tree: what a document says, before any tokenizer has seen it.

Nodes are equal where they say the same, wherever they stand in a document. None is ever changed; those of
prompts are not frozen all the same: each request makes them, and a frozen one takes four times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vllm_promptcache.pml.source import Place


@dataclass(slots=True)
class TextNode:
    """A text run that is not empty, its white space already treated."""

    text: str
    place: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ParameterNode:
    """Room for up to `length` tokens. `placeholder` is `unk`, `none`, or None for the default."""

    name: str
    length: int
    scaffold: str
    default: str | None
    required: bool
    placeholder: str | None
    place: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ModuleNode:
    """A reusable part. The text of a `src` file is its first child."""

    name: str
    cache: bool
    children: tuple[SchemaChild, ...]
    place: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class UnionNode:
    """Modules of which a prompt takes at most one. `scaffold` names the one that stands for it."""

    name: str | None
    scaffold: str | None
    members: tuple[ModuleNode, ...]
    place: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ScaffoldNode:
    """Modules to be encoded together, each as its path of names from the schema."""

    modules: tuple[tuple[str, ...], ...]
    place: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class RoleNode:
    """A chat role in a schema; its modules and parameters belong to the element it stands in."""

    role: str
    children: tuple[SchemaChild, ...]
    place: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class PoolNode:
    """Room for `length` tokens of any of its members, which hold text and parameters; None has no end.

    `before` and `after` are white space that goes with each member that a prompt includes.
    """

    name: str
    length: int | None
    members: tuple[ModuleNode, ...]
    place: Place = field(repr=False, compare=False)
    before: TextNode | None = None
    after: TextNode | None = None

    def with_separators(self, children: Iterable[SchemaChild]) -> list[SchemaChild]:
        """What a member holds that has these children."""
        return [child for child in (self.before, *children, self.after) if child is not None]


@dataclass(frozen=True, slots=True)
class ToolsNode:
    """Where the tools of a request are a module. `length` is room that is left free for them, if any."""

    length: int | None
    place: Place = field(repr=False, compare=False)


SchemaChild = (
    TextNode | ModuleNode | UnionNode | ParameterNode | ScaffoldNode | RoleNode | PoolNode | ToolsNode
)


@dataclass(frozen=True, slots=True)
class SchemaNode:
    """A schema. `encode` is `context`, `isolated` or `sequence`."""

    name: str
    encode: str
    children: tuple[SchemaChild, ...]
    place: Place = field(repr=False, compare=False)


@dataclass(slots=True)
class MessageNode:
    """A chat message in a prompt: a role element with text and the modules that it includes."""

    role: str
    children: tuple[IncludeNode | TextNode, ...]
    place: Place = field(repr=False, compare=False)

    @property
    def texts(self) -> tuple[TextNode, ...]:
        """Its own text runs."""
        return tuple([child for child in self.children if isinstance(child, TextNode)])

    @property
    def has_modules(self) -> bool:
        """Whether it includes any module."""
        return any(isinstance(child, IncludeNode) for child in self.children)


@dataclass(slots=True)
class IncludeNode:
    """An element of a prompt that names a module, a union or a pool; `arguments` maps parameters to text.

    A pool's may hold modules that come with the prompt, of text only.
    """

    name: str
    arguments: Mapping[str, str]
    children: tuple[IncludeNode | TextNode | ModuleNode, ...]
    place: Place = field(repr=False, compare=False)


PromptChild = IncludeNode | TextNode | MessageNode


@dataclass(slots=True)
class PromptNode:
    """A prompt over the schema named `schema`."""

    schema: str
    children: tuple[PromptChild, ...]
    place: Place = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Document:
    """What one document holds: a schema, a prompt, or (`pml`) any number of schemas and maybe a prompt."""

    schemas: tuple[SchemaNode, ...]
    prompt: PromptNode | None
