"""Retrieval as it is: passages found by BM25, in their ranking, marked, over HTTP, many in flight."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import ask_at_once
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.servers import Plugin, Server, let_others_rest
from benchmarks.harness.spread import Spread, by_place, interleave, ratio_of
from benchmarks.speed.passages import Found, Library
from benchmarks.speed.reordering import Reordering

WAYS = {
    "off": "vLLM, no cache",
    "on": "vLLM, prefix cache",
    "reordered": "prefix cache, passages reordered",
    "marks": "passages marked",
}
CONCURRENCY = "1,2,4,8,16,32"
# Popular questions are asked again and again: Zipf over the first so many.
POPULAR = 64
LOADS = {"new": "each question once", "popular": f"{POPULAR} questions, Zipf-distributed"}
# Tokens of the chat template around a question, at most; only a guess for vLLM's benchmark.
AROUND = 32


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument("--passages", help="JSONL, or a folder of it (default: texts of installed packages)")
    parser.add_argument("--load", default=",".join(LOADS), help="kinds of load (default: %(default)s)")
    parser.add_argument("--concurrency", default=CONCURRENCY, help="in flight (default: %(default)s)")
    parser.add_argument("--ways", default=",".join(WAYS), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="bursts of each way (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=16, help="of each (default: %(default)s)")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=200,
        help="questions that each way is asked before the first sample (default: %(default)s)",
    )


class Questions:
    """Questions for bursts: each way is asked the same ones, in the same order."""

    def __init__(self, library: Library, tokenizer: Any, num_answer_tokens: int, seed: int):
        self._found = library.find(len(library.questions), seed)
        self._tokenizer = tokenizer
        self._num_answer_tokens = num_answer_tokens
        self._next = 0
        self._rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, min(POPULAR, len(self._found)) + 1)
        self._weights = weights / weights.sum()
        self._reordering: Reordering | None = None
        self.num_passages: list[int] = []

    def take(self, load: str, count: int) -> list[Found]:
        """The next questions of a kind of load."""
        if load == "popular":
            picked = self._rng.choice(len(self._weights), count, p=self._weights).tolist()
        else:
            picked = [(self._next + i) % len(self._found) for i in range(count)]
            self._next += count
        self.num_passages += [len(self._found[i].passages) for i in picked]
        return [self._found[i] for i in picked]

    def asks(self, way: str, found: Sequence[Found]) -> list[Ask]:
        """The requests of a way; only one of them says what its passages are."""
        if way == "reordered":
            self._reordering = self._reordering or Reordering()
            found = self._reordering.reorder(found)
        return [self._ask(one, marked=way == "marks") for one in found]

    def _ask(self, found: Found, *, marked: bool) -> Ask:
        mark = {"cache_control": {"type": "ephemeral"}} if marked else {}
        parts = [{"type": "text", "text": f"{passage}\n\n", **mark} for passage in found.passages]
        parts.append({"type": "text", "text": found.question})
        text = "".join(part["text"] for part in parts)
        length = len(self._tokenizer.encode(text, add_special_tokens=False)) + AROUND
        return Ask([{"role": "user", "content": parts}], length, self._num_answer_tokens)


def run(run: Run, args: argparse.Namespace) -> None:
    """A server for each way, all at once; bursts in turn, every way asked the same questions."""
    settings = run.settings
    library = Library.read(Path(args.passages) if args.passages else None)
    questions = Questions(
        library, AutoTokenizer.from_pretrained(settings.model), args.answer_tokens, settings.seed
    )
    ways, rounds = _ways(run, args.ways), 2 if settings.quick else args.rounds
    levels = [2] if settings.quick else [int(level) for level in args.concurrency.split(",")]
    points = [(load, level) for load in args.load.split(",") for level in levels]
    if all(run.has(f"{load}:{level}") for load, level in points):
        return
    with contextlib.ExitStack() as stack:
        servers = {way: stack.enter_context(_server(way, settings)) for way in ways}
        for server in servers.values():
            run.add_server(server.describe())
        warm_up = 4 if settings.quick else args.warm_up
        run.result["passages"] = {
            "source": library.source,
            "passages": len(library.passages),
            "questions": len(library.questions),
            "warm_up": warm_up,
        }
        _warm_up(servers, questions, warm_up)
        for load, level in points:
            key = f"{load}:{level}"
            if run.wants(key):
                count = 4 if settings.quick else max(16, 2 * level)
                cell = _measure(servers, questions, load, level, count, rounds)
                run.add(key, {"load": load, "concurrency": level, **cell})
                run.say(f"{key}: marks / prefix cache {shown(_ratio(cell, 'marks', 'on'), 2)}")


def _ways(run: Run, given: str) -> list[str]:
    ways = given.split(",")
    if "reordered" in ways and find_spec("contextpilot") is None:
        run.say("reordered is left out: pip install 'vllm-promptcache[reorder]'")
        ways.remove("reordered")
    return ways


def _server(way: str, settings: Any) -> Server:
    arguments = ["--no-enable-prefix-caching"] if way == "off" else []
    plugin = Plugin.ON if way == "marks" else Plugin.OFF
    return Server(settings, plugin, *arguments, name=WAYS[way])


def _warm_up(servers: dict[str, Server], questions: Questions, count: int) -> None:
    """What caches hold grows with what they have been asked; a server without one is asked a few."""
    found = questions.take("new", count)
    for way, server in servers.items():
        asked = found[:4] if way == "off" else found
        ask_at_once(server, questions.asks(way, asked), 8)


def _measure(
    servers: dict[str, Server], questions: Questions, load: str, level: int, count: int, rounds: int
) -> Cell:
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in servers}
    asked: dict[tuple[int, ...], list[Found]] = {}
    for way, place in interleave(dict.fromkeys(servers, 1), rounds):
        if place not in asked:
            asked = {place: questions.take(load, count)}
        server, asks = servers[way], questions.asks(way, asked[place])
        let_others_rest()
        before = server.prompt_tokens()
        burst = ask_at_once(server, asks, level)
        after = server.prompt_tokens()
        cached, total = (later - earlier for later, earlier in zip(after, before, strict=True))
        samples[way].append({"place": place, "cached": cached, "tokens": total, **burst.to_json()})
    memory = {way: server.memory_bytes() for way, server in servers.items()}
    return {"requests": count, "samples": samples, "memory_bytes": memory}


# -- the result ----------------------------------------------------------------------------------------


def _spread(cell: Cell, way: str) -> Spread | None:
    samples = cell["samples"].get(way)
    return Spread.of(sample["requests_per_s"] for sample in samples) if samples else None


def _ttft(cell: Cell, way: str) -> Spread | None:
    times = [time for sample in cell["samples"].get(way, ()) for time in sample["ttfts_ms"]]
    return Spread.of(times) if times else None


def _ratio(cell: Cell, above: str, below: str) -> Spread | None:
    rates = {way: by_place(cell["samples"].get(way, ()), "requests_per_s") for way in (above, below)}
    return ratio_of(rates[above], rates[below])


def cached_share(cells: Iterable[Cell], way: str) -> float | None:
    """The share of prompts' tokens that a way's server says it found."""
    samples = [sample for cell in cells for sample in cell["samples"].get(way, ())]
    total = sum(sample["tokens"] for sample in samples)
    return sum(sample["cached"] for sample in samples) / total if total else None


def winner(cell: Cell) -> str:
    """The way with the most requests a second."""
    rates = {way: spread.median for way in WAYS if (spread := _spread(cell, way))}
    return WAYS[max(rates, key=lambda way: rates[way])]


def tables(result: Result) -> list[Table]:
    """Throughput, first token, what was cached, memory."""
    cells = list(result["cells"].values())
    first = ("load", "in flight")
    names = [(LOADS[cell["load"]], str(cell["concurrency"])) for cell in cells]
    shares = [[cached_share([cell], way) for way in WAYS] for cell in cells]
    known = result["passages"]
    note = (
        f"{known['passages']} passages and {known['questions']} questions: {known['source']}. Each is "
        "asked over its best 5 to 10 by BM25, in their ranking but where they are reordered. Every way was "
        f"asked {known['warm_up']} before. Marks change nothing of a prompt but how it is computed."
    )
    rates = [
        (*name, *(shown(_spread(cell, way), 2) for way in WAYS), winner(cell))
        for name, cell in zip(names, cells, strict=True)
    ]
    times = [
        (*name, *(shown(_ttft(cell, way), 0) for way in WAYS))
        for name, cell in zip(names, cells, strict=True)
    ]
    cached = [
        (*name, *("–" if share is None else f"{share:.0%}" for share in row))
        for name, row in zip(names, shares, strict=True)
    ]
    memory = cells[-1]["memory_bytes"] if cells else {}
    sizes = tuple(f"{memory[way] / 2**30:.2f}" if way in memory else "–" for way in WAYS)
    ways = tuple(WAYS.values())
    return [
        Table("Requests per second", (*first, *ways, "most"), tuple(rates), note),
        Table("Time to first token, ms", (*first, *ways), tuple(times)),
        Table("Prompt tokens that were cached", (*first, *ways), tuple(cached)),
        Table(
            "Memory at the end, GiB", ways, (sizes,), "Of all the server's processes, shared pages in parts."
        ),
    ]


def figures(result: Result) -> list[Figure]:
    """More requests than with the prefix cache, reordered or not."""
    found = []
    for other in ("on", "reordered"):
        cell = result["cells"].get("new:8")
        ratio = _ratio(cell, "marks", other) if cell else None
        if ratio is not None:
            found.append(Figure(f"marked / {WAYS[other]}, new questions, 8 in flight", ratio, 1.0, False))
    return found


def panels(result: Result) -> list[Panel]:
    """Requests a second by concurrency, one panel a kind of load."""
    made = []
    for load in dict.fromkeys(cell["load"] for cell in result["cells"].values()):
        cells = [cell for cell in result["cells"].values() if cell["load"] == load]
        series = [
            Series(what, tuple((c["concurrency"], s) for c in cells if (s := _spread(c, way))))
            for way, what in WAYS.items()
        ]
        drawn = tuple(one for one in series if one.points)
        made.append(Panel(LOADS[load], "requests in flight", "requests/s", drawn, log_x=len(cells) > 1))
    return made
