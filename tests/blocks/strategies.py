"""Random units and compositions, as a schema and a prompt could give rise to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm_promptcache.blocks.composition import Composition, Computed, Reused, Seen, UnitText
from vllm_promptcache.blocks.geometry import find_pieces

GAP, ROOM = "gap", "room"


@dataclass
class Site:
    """A run of positions: of a unit's kept or placeholder tokens, free room for new text, or a gap."""

    owner: str
    first_position: int
    num_tokens: int
    kept: bool = True

    @property
    def end_position(self) -> int:
        return self.first_position + self.num_tokens


@dataclass(frozen=True, eq=False)
class HomeText(UnitText):
    """A unit's text with its positions at home. A context's digest is its name."""

    @property
    def position_ids(self) -> NDArray[np.int64]:
        return self.positions + self.home


def home_text(
    token_ids: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    kept: NDArray[np.bool_],
    context: tuple[Seen, ...] = (),
    breaks: tuple[int, ...] = (),
) -> HomeText:
    """A unit's text from positions at home."""
    home = int(position_ids[0]) if len(position_ids) else 0
    return HomeText(token_ids, position_ids - home, kept, context, breaks, home)


@dataclass
class World:
    """Units by name, in the order in which they can be encoded, and the sites their tokens stand on."""

    units: dict[str, HomeText]
    sites: list[Site]
    block_size: int
    token_at: dict[tuple[str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, unit in self.units.items():
            for token, position in enumerate(unit.position_ids.tolist()):
                self.token_at[name, position] = token


@st.composite
def worlds(draw: st.DrawFn, max_units: int = 4, max_sites: int = 14) -> World:
    """Units with several runs each, interleaved, with gaps and placeholders anywhere."""
    block_size = draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    names = [f"u{i}" for i in range(draw(st.integers(1, max_units)))]
    run_tokens = st.one_of(st.integers(1, 3), st.integers(1, 3 * block_size + 1))
    sites: list[Site] = []
    position = draw(st.integers(0, 5))
    for _ in range(draw(st.integers(1, max_sites))):
        owner = draw(st.sampled_from([*names, *names, GAP, ROOM]))
        kept = owner not in names or draw(st.integers(0, 4)) > 0
        num_tokens = draw(run_tokens)
        sites.append(Site(owner, position, num_tokens, kept))
        position += num_tokens
    return World(_texts(draw, names, sites), sites, block_size)


def _texts(draw: st.DrawFn, names: list[str], sites: list[Site]) -> dict[str, HomeText]:
    texts: dict[str, HomeText] = {}
    for name in names:
        own = [s for s in sites if s.owner == name]
        if not own:
            continue
        positions = np.concatenate([np.arange(s.first_position, s.end_position) for s in own])
        kept = np.concatenate([np.full(s.num_tokens, s.kept) for s in own])
        context = tuple(
            Seen(key, texts[key].home - int(positions[0])) for key in texts if draw(st.booleans())
        )
        token_ids = np.arange(len(positions)) + 1000 * (1 + len(texts))
        breaks = draw(st.sets(st.integers(1, len(positions) - 1), max_size=3)) if len(positions) > 1 else ()
        texts[name] = home_text(
            token_ids.astype(np.int64), positions.astype(np.int64), kept, context, tuple(sorted(breaks))
        )
    return texts


@st.composite
def compositions(draw: st.DrawFn, world: World, head_tokens: int = 0) -> Composition:
    """Some units, arguments in some placeholders, new text in some rooms; computed tokens at the end.

    With ``head_tokens`` the first so many kept tokens of units are computed anew, in some pieces.
    """
    included = {name for name in world.units if draw(st.booleans())}
    items: list[Reused | Computed] = []
    for site in world.sites:
        if site.owner in included and site.kept:
            for piece in _pieces_from(world, site):
                if draw(st.integers(0, 5)):
                    items += _reused(world, site.owner, *piece, head_tokens if draw(st.booleans()) else 0)
        elif site.owner != GAP and draw(st.booleans()):
            items.append(Computed(site.first_position, draw(st.integers(1, site.num_tokens))))
    end = world.sites[-1].end_position + draw(st.integers(0, 3))
    if items and isinstance(items[-1], Reused) and draw(st.booleans()):
        last = items.pop()  # a prompt with nothing new recomputes its last token
        assert isinstance(last, Reused)
        if last.end - last.start > 1:
            items.append(Reused(last.unit, last.start, last.end - 1))
        position = int(world.units[str(last.unit)].position_ids[last.end - 1])
        items.append(Computed(position, 1))
    elif not items or isinstance(items[-1], Reused) or draw(st.booleans()):
        items.append(Computed(end, draw(st.integers(1, 2 * world.block_size + 1))))
    return Composition(tuple(items))


def _pieces_from(world: World, site: Site) -> list[tuple[int, int]]:
    """The pieces that begin on a site; they may reach over the next ones."""
    unit = world.units[site.owner]
    first = world.token_at[site.owner, site.first_position]
    starts, ends = find_pieces(unit.position_ids, unit.kept, unit.breaks)
    pieces = zip(starts.tolist(), ends.tolist(), strict=True)
    return [(start, end) for start, end in pieces if first <= start < first + site.num_tokens]


def _reused(world: World, name: str, start: int, end: int, head_tokens: int) -> list[Reused | Computed]:
    """What a piece adds to a composition: as it is, or what is left behind the unit's head."""
    unit = world.units[name]
    if not head_tokens:
        return [Reused(name, start, end)]
    kept = np.flatnonzero(unit.kept)
    cut = int(kept[head_tokens - 1]) + 1 if head_tokens <= len(kept) else len(unit.kept)
    head = min(max(cut - start, 0), end - start)
    if not head:
        return [Reused(name, start, end)]
    computed = Computed(int(unit.position_ids[start]), head)
    return [computed] if head == end - start else [computed, Reused(name, start + head, end)]
