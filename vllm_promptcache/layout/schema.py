"""A schema's layout: its tokens and positions, worked out once when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import UNKNOWN_SCHEMA, PMLError, unknown
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import ModuleLayout, PoolLayout, ScaffoldLayout, ToolsLayout, Trailing
from vllm_promptcache.pml.nodes import PromptNode, SchemaNode


@dataclass(frozen=True, eq=False)
class SchemaLayout:
    """A schema laid out for one tokenizer; immutable and shared by all prompts over it.

    `num_positions` is its length. `modules` lists the schema itself and all modules in document order;
    an index in it is a module's bit in masks. `units` has every unit that can be encoded, each after
    its context; `unit_places` gives for each its place in `units`.
    `scaffolds` stand in the order in which they are preferred. `trailing` is text behind a pool that has no
    length: it is new in every prompt. `tools` is there where the schema has a place for them. `digest` is a
    hex SHA-256 over everything that decides what a prompt becomes. `node` is what was laid out. `has_bos`
    says whether the schema's first token is BOS.
    """

    name: str
    encode: str
    digest: str
    num_positions: int
    max_model_len: int
    modules: tuple[ModuleLayout, ...]
    units: tuple[Unit, ...]
    unit_places: Mapping[Unit, int]
    scaffolds: tuple[ScaffoldLayout, ...]
    trailing: tuple[Trailing, ...]
    tools: ToolsLayout | None
    encoder: TextEncoder
    node: SchemaNode
    has_bos: bool

    @cached_property
    def has_roles(self) -> bool:
        """Whether the schema has chat messages, in modules too."""
        return any(module.messages for module in self.modules)

    @property
    def num_placeholders(self) -> int:
        """The tokens that are encoded and never reused, of all units."""
        return sum(unit.num_tokens - int(unit.kept.sum()) for unit in self.units)

    @cached_property
    def pools(self) -> Mapping[str, PoolLayout]:
        """Its pools by path."""
        return {module.path: module.pool for module in self.modules if module.pool is not None}

    @property
    def root(self) -> ModuleLayout:
        """The schema itself, as the module that every prompt includes."""
        return self.modules[0]


def find_layout(prompt: PromptNode, layouts: Mapping[str, SchemaLayout]) -> SchemaLayout:
    """The layout a prompt asks for. Raises PMLError with status 404 where there is none of that name."""
    layout = layouts.get(prompt.schema)
    if layout is None:
        place = prompt.place.at("schema")
        raise PMLError([place.issue(unknown("schema", prompt.schema, layouts))], UNKNOWN_SCHEMA)
    return layout
