"""Requests over modules, sent to engines by one way or another: counted, without an engine."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence

from vllm_promptcache.frontend.routing import choose_engine

# A request's modules and how busy the engines are, to the engine that it goes to.
Way = Callable[[Sequence[str], Sequence[float]], int]


def zipf_requests(
    num_modules: int, per_request: int, num_requests: int, exponent: float, seed: int = 0
) -> list[list[str]]:
    """Requests of so many different modules each, drawn as often as Zipf's law says."""
    drawn = random.Random(seed)
    weights = list(itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(num_modules)))
    names = [f"module {rank}" for rank in range(num_modules)]
    requests = []
    for _ in range(num_requests):
        chosen: dict[str, None] = {}
        while len(chosen) < per_request:
            chosen[drawn.choices(names, cum_weights=weights)[0]] = None
        requests.append(list(chosen))
    return requests


def at_home(modules: Sequence[str], loads: Sequence[float]) -> int:
    """The plugin's way."""
    return choose_engine([(module, 1) for module in modules], loads)


def least_busy(modules: Sequence[str], loads: Sequence[float]) -> int:
    """vLLM's way: the engine with the fewest unfinished requests, the first of several."""
    return min(range(len(loads)), key=loads.__getitem__)


def resident_share(
    requests: Sequence[Sequence[str]], way: Way, num_engines: int, room: int, in_flight: int
) -> tuple[float, float]:
    """The share of modules that requests find resident, and the largest share of requests that an engine had.

    Each engine holds ``room`` modules and drops the one that was not used for longest; a request is finished
    when ``in_flight`` others have come after it.
    """
    held: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(num_engines)]
    loads, sent = [0.0] * num_engines, [0] * num_engines
    running: list[int] = []
    found = 0
    for modules in requests:
        engine = way(modules, loads)
        sent[engine] += 1
        loads[engine] += 1
        running.append(engine)
        if len(running) > in_flight:
            loads[running.pop(0)] -= 1
        for module in modules:
            found += module in held[engine]
            held[engine][module] = None
            held[engine].move_to_end(module)
            if len(held[engine]) > room:
                held[engine].popitem(last=False)
    return found / sum(map(len, requests)), max(sent) / len(requests)


def compare(num_modules: int, per_request: int, num_engines: int, room: int, num_requests: int) -> str:
    """A table of both ways, for Zipf exponents."""
    lines = [
        "| Zipf exponent | found, to the least busy | found, where modules are at home | busiest's share |",
        "|---|---|---|---|",
    ]
    for exponent in (0.0, 0.6, 1.0, 1.2):
        requests = zipf_requests(num_modules, per_request, num_requests, exponent)
        balanced, _ = resident_share(requests, least_busy, num_engines, room, 8)
        routed, busiest = resident_share(requests, at_home, num_engines, room, 8)
        lines.append(f"| {exponent} | {balanced:.3f} | {routed:.3f} | {busiest:.3f} |")
    return "\n".join(lines)
