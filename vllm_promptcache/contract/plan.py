"""A plan: what one prompt reuses and what it computes, in position order.

The plan is the contract between the language and the engine (PML page, "Explaining a prompt"): from
a plan alone anyone can compute a prompt's exact logits with an explicit attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.contract.unit import Placement, Unit

_HOME = -1


@dataclass(frozen=True, slots=True)
class CachedSegment:
    """The half-open range ``[start, end)`` of a unit's tokens, all of them kept, reused as encoded.

    ``position`` is where the unit's first token stands in this prompt; at home if it is not given.
    """

    unit: Unit
    start: int
    end: int
    position: int = _HOME

    def __post_init__(self) -> None:
        if self.position == _HOME:
            object.__setattr__(self, "position", self.unit.home)

    @property
    def num_tokens(self) -> int:
        """How many tokens the segment reuses."""
        return self.end - self.start

    @property
    def placement(self) -> Placement:
        """The unit where it stands."""
        return Placement(self.unit.digest, self.position)

    @property
    def moved(self) -> int:
        """How much further on than at home the unit stands, in positions."""
        return self.position - self.unit.home

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        return int(self.unit.position_ids[self.start]) + self.moved

    @property
    def end_position(self) -> int:
        """One after the position of the last token."""
        return int(self.unit.position_ids[self.end - 1]) + self.moved + 1

    def part(self, start: int, end: int) -> CachedSegment:
        """Another range of the unit, standing where this one does."""
        return CachedSegment(self.unit, start, end, self.position)

    def renew(self, end: int, repair: str) -> NewSegment:
        """The tokens from the start up to ``end``, new: ``repair`` names why."""
        source = f"{repair}:{self.unit.id}"
        return NewSegment(self.unit.token_list[self.start : end], self.first_position, source, is_repair=True)


@dataclass(frozen=True, slots=True)
class NewSegment:
    """Tokens that are computed for this request, at consecutive positions from ``first_position`` on.

    ``token_ids`` are not to be changed. ``source`` says where the text comes from, as ``prompt:LINE``.
    ``is_repair`` is true for tokens that a unit holds and that a repair has computed anew.
    """

    token_ids: Sequence[int]
    first_position: int
    source: str
    is_repair: bool = False

    @property
    def num_tokens(self) -> int:
        """How many tokens the segment computes."""
        return len(self.token_ids)

    @property
    def end_position(self) -> int:
        """One after the position of the last token."""
        return self.first_position + len(self.token_ids)

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """The tokens' positions, of shape ``(tokens,)``."""
        return np.arange(self.first_position, self.first_position + len(self.token_ids), dtype=np.int64)


Segment = CachedSegment | NewSegment


@dataclass(frozen=True)
class Plan:
    """A composed prompt: segments in position order over the units they reuse.

    The last token of a plan, by position, is always new: a prompt with nothing new recomputes it.
    ``units`` holds every unit that a segment names and, before them, the units of their contexts, so
    that encoding them in this order always finds a unit's context encoded. ``notes`` say where the prompt is
    not what its document looks like.
    """

    schema: str
    digest: str
    units: tuple[Unit, ...]
    segments: tuple[Segment, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def placed_units(self) -> tuple[tuple[Unit, int], ...]:
        """The units and how far from home they stand, contexts first: a unit that stands elsewhere has seen
        its context as far away, which is there once more."""
        placed: dict[tuple[Unit, int], None] = {}

        def add(unit: Unit, moved: int) -> None:
            if (unit, moved) not in placed:
                for seen in unit.seen if (unit.stem, moved) in placed else unit.context:
                    add(seen, moved)
                placed[unit, moved] = None

        for segment in self.segments:
            if isinstance(segment, CachedSegment):
                add(segment.unit, segment.moved)
        away = {unit for unit, moved in placed if moved and (unit, 0) not in placed}
        at_home = [(unit, 0) for unit in self.units if unit not in away]
        return (*at_home, *(one for one in placed if one[1]))

    @cached_property
    def encoded_units(self) -> tuple[tuple[Unit, int], ...]:
        """As `placed_units`, where states can be moved: a unit that stands elsewhere has seen its context at
        home, where both are encoded."""
        placed: dict[tuple[Unit, int], None] = {}
        for segment in self.segments:
            if isinstance(segment, CachedSegment):
                placed.update(dict.fromkeys((seen, 0) for seen in segment.unit.context))
                placed[segment.unit, segment.moved] = None
        return tuple(placed)

    @cached_property
    def num_cached_tokens(self) -> int:
        """Tokens reused: the kept tokens of the included units."""
        return sum(s.num_tokens for s in self.segments if isinstance(s, CachedSegment))

    @cached_property
    def num_new_tokens(self) -> int:
        """Tokens computed for this request; at least one."""
        return sum(s.num_tokens for s in self.segments if isinstance(s, NewSegment))

    @cached_property
    def repaired_ranges(self) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of repaired tokens, counted among the new ones in position order."""
        ranges: list[tuple[int, int]] = []
        end = 0
        for segment in self.segments:
            if isinstance(segment, NewSegment):
                start, end = end, end + segment.num_tokens
                if segment.is_repair:
                    ranges.append((start, end))
        return tuple(ranges)

    @property
    def num_repaired_tokens(self) -> int:
        """New tokens that units hold, and that a repair has computed anew."""
        return sum(end - start for start, end in self.repaired_ranges)

    @cached_property
    def next_position(self) -> int:
        """The position of the first generated token: one after the last new token's."""
        last = self.segments[-1]
        assert isinstance(last, NewSegment), "a plan ends in new tokens"
        return last.first_position + last.num_tokens
