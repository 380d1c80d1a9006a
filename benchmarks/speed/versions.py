"""This checkout against another one: plain and composed requests, of two servers in turn."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import Client
from benchmarks.harness.modules import Schema, make_schema
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run, cells_by_kind
from benchmarks.harness.servers import Plugin, Server, let_others_rest
from benchmarks.harness.spread import Place, Spread, by_place, interleave, ratio_over_starts
from benchmarks.harness.text import TextSource, read_corpus

HERE = Path(__file__).resolve().parents[2]
WAYS = ("here", "other")
# Kind of request: what is measured of it.
KINDS = {
    "prefill": ("ttft_ms", "plain, 512 new tokens: time to first token"),
    "prefix": ("ttft_ms", "plain, 2,048 cached and 24 new tokens: time to first token"),
    "decode": ("tpot_ms", "plain, 256 tokens: time per output token of 48"),
    "ragged": ("ttft_ms", "composed, 4,000 tokens in 8 ragged modules, 24 new: time to first token"),
    "whole": ("ttft_ms", "composed, 4,096 tokens in whole blocks, 24 new: time to first token"),
    "cold": ("ttft_ms", "composed, 4,000 tokens that are encoded first: time to first token"),
    "composed-decode": ("tpot_ms", "composed, 4,000 tokens: time per output token of 48"),
}
# Of one of these are a third as many samples: they are long.
_LONG = ("decode", "composed-decode", "cold", "prefill")


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--against",
        default=str(HERE),
        help="a folder with another checkout (default: this one, for what a ratio means)",
    )
    parser.add_argument("--starts", type=int, default=2, help="fresh pairs of servers (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=36, help="of each way and start (default: %(default)s)"
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help="(default: %(default)s)")


def run(run: Run, args: argparse.Namespace) -> None:
    """Two servers at once, asked in turn; then two fresh ones, of which the other starts first."""
    settings = run.settings
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    source = TextSource(read_corpus(settings.data), tokenizer, settings.seed)
    folders = {"here": HERE, "other": Path(args.against).resolve()}
    starts, count = (1, 3) if settings.quick else (args.starts, args.samples)
    for start in range(starts):
        keys = {kind: f"{kind}:{start}" for kind in args.kinds.split(",")}
        if not any(run.wants(key) for key in keys.values()):
            continue
        with contextlib.ExitStack() as stack:
            order = WAYS if start % 2 == 0 else WAYS[::-1]
            kv_gib = min(settings.kv_gib, 1.5)
            servers = {
                way: stack.enter_context(
                    Server(settings, Plugin.ON, kv_gib=kv_gib, name=f"plugin {way}", checkout=folders[way])
                )
                for way in order
            }
            for server in servers.values():
                run.add_server(server.describe())
            client = stack.enter_context(Client())
            for kind, key in keys.items():
                if run.wants(key):
                    run.add(key, _measure(kind, servers, client, source, count, settings.seed))
                    run.say(f"{key}: here / other {shown(_ratio([run.result['cells'][key]]), 4)}")


def _measure(
    kind: str, servers: dict[str, Server], client: Client, source: TextSource, count: int, seed: int
) -> Cell:
    measured = KINDS[kind][0]
    make = _maker(kind, servers, source, seed)
    count = max(count // 3 if kind in _LONG else count, 2)
    num_warm_up = 2
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in servers}
    # Both are asked the same at a place, so that a pair differs in nothing else.
    asked: dict[Place, Ask] = {}
    for way, place in interleave(dict.fromkeys(WAYS, 1), count + num_warm_up):
        if place not in asked:
            asked = {place: make()}
        let_others_rest()
        answer = client.ask(servers[way], asked[place])
        if place[0] >= num_warm_up:
            samples[way].append({"place": place, measured: getattr(answer, measured)})
    return {"kind": kind, "samples": samples}


def _maker(kind: str, servers: dict[str, Server], source: TextSource, seed: int) -> Callable[[], Ask]:
    """What makes a kind's requests; schemas are registered with both servers."""

    def plain(num_tokens: int, num_answer: int, before: tuple[int, ...] = ()) -> Ask:
        prompt = [*before, *source.token_ids(source.take(num_tokens))]
        return Ask(prompt, len(prompt), num_answer)

    def composed(schema: Schema, num_answer: int, **body: Any) -> Ask:
        return Ask(source.take(24), schema.num_tokens + 24, num_answer, {"pml": schema.prompt(), **body})

    if kind == "prefix":
        prefix = tuple(source.token_ids(source.take(2048)))
        return lambda: plain(24, 1, prefix)
    if kind in ("prefill", "decode"):
        return lambda: plain(512, 1) if kind == "prefill" else plain(256, 48)
    cached = 4096 if kind == "whole" else 4000
    schema = make_schema(kind, cached, 8, source, np.random.default_rng(seed))
    for server in servers.values():
        server.forget_states()
        server.register(schema.to_pml())
    salts = itertools.count()
    if kind == "cold":
        return lambda: composed(schema, 1, cache_salt=f"cold{next(salts)}")
    return lambda: composed(schema, 48 if kind == "composed-decode" else 1)


def _times(cell: Cell, way: str) -> dict[Place, float]:
    return by_place(cell["samples"][way], KINDS[cell["kind"]][0])


def _ratio(cells: list[Cell]) -> Spread | None:
    return ratio_over_starts([(_times(cell, "here"), _times(cell, "other")) for cell in cells])


def tables(result: Result) -> list[Table]:
    """Times and ratios by kind of request."""
    rows = []
    for kind, cells in cells_by_kind(result).items():
        times = (shown(Spread.of(t for cell in cells for t in _times(cell, way).values()), 2) for way in WAYS)
        by_start = ", ".join(f"{r.median:.3f}" for cell in cells if (r := _ratio([cell])))
        rows.append((KINDS[kind][1], *times, shown(_ratio(cells), 4), by_start))
    note = (
        "Milliseconds. Ratios are geometric means over the starts. Each time the server of the other "
        "checkout is started first, and is slower for as long as it lives."
    )
    columns = ("request", *WAYS, "here / other", "by start")
    return [Table("This checkout and another", columns, tuple(rows), note)]


def figures(result: Result) -> list[Figure]:
    """At most 2%."""
    return [
        Figure(f"here / other: {KINDS[kind][1]}", ratio, 1.02, True)
        for kind, cells in cells_by_kind(result).items()
        if (ratio := _ratio(cells))
    ]


def panels(result: Result) -> list[Panel]:
    """Ratios by kind of request."""
    points = [(kind, ratio) for kind, cells in cells_by_kind(result).items() if (ratio := _ratio(cells))]
    percent = tuple(
        (kind, Spread(*(100 * (v - 1) for v in (r.median, r.low, r.high)), r.count)) for kind, r in points
    )
    series = (Series("here / other", percent),)
    return [Panel("This checkout and another", "", "% slower", series, bars=True, line_at=0.0)]
