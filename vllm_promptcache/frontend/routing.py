"""Which of several engines a composed request goes to: the one that has its modules, where load allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

# An engine is passed over when it has more than so many times its share of the load, and then some.
LOAD_FACTOR = 1.25
LOAD_SLACK = 1


def engine_for(wire: Mapping[str, Any], loads: Sequence[float]) -> int:
    """The rank of the engine for a composition as it travels (``blocks.wire``)."""
    items = wire["items"]
    reused = zip(items[::3], items[1::3], items[2::3], strict=True)
    units = [digest for digest, _ in wire["units"]]
    return choose_engine(((units[index], end - start) for index, start, end in reused if index >= 0), loads)


def choose_engine(units: Iterable[tuple[str, int]], loads: Sequence[float]) -> int:
    """The rank of the engine for a request that reuses so many tokens of each of these units.

    Each unit has one engine by rendezvous hashing (Thaler and Ravishankar, 1998), the same in every API
    server; the request goes where most of its tokens are at home. ``loads`` are the engines' unfinished
    requests: one that has much more than its share is passed over (consistent hashing with bounded loads,
    Mirrokni et al., 2018).
    """
    ranks = range(len(loads))
    tokens = [0] * len(loads)
    for unit, num_tokens in units:
        tokens[max(ranks, key=lambda rank: _score(unit, rank))] += num_tokens
    bound = LOAD_FACTOR * (sum(loads) + 1) / len(loads) + LOAD_SLACK
    free = [rank for rank in ranks if loads[rank] < bound] or list(ranks)
    return max(free, key=lambda rank: (tokens[rank], -loads[rank]))


def _score(unit: str, rank: int) -> bytes:
    return blake2b(f"{unit}@{rank}".encode(), digest_size=8).digest()
