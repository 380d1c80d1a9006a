"""A composition: what a request reuses and computes, by name, in position order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import dropwhile, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.geometry import find_pieces
from vllm_promptcache.blocks.unit_key import UnitKey


class Reused(NamedTuple):
    """The half-open token range ``[start, end)`` of a unit: kept, and within one piece.

    Its key says where the unit stands.
    """

    unit: UnitKey
    start: int
    end: int


class Computed(NamedTuple):
    """A run of ``num_tokens`` new tokens at consecutive positions from ``first_position``."""

    first_position: int
    num_tokens: int


@dataclass(frozen=True)
class Composition:
    """Reused and computed runs in position order; the last one is computed."""

    items: tuple[Reused | Computed, ...]

    @cached_property
    def unit_keys(self) -> tuple[UnitKey, ...]:
        """The units reused, each once, in the order of their first use."""
        return tuple(dict.fromkeys(i.unit for i in self.items if isinstance(i, Reused)))

    @cached_property
    def num_cached_tokens(self) -> int:
        """Tokens that are not computed."""
        return sum(i.end - i.start for i in self.items if isinstance(i, Reused))

    @cached_property
    def num_tokens(self) -> int:
        """All tokens of the composed prompt."""
        return sum([i.end - i.start if isinstance(i, Reused) else i.num_tokens for i in self.items])

    def without_reuse(self, positions: Mapping[UnitKey, NDArray[np.int64]]) -> Composition:
        """The same tokens at the same positions, all of them computed. ``positions`` are the units'."""
        items: list[Computed] = []
        for item in self.items:
            if isinstance(item, Reused):
                item = Computed(int(positions[item.unit][item.start]), item.end - item.start)
            if items and items[-1].first_position + items[-1].num_tokens == item.first_position:
                item = Computed(items[-1].first_position, items.pop().num_tokens + item.num_tokens)
            items.append(item)
        return Composition(tuple(items))

    def cached_first(self, token_ids: list[int]) -> list[int]:
        """Reorder a prompt's token IDs from position order to cached tokens first, then new ones.

        That is the order in which vLLM counts them: the computed tokens of a request are a prefix. A
        prompt whose new tokens all stand at its end is in that order, and returned as it is.
        """
        if self.num_tokens != len(token_ids):
            raise ValueError(
                f"a composition of {self.num_tokens} tokens does not fit a prompt of {len(token_ids)}"
            )
        after_new = dropwhile(lambda item: isinstance(item, Reused), self.items)
        if not any(isinstance(item, Reused) for item in after_new):
            return token_ids
        cached: list[int] = []
        new: list[int] = []
        at = 0
        for item in self.items:
            if isinstance(item, Reused):
                end = at + item.end - item.start
                cached += token_ids[at:end]
            else:
                end = at + item.num_tokens
                new += token_ids[at:end]
            at = end
        return cached + new


class Seen(NamedTuple):
    """A context unit: its digest, and how far its first token stands from that of the unit which sees it."""

    digest: str
    offset: int


@dataclass(frozen=True, eq=False)
class UnitText:
    """What is needed to encode a unit, wherever it stands.

    ``token_ids``, ``positions`` (counted from the unit's first token) and ``kept`` are ``(tokens,)``
    arrays as in a plan's unit. ``home`` is a position at which its context really stands. With ``has_stem``
    the first unit of the ``context`` stands for all that it has seen as well.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    kept: NDArray[np.bool_]
    context: tuple[Seen, ...]
    breaks: tuple[int, ...] = ()
    home: int = 0
    has_stem: bool = False

    def context_keys(self, key: UnitKey) -> tuple[UnitKey, ...]:
        """The units of the ``context`` where the unit is called ``key``."""
        return tuple([key.beside(*seen) for seen in self.context])


def compose_encoding(
    units: Sequence[tuple[UnitText, int]], context: Mapping[UnitKey, UnitText]
) -> tuple[Composition, list[int]]:
    """The request that encodes units, each from a position on: context reused, their own tokens computed.

    Where there are several, each sees the context and the units before it, which end before it begins.
    Returns the composition and the token IDs of the whole request in position order. Only context
    pieces that stand before the last token matter; they lie between the units' runs, never inside one.
    """
    items: list[tuple[int, Reused | Computed, list[int]]] = []
    last = 0
    for text, position in units:
        own = text.positions + position
        bounds = [0, *(np.flatnonzero(np.diff(own) != 1) + 1).tolist(), len(text.token_ids)]
        for start, end in pairwise(bounds):
            first = int(own[start])
            items.append((first, Computed(first, end - start), text.token_ids[start:end].tolist()))
        last = int(own[-1])
    for key, unit in context.items():
        for start, end in zip(*find_pieces(unit.positions, unit.kept, unit.breaks), strict=True):
            first = int(unit.positions[start]) + key.position
            if first < last:
                tokens = unit.token_ids[start:end].tolist()
                items.append((first, Reused(key, int(start), int(end)), tokens))
    items.sort(key=lambda item: item[0])
    return Composition(tuple(i for _, i, _ in items)), [t for _, _, ids in items for t in ids]
