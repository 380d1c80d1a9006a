"""Traces of uses, to compare what is evicted with LRU and with the best that could be done."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from vllm_promptcache.records.eviction import GreedyDual, encoding_cost


def zipf_trace(
    num_members: int, num_requests: int, exponent: float, seed: int, mean_tokens: int = 500
) -> tuple[list[str], dict[str, int]]:
    """Names of members in the order in which they are used, and how many tokens each has.

    Members are used as often as Zipf's law says; their tokens are log-normal around ``mean_tokens``.
    """
    drawn = random.Random(seed)
    names = [f"member {number}" for number in range(num_members)]
    weights = list(itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(num_members)))
    tokens = {n: max(int(drawn.lognormvariate(math.log(mean_tokens), 0.6)), 16) for n in names}
    return drawn.choices(names, cum_weights=weights, k=num_requests), tokens


def hit_rate(trace: Sequence[str], tokens: Mapping[str, int], room: int) -> float:
    """The share of uses that find their member, with ``GreedyDual`` and room for so many tokens."""
    order, hits = GreedyDual(), 0
    for name in trace:
        if name in order:
            order.use(name)
            hits += 1
            continue
        while order.num_bytes + tokens[name] > room and order.evict() is not None:
            pass
        if order.num_bytes + tokens[name] <= room:
            order.add(name, tokens[name], encoding_cost(tokens[name], 0))
    return hits / len(trace)


def least_recently_used(trace: Sequence[str], tokens: Mapping[str, int], room: int) -> float:
    """As ``hit_rate``, where what was not used for longest goes first."""
    kept: OrderedDict[str, None] = OrderedDict()
    used = hits = 0
    for name in trace:
        if name in kept:
            kept.move_to_end(name)
            hits += 1
            continue
        while kept and used + tokens[name] > room:
            used -= tokens[kept.popitem(last=False)[0]]
        if used + tokens[name] <= room:
            kept[name] = None
            used += tokens[name]
    return hits / len(trace)


def belady(trace: Sequence[str], tokens: Mapping[str, int], room: int) -> float:
    """As ``hit_rate``, knowing the future: what is used again latest goes first, and perhaps at
    once. For members of one length this is the best that can be done (Belady 1966)."""
    following = _next_uses(trace)
    kept: dict[str, int] = {}
    farthest: list[tuple[int, str]] = []
    used = hits = 0
    for at, name in enumerate(trace):
        if name in kept:
            hits += 1
        else:
            used += tokens[name]
        kept[name] = following[at]
        heapq.heappush(farthest, (-following[at], name))
        while used > room:
            when, gone = heapq.heappop(farthest)
            if kept.get(gone) == -when:
                del kept[gone]
                used -= tokens[gone]
    return hits / len(trace)


def _next_uses(trace: Sequence[str]) -> list[int]:
    """For each use, when the same is used next; past the end if it is not."""
    following, seen = [0] * len(trace), dict[str, int]()
    for at in range(len(trace) - 1, -1, -1):
        following[at] = seen.get(trace[at], len(trace) + at)
        seen[trace[at]] = at
    return following


def compare(num_members: int = 2000, fitting: int = 200, num_requests: int = 100_000) -> str:
    """A table of hit rates on Zipf traces, of members of which so many fit."""
    lines = ["| Zipf exponent | LRU | GreedyDual | offline optimum |", "|---|---|---|---|"]
    for exponent in (0.6, 0.8, 1.0, 1.2):
        trace, tokens = zipf_trace(num_members, num_requests, exponent, seed=0)
        room = sum(tokens.values()) * fitting // num_members
        rates = (way(trace, tokens, room) for way in (least_recently_used, hit_rate, belady))
        lines.append(f"| {exponent} | " + " | ".join(f"{rate:.3f}" for rate in rates) + " |")
    return "\n".join(lines)
