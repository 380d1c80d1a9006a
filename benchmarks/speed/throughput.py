"""Questions over a pool of documents, many in flight: vLLM's prefix cache on and off, and composed."""

from __future__ import annotations

import argparse
import contextlib
import time
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from benchmarks.harness.load import ask_at_once
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.servers import Plugin, Server, let_others_rest
from benchmarks.harness.spread import Spread, by_place, interleave, ratio_of
from benchmarks.harness.text import TextSource, read_corpus
from benchmarks.speed.pool import SCHEMA, Pool, Question

WAYS = {"off": "vLLM, prefix cache off", "on": "vLLM, prefix cache on", "composed": "composed"}


@dataclass(frozen=True)
class Load:
    """A kind of load: tokens of each answer, requests a burst for each in flight, and at least so many."""

    title: str
    num_answer_tokens: int
    per_flight: int
    at_least: int
    rounds: int


LOADS = {
    "prefill": Load("short answers, documents in random order", 8, 2, 16, 3),
    "decode": Load("long answers, documents in random order", 128, 1, 8, 2),
    "perfect": Load("short answers, always the same documents in the same order", 8, 3, 24, 5),
}
CONCURRENCY_OF_WARM_UP = 8
CONCURRENCY = {"prefill": "1,2,4,8,16,32", "decode": "1,8,32", "perfect": "8"}


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument("--load", default=",".join(LOADS), help="kinds of load (default: %(default)s)")
    parser.add_argument("--concurrency", help=f"requests in flight (default: {CONCURRENCY})")
    parser.add_argument("--rounds", type=int, help="bursts of each way (default: by kind of load)")
    parser.add_argument("--documents", type=int, default=64, help="in the pool (default: %(default)s)")
    parser.add_argument("--document-tokens", type=int, default=256, help="on average (default: %(default)s)")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=100,
        help="questions over documents in random order that servers without the plugin are asked before the "
        "first sample; the composed one has the whole pool encoded instead (default: %(default)s)",
    )
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent (default: %(default)s)")


def run(run: Run, args: argparse.Namespace) -> None:
    """Three servers at once; bursts in turn, every way asked the same questions."""
    settings = run.settings
    corpus = read_corpus(settings.data)
    source = TextSource(corpus, AutoTokenizer.from_pretrained(settings.model), settings.seed)
    documents, tokens = (16, 160) if settings.quick else (args.documents, args.document_tokens)
    pool = Pool.fill(source, documents, tokens, args.zipf, settings.seed)
    points = [
        (kind, int(level))
        for kind in args.load.split(",")
        for level in ("4" if settings.quick else args.concurrency or CONCURRENCY[kind]).split(",")
    ]
    if all(run.has(f"{kind}:{level}") for kind, level in points):
        return
    with contextlib.ExitStack() as stack:
        servers = {
            "off": Server(settings, Plugin.OFF, "--no-enable-prefix-caching", name=WAYS["off"]),
            "on": Server(settings, Plugin.OFF, name=WAYS["on"]),
            "composed": Server(settings, Plugin.ON, name=WAYS["composed"]),
        }
        for server in servers.values():
            run.add_server(stack.enter_context(server).describe())
        servers["composed"].register(pool.to_pml())
        started = time.perf_counter()
        servers["composed"].call("POST", f"/v1/prompt_cache/schemas/{SCHEMA}/warm", {})
        encoding_s = round(time.perf_counter() - started, 1)
        warm_up = 4 if settings.quick else args.warm_up
        run.result["pool"] = {**pool.describe(), "encoding_s": encoding_s, "warm_up": warm_up}
        _fill_prefix_cache(servers["on"], pool, warm_up)
        for kind, level in points:
            key = f"{kind}:{level}"
            if run.wants(key):
                rounds = 2 if settings.quick else args.rounds or LOADS[kind].rounds
                cell = _measure(servers, pool, kind, level, rounds, settings.quick)
                run.add(key, {"load": kind, "concurrency": level, **cell})
                run.say(f"{key}: composed / on {shown(_ratio(cell, 'composed', 'on'), 2)}")


def _fill_prefix_cache(server: Server, pool: Pool, count: int) -> None:
    """What vLLM's prefix cache finds grows with what it has been asked."""
    questions = [pool.ask().to_ask("on", 1) for _ in range(count)]
    if questions:
        ask_at_once(server, questions, CONCURRENCY_OF_WARM_UP)


def _measure(servers: dict[str, Server], pool: Pool, kind: str, level: int, rounds: int, quick: bool) -> Cell:
    load = LOADS[kind]
    count = 8 if quick else max(load.at_least, load.per_flight * level)
    ways = list(WAYS) if kind != "perfect" else ["on", "composed"]

    def questions(number: int) -> list[Question]:
        return [pool.same() if kind == "perfect" else pool.ask() for _ in range(number)]

    for way in ways:
        # Steady state before the first sample.
        warm_up = questions(max(level, 4) if kind != "perfect" else 2)
        ask_at_once(servers[way], [q.to_ask(way, load.num_answer_tokens) for q in warm_up], level)
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    asked: dict[tuple[int, ...], list[Question]] = {}
    for way, place in interleave(dict.fromkeys(ways, 1), rounds):
        if place not in asked:
            asked = {place: questions(count)}
        asks = [question.to_ask(way, load.num_answer_tokens) for question in asked[place]]
        let_others_rest()
        burst = ask_at_once(servers[way], asks, level)
        samples[way].append({"place": place, **burst.to_json()})
    return {
        "requests": count,
        "answer_tokens": load.num_answer_tokens,
        "samples": samples,
    }


# -- the result ----------------------------------------------------------------------------------------


def _spread(cell: Cell, way: str) -> Spread | None:
    samples = cell["samples"].get(way)
    return Spread.of(sample["requests_per_s"] for sample in samples) if samples else None


def _ratio(cell: Cell, above: str, below: str) -> Spread | None:
    rates = {w: by_place(cell["samples"].get(w, ()), "requests_per_s") for w in (above, below)}
    return ratio_of(rates[above], rates[below])


def _ttft(cell: Cell, way: str) -> Spread | None:
    times = [time for sample in cell["samples"].get(way, ()) for time in sample["ttfts_ms"]]
    return Spread.of(times) if times else None


def tables(result: Result) -> list[Table]:
    """Requests a second, and time to first token under load."""
    rates, times = [], []
    for cell in result["cells"].values():
        name = (LOADS[cell["load"]].title, str(cell["concurrency"]))
        rates.append(
            (
                *name,
                *(shown(_spread(cell, way), 2) for way in WAYS),
                *(shown(_ratio(cell, "composed", way), 2) for way in ("on", "off")),
            )
        )
        times.append((*name, *(shown(_ttft(cell, way), 0) for way in WAYS)))
    pool = result["pool"]
    note = (
        f"Every question takes {pool['documents_a_question']} documents of {pool['documents']}, "
        f"Zipf-distributed (exponent {pool['zipf']}), of {pool['document_tokens']} tokens on average. "
        "Composed, they are members of a pool, in the order in which they were found. Encoding the pool "
        f"took {pool['encoding_s']} s, once; the server with the prefix cache was asked {pool['warm_up']} "
        "questions before. A perfect prefix is "
        f"{pool['same_tokens']} tokens and the question; vLLM computes what does not fill a block again."
    )
    first = ("load", "in flight")
    return [
        Table(
            "Requests per second",
            (*first, *WAYS.values(), "composed / on", "composed / off"),
            tuple(rates),
            note,
        ),
        Table("Time to first token under load, ms", (*first, *WAYS.values()), tuple(times)),
    ]


def figures(result: Result) -> list[Figure]:
    """Three times the prefix cache in random order, and no loss where it is perfect."""
    found = []
    for key, target, what in (
        ("prefill:8", 3.0, "composed / prefix cache on, short answers, 8 in flight, random order"),
        ("perfect:8", 0.98, "composed / prefix cache on, every prompt a perfect prefix"),
    ):
        ratio = _ratio(result["cells"][key], "composed", "on") if key in result["cells"] else None
        if ratio is not None:
            found.append(Figure(what, ratio, target, False))
    return found


def panels(result: Result) -> list[Panel]:
    """Requests a second by concurrency, one panel a kind of load."""
    made = []
    for kind in dict.fromkeys(cell["load"] for cell in result["cells"].values()):
        cells = [cell for cell in result["cells"].values() if cell["load"] == kind]
        series = [
            Series(what, tuple((c["concurrency"], s) for c in cells if (s := _spread(c, way))))
            for way, what in WAYS.items()
        ]
        drawn = tuple(one for one in series if one.points)
        made.append(Panel(LOADS[kind].title, "requests in flight", "requests/s", drawn, log_x=len(cells) > 1))
    return made
