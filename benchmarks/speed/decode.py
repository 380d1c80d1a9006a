"""Time per output token by context length: composed and plain, one after the other."""

from __future__ import annotations

import argparse
from typing import Any
from uuid import uuid4

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import ask_at_once, ask_in_turn, cached_tokens
from benchmarks.harness.modules import Schema, joined_ids, make_schema
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.servers import Plugin, Server
from benchmarks.harness.spread import Spread, by_place, interleave, ratio_of
from benchmarks.harness.text import TextSource, read_corpus

WAYS = {
    "plain": "a plain prompt that hits the prefix cache",
    "composed": "the same tokens, composed of modules",
}
NUM_MODULES = 8
NUM_NEW_TOKENS = 24


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--context", default="1000,2000,4000,8000", help="cached tokens (default: %(default)s)"
    )
    parser.add_argument("--answer", type=int, default=64, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=12, help="requests of each way (default: %(default)s)")
    parser.add_argument("--concurrency", default="1,8", help="requests in flight (default: %(default)s)")


def run(run: Run, args: argparse.Namespace) -> None:
    """Measure all lengths on one server."""
    settings = run.settings
    source = TextSource(
        read_corpus(settings.data), AutoTokenizer.from_pretrained(settings.model), settings.seed
    )
    lengths = [512] if settings.quick else [int(n) for n in args.context.split(",")]
    pairs, answer = (2, 16) if settings.quick else (args.pairs, args.answer)
    levels = [int(n) for n in args.concurrency.split(",")]
    if all(run.has(f"{n}x{level}") for n in lengths for level in levels):
        return
    with Server(settings, Plugin.ON) as server:
        run.add_server(server.describe())
        for length in lengths:
            wanted = [level for level in levels if run.wants(f"{length}x{level}")]
            if not wanted:
                continue
            cached = settings.cached_tokens(length)
            schema = make_schema(
                f"s{uuid4().hex[:8]}", cached, NUM_MODULES, source, np.random.default_rng(settings.seed)
            )
            server.forget_states()
            server.register(schema.to_pml())
            for level in wanted:
                cell = _measure(
                    server, schema, source, pairs if level == 1 else max(pairs // 2, 2), answer, level
                )
                run.add(f"{length}x{level}", {"cached_tokens": cached, "concurrency": level, **cell})
                run.say(f"{length} x {level}: composed / plain {shown(_ratio(cell), 3)}")
            server.unregister(schema.name)


def _measure(
    server: Server, schema: Schema, source: TextSource, pairs: int, num_answer: int, level: int
) -> Cell:
    plain_ids = joined_ids(schema.modules)

    def ask(way: str) -> Ask:
        new = source.take(NUM_NEW_TOKENS)
        num_prompt = len(plain_ids) + NUM_NEW_TOKENS
        if way == "plain":
            return Ask([*plain_ids, *source.token_ids(new)], num_prompt, num_answer)
        return Ask(new, num_prompt, num_answer, {"pml": schema.prompt()})

    reused = {way: [cached_tokens(server, ask(way)) for _ in range(2)] for way in WAYS}
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    order = interleave(dict.fromkeys(WAYS, 1), pairs)
    if level == 1:
        answers = ask_in_turn([(server, ask(way)) for way, _ in order])
        for (way, place), answer in zip(order, answers, strict=True):
            between = list(answer.between_ms)
            sample = {"place": place, "tpot_ms": answer.tpot_ms, "between_ms": [round(t, 3) for t in between]}
            samples[way].append(sample)
    else:
        for way, place in order:
            burst = ask_at_once(server, [ask(way) for _ in range(level)], level)
            # The median between tokens: a mean would have the prefills of the others in it.
            samples[way].append({"place": place, "tpot_ms": burst.median_between_ms})
    return {"reused_tokens": reused, "samples": samples}


def _spread(cell: Cell, way: str) -> Spread:
    return Spread.of(sample["tpot_ms"] for sample in cell["samples"][way])


def _ratio(cell: Cell) -> Spread | None:
    times = {way: by_place(cell["samples"][way], "tpot_ms") for way in WAYS}
    return ratio_of(times["composed"], times["plain"])


def tables(result: Result) -> list[Table]:
    """Time per output token."""
    rows = [
        (
            str(cell["cached_tokens"]),
            str(cell["concurrency"]),
            *(shown(_spread(cell, way), 2) for way in WAYS),
            shown(_ratio(cell), 3),
            "/".join(str(n) for way in WAYS for n in cell["reused_tokens"][way]),
        )
        for cell in result["cells"].values()
    ]
    columns = ("cached tokens", "in flight", *WAYS, "composed / plain", "reused tokens")
    note = "; ".join(f"*{way}*: {what}" for way, what in WAYS.items())
    note += ". Reused tokens: of the first and second request, plain, then composed."
    return [Table("Time per output token after the first, ms", columns, tuple(rows), note)]


def figures(result: Result) -> list[Figure]:
    """The figure to reach: for each length, one request at a time."""
    found = []
    for cell in result["cells"].values():
        ratio = _ratio(cell)
        if ratio is not None:
            what = f"composed / plain, {cell['cached_tokens']} cached, {cell['concurrency']} in flight"
            found.append(Figure(what, ratio, 1.01, True))
    return found


def panels(result: Result) -> list[Panel]:
    """Times by context length."""
    made = []
    for level in sorted({cell["concurrency"] for cell in result["cells"].values()}):
        cells = [cell for cell in result["cells"].values() if cell["concurrency"] == level]
        series = [Series(w, tuple((c["cached_tokens"], _spread(c, w)) for c in cells)) for w in WAYS]
        title = f"Time per output token, {level} in flight"
        made.append(Panel(title, "cached tokens", "ms", tuple(series), log_x=True))
    return made
