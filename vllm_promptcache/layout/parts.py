"""What a layout is made of: every place that a schema has, with all that a prompt needs of it ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit


class Piece(NamedTuple):
    """A ready segment and the half-open range of positions it takes."""

    start: int
    end: int
    segment: Segment


@dataclass(frozen=True, eq=False, slots=True)
class ParameterLayout:
    """Room for up to `num_positions` tokens from position `start` on. `default` is ready to use."""

    name: str
    start: int
    num_positions: int
    required: bool
    default: Piece | None


@dataclass(frozen=True, eq=False, slots=True)
class UnionLayout:
    """A union's span `[start, end)`; `index` tells a schema's unions apart."""

    index: int
    name: str | None
    start: int
    end: int
    members: Mapping[str, ModuleLayout]
    scaffold: str | None


@dataclass(frozen=True, eq=False, slots=True)
class PoolLayout:
    """Room for members from position `start` on: `num_positions`, or without an end where that is None.

    Members, those declared in the schema by name, are laid out at `start` and see the units of `context`.
    """

    path: str
    start: int
    num_positions: int | None
    context: tuple[Unit, ...]
    members: Mapping[str, ModuleLayout]

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, eq=False, slots=True)
class ModuleLayout:
    """A module (or, with index 0, the schema itself) and its place; or a pool, or a member of one.

    `path` starts with the schema's name and is the unit's id. `[start, end)` is the span of positions,
    nested modules included. `num_tokens` counts the module's own text. `pieces` are the own text, ready
    for a plan: maximal runs of the unit's kept tokens or, with `cache="false"`, new tokens. `own_end` is
    one after the last own token's position, or None. `children` holds the nested modules by name,
    members of unions among them; `union` is the union it is a member of. `roles` are the chat roles in
    the own text with their positions. `source` is what a new segment of its text names as source. `pool` is
    there for a pool, which has no text of its own; a pool's members have no index.
    """

    index: int
    name: str
    path: str
    start: int
    end: int
    cache: bool
    num_tokens: int
    unit: Unit | None
    pieces: tuple[Piece, ...]
    own_end: int | None
    children: Mapping[str, ModuleLayout]
    unions: Mapping[str, UnionLayout]
    union: UnionLayout | None
    parameters: Mapping[str, ParameterLayout]
    roles: tuple[tuple[int, str], ...]
    source: str
    pool: PoolLayout | None = None


class ScaffoldPiece(NamedTuple):
    """A run of a scaffold's kept tokens that belong to the module with index `module`."""

    module: int
    start: int
    end: int
    segment: CachedSegment


@dataclass(frozen=True, eq=False, slots=True)
class ScaffoldLayout:
    """Modules encoded together. Masks have a bit set for each module's index.

    The scaffold applies to a prompt that includes all `required` modules; it then takes the place of the
    own units of those `covered` ones that are included (the required ones and the members that stand
    for unions). `pieces` are in position order.
    """

    unit: Unit
    required: int
    covered: int
    pieces: tuple[ScaffoldPiece, ...]
