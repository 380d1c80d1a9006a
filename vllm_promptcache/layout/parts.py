"""What a layout is made of: every place that a schema has, with all that a prompt needs of it ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.pml.nodes import PoolNode

NOWHERE = 1 << 40


class MessageSpan(NamedTuple):
    """A chat message in a module's own text, by positions.

    `[start, content)` are the words that the template puts before it, `[content, content_end)` is what it
    holds, `[content_end, end)` the words after it; `before` and `after` are those words, or None where they
    change within a day: then only their room is there. Behind a pool that
    has no length, nothing has a position: `NOWHERE` stands for those of what is there.
    """

    start: int
    content: int
    content_end: int
    end: int
    role: str
    before: str | None
    after: str | None


class Trailing(NamedTuple):
    """The schema's own text behind a pool that has no length, which has no place of its own.

    `message` is the index of the schema's message that it is in, if any; `side` is -1 for the words before
    what that holds, 1 for those after it, else 0.
    """

    token_ids: Sequence[int]
    source: str
    message: int | None
    side: int


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
    """Room for members from position `start` on: `num_positions`, or without an end where that is None. A
    member takes `max_positions` at most.

    Members, those declared in the schema by name, are laid out at `start` and see the units of `context`.
    """

    path: str
    start: int
    num_positions: int | None
    max_positions: int
    context: tuple[Unit, ...]
    members: Mapping[str, ModuleLayout]
    node: PoolNode

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.node.name


@dataclass(frozen=True, eq=False, slots=True)
class ToolsLayout:
    """The place of a request's tools. They are one unit, called `id`, which sees the units of `context`;
    its home is directly behind them. `num_positions` is the room that the schema leaves for it."""

    id: str
    num_positions: int
    context: tuple[Unit, ...]

    def unit(self, token_ids: Sequence[int]) -> Unit:
        """The unit of tools as a chat template writes them; at least one token."""
        home = sum(unit.num_tokens for unit in self.context)
        return unit_of(self.id, token_ids, home, self.context)


def unit_of(id: str, token_ids: Sequence[int], home: int, context: tuple[Unit, ...]) -> Unit:
    """A unit of text only, at consecutive positions from its home on."""
    tokens = np.asarray(token_ids, np.int64)
    positions = np.arange(home, home + len(tokens), dtype=np.int64)
    return Unit(id, tokens, positions, np.ones(len(tokens), bool), context)


@dataclass(frozen=True, eq=False, slots=True)
class ModuleLayout:
    """A module (or, with index 0, the schema itself) and its place; or a pool, or a member of one.

    `path` starts with the schema's name and is the unit's id. `[start, end)` is the span of positions,
    nested modules included. `num_tokens` counts the module's own text. `pieces` are the own text, ready
    for a plan: maximal runs of the unit's kept tokens or, with `cache="false"`, new tokens. `own_end` is
    one after the last own token's position, or None. `children` holds the nested modules by name,
    members of unions among them; `union` is the union it is a member of. `messages` are the chat messages
    in the own text. `source` is what a new segment of its text names as source. `pool` is there for a pool,
    which has no text of its own; a pool's members have no index.
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
    messages: tuple[MessageSpan, ...]
    source: str
    pool: PoolLayout | None = None

    @property
    def roles(self) -> tuple[tuple[int, str], ...]:
        """The chat roles in the own text with their positions."""
        return tuple([(message.start, message.role) for message in self.messages])


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
