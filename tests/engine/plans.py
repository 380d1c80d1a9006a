"""Plans made by hand: units at given positions with random tokens, for tests of mechanics."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.geometry import find_pieces
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan, Segment
from vllm_promptcache.contract.unit import Placement, Unit

Span = tuple[int, int]


def random_tokens(num_tokens: int, seed: str) -> NDArray[np.int64]:
    """Token IDs that depend on nothing but the seed."""
    number = int.from_bytes(sha256(seed.encode()).digest()[:8], "little")
    return np.random.default_rng(number).integers(100, 40_000, num_tokens)


def unit(
    name: str, *spans: Span, context: Iterable[Unit] = (), holes: Iterable[Span] = (), seed: str = ""
) -> Unit:
    """A unit with tokens at the positions of `spans`; those in `holes` are placeholders."""
    positions = np.concatenate([np.arange(*span) for span in spans])
    kept = np.ones(len(positions), bool)
    for start, end in holes:
        kept &= (positions < start) | (positions >= end)
    token_ids = random_tokens(len(positions), f"{seed}/{name}")
    return Unit(name, token_ids, positions, kept, tuple(context))


def new(first_position: int, num_tokens: int, seed: str = "new") -> NewSegment:
    """New text of random tokens."""
    token_ids = random_tokens(num_tokens, f"{seed}/{first_position}").tolist()
    return NewSegment(token_ids, first_position, "prompt:1")


def cached(of: Unit) -> list[CachedSegment]:
    """All that can be reused of a unit."""
    starts, ends = find_pieces(of.position_ids, of.kept)
    return [CachedSegment(of, int(s), int(e)) for s, e in zip(starts, ends, strict=True)]


def plan(*parts: Unit | NewSegment | CachedSegment) -> Plan:
    """Whole units, parts of units and new text, put in position order."""
    segments: list[Segment] = []
    units: list[Unit] = []
    for part in parts:
        segments += cached(part) if isinstance(part, Unit) else [part]
        if not isinstance(part, NewSegment):
            _add(part if isinstance(part, Unit) else part.unit, units)
    segments.sort(key=_position)
    assert isinstance(segments[-1], NewSegment), "a plan ends in new tokens"
    return Plan("by hand", "digest", tuple(units), tuple(segments))


def _add(of: Unit, units: list[Unit]) -> None:
    if of not in units:
        for context in of.context:
            _add(context, units)
        units.append(of)


def _position(segment: Segment) -> int:
    return segment.first_position


def travel(seed: str = "") -> Plan:
    """A plan with all there is: context, arguments, text between modules, ragged and whole ends."""
    root = unit("root", (0, 70), (3000, 3040), seed=seed)
    first = unit("first", (70, 270), context=[root], seed=seed)
    second = unit("second", (400, 550), context=[root], holes=[(460, 480)], seed=seed)
    tiny = unit("tiny", (550, 551), context=[root], seed=seed)
    whole = unit("whole", (1000, 1128), context=[root, second], seed=seed)
    texts = [new(270, 11, seed), new(460, 13, seed), new(551, 5, seed), new(3040, 24, seed)]
    return plan(root, first, second, tiny, whole, *texts)


def whole_blocks(seed: str = "") -> Plan:
    """Modules that fill their blocks, each in the context of those before it."""
    root = unit("root", (0, 128), seed=seed)
    first = unit("first", (128, 256), context=[root], seed=seed)
    second = unit("second", (256, 400), context=[root, first], seed=seed)
    return plan(root, first, second, new(400, 9, seed))


def simple(name: str, num_tokens: int = 100, num_new: int = 10, question: str = "") -> Plan:
    """One module at the start and new text behind it."""
    return plan(unit(name, (0, num_tokens)), new(num_tokens, num_new, f"{name}{question}"))


def members(*places: int, tokens: int = 90) -> Plan:
    """Members of a pool behind 40 tokens of text, in the order of their numbers, and a question."""
    root = unit("root", (0, 40))
    parts: list[Unit | NewSegment | CachedSegment] = [root]
    at = 40
    for place in places:
        member = unit(f"member {place}", (40, 40 + tokens + place), context=[root])
        parts.append(CachedSegment(member, 0, member.num_tokens, at))
        at += member.num_tokens
    return plan(*parts, new(at, 9, f"{places}"))


def placements_of(prompt: Plan) -> set[Placement]:
    """What is encoded for a plan: units where they stand, and their contexts at home."""
    reused = [s for s in prompt.segments if isinstance(s, CachedSegment)]
    pending, contexts = [s.unit for s in reused], dict[Unit, None]()
    while pending:
        seen = [unit for unit in pending.pop().context if unit not in contexts]
        contexts.update(dict.fromkeys(seen))
        pending += seen
    return {s.placement for s in reused} | {unit.placement for unit in contexts}
