"""What a request tells the engine: lists, strings and bytes that pass through ``extra_args``.

``SamplingParams.extra_args["prompt_cache"]`` holds ``units`` (digest and position of each that is
reused), ``items`` (three integers an item: unit index, start, end; or -1, first position, tokens) and, for
units the engine may not have been told of, ``texts`` by digest. The prompt itself travels in position order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vllm_promptcache.blocks.composition import Composition, Computed, Reused, Seen, UnitText
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan, Segment
from vllm_promptcache.contract.unit import Placement, Unit, digest_of

EXTRA_ARG = "prompt_cache"


class Keep(NamedTuple):
    """What a request wants to be kept of a unit where it stands: its states, for ``ttl`` seconds after their
    last use at most, or, with ``pin``, at least."""

    placement: Placement
    ttl: float | None
    pin: bool


def plan_to_wire(
    plan: Plan,
    *,
    with_texts: bool,
    texts: Iterable[Unit] = (),
    no_room: bool = False,
    keeps: Iterable[Keep] = (),
) -> dict[str, Any]:
    """A plan as the engine reads it; ``with_texts`` adds what is needed to encode its units, else those
    of ``texts`` alone.

    ``repaired`` are the plan's ranges of repaired tokens, if it has any. ``no_room`` says that it reuses
    nothing because the KV cache is too small, ``keeps`` what is to stay of it. New segments
    at consecutive positions become one run.
    """
    indices: dict[Placement, int] = {}
    items: list[int] = []
    for segment in plan.segments:
        if isinstance(segment, CachedSegment):
            index = indices.setdefault(segment.placement, len(indices))
            start = segment.start
            for cut in segment.unit.breaks:
                if start < cut < segment.end:
                    items += (index, start, cut)
                    start = cut
            items += (index, start, segment.end)
        elif items and items[-3] < 0 and items[-2] + items[-1] == segment.first_position:
            items[-1] += segment.num_tokens
        else:
            items += (-1, segment.first_position, segment.num_tokens)
    wire: dict[str, Any] = {"units": [list(placement) for placement in indices], "items": items}
    if plan.repaired_ranges:
        wire["repaired"] = [list(tokens) for tokens in plan.repaired_ranges]
    if no_room:
        wire["no_room"] = True
    if keeps:
        wire["keeps"] = [{**keep.placement._asdict(), "ttl": keep.ttl, "pin": keep.pin} for keep in keeps]
    sent = units_to_wire(plan.units if with_texts else texts)
    if sent or with_texts:
        wire["texts"] = sent
    return wire


def prompt_token_ids(plan: Plan) -> list[int]:
    """All tokens of a plan in position order: the plain, uncached form of the prompt."""
    runs = [_token_ids(segment) for segment in plan.segments]
    # Made at its full length: growing it takes longer than copying what it holds.
    token_ids = [0] * sum(map(len, runs))
    end = 0
    for run in runs:
        start, end = end, end + len(run)
        token_ids[start:end] = run
    return token_ids


def _token_ids(segment: Segment) -> Sequence[int]:
    """A segment's tokens; not to be changed."""
    if isinstance(segment, NewSegment):
        return segment.token_ids
    token_ids = segment.unit.token_list
    if segment.num_tokens == len(token_ids):
        return token_ids
    return token_ids[segment.start : segment.end]


def units_to_wire(units: Iterable[Unit]) -> dict[str, list[Any]]:
    """Units by digest, with the units of their contexts, contexts first."""
    texts: dict[str, list[Any]] = {}
    pending = list(units)[::-1]
    while pending:
        unit = pending[-1]
        missing = () if unit.digest in texts else [seen for seen in unit.seen if seen.digest not in texts]
        if missing:
            pending += reversed(missing)
            continue
        pending.pop()
        texts.setdefault(
            unit.digest,
            [
                np.ascontiguousarray(unit.token_ids, np.int64).tobytes(),
                np.ascontiguousarray(unit.position_ids - unit.home, np.int64).tobytes(),
                np.ascontiguousarray(unit.kept, bool).tobytes(),
                [[seen.digest, seen.home - unit.home] for seen in unit.seen],
                list(unit.breaks),
                unit.home,
                unit.stem is not None,
            ],
        )
    return texts


def keys_from_wire(
    units: Iterable[Any], adapter: tuple[str, ...] | None = None, tenant: str | None = None
) -> list[UnitKey]:
    """What the engine calls units, given by digest and position, of an adapter and a tenant.

    Raises:
        TypeError, ValueError: they are not given so.
    """
    keys = [UnitKey(digest, position, adapter, tenant) for digest, position in units]
    if not all(type(key.digest) is str and type(key.position) is int for key in keys):
        raise TypeError("units are given by digest and position")
    return keys


def composition_from_wire(wire: Mapping[str, Any], keys: Sequence[UnitKey]) -> Composition:
    """The composition a request asks for, its units called by ``keys``.

    Raises:
        LookupError, TypeError, ValueError: the wire is malformed. Its items are not yet checked against
            the units: see ``lay_out_slots``.
    """
    flat = wire["items"]
    if not {int}.issuperset(map(type, flat)):
        raise TypeError("a composition's items are integers")
    triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    return Composition(tuple([Reused(keys[a], b, c) if a >= 0 else Computed(b, c) for a, b, c in triples]))


def ranges_from_wire(ranges: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    """The ranges of repaired tokens. Raises TypeError or ValueError where they are none."""
    pairs = tuple((start, end) for start, end in ranges)
    if not all(type(number) is int for pair in pairs for number in pair):
        raise TypeError("ranges of repaired tokens are integers")
    return pairs


def texts_from_wire(texts: Mapping[str, Any]) -> dict[str, UnitText]:
    """Unit texts by digest.

    Raises:
        ValueError: a text does not have the digest it comes under. States are kept by digest, so one
            that lied would answer later requests with another text.
        TypeError: a text is not one.
    """
    found: dict[str, UnitText] = {}
    for digest, (tokens, positions, kept, context, breaks, home, has_stem) in texts.items():
        text = UnitText(
            np.frombuffer(tokens, np.int64),
            np.frombuffer(positions, np.int64),
            np.frombuffer(kept, bool),
            tuple([Seen(*seen) for seen in context]),
            tuple(breaks),
            int(home),
            bool(has_stem),
        )
        given = (text.token_ids, text.positions, text.kept, text.context, text.breaks, text.has_stem)
        if digest_of(*given) != digest:
            raise ValueError(f"a unit's text does not have the digest {digest}")
        found[digest] = text
    return found
