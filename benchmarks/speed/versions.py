"""This checkout against another one: plain and composed requests, of two servers in turn."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import Client, ask_at_once
from benchmarks.harness.modules import make_schema
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run, cells_by_kind
from benchmarks.harness.servers import Plugin, Server, let_others_rest
from benchmarks.harness.settings import Settings
from benchmarks.harness.spread import Place, Spread, by_place, interleave, ratio_over_starts
from benchmarks.harness.text import TextSource, read_corpus
from benchmarks.speed.grid import NAMED

HERE = Path(__file__).resolve().parents[2]
WAYS = ("here", "other")
# Lengths and loads of `decode`.
_LENGTHS = (1000, 2000, 4000, 7800)
_LEVELS = (1, 8)


@dataclass(frozen=True)
class Kind:
    """One kind of request. ``cached`` tokens are modules' in ``modules`` modules, or a prefix's where there
    are none; ``level`` are in flight at once, and ``num_asked`` a sample; ``block_size`` None is the
    settings'. One in ``share`` samples is taken: they are long."""

    key: str
    measured: str
    cached: int
    new: int
    modules: int = 0
    answer: int = 1
    level: int = 1
    num_asked: int = 1
    is_cold: bool = False
    block_size: int | None = None
    share: int = 1

    @property
    def words(self) -> str:
        """What is asked and measured, for a table."""
        times = {"ttft_ms": "time to first token", "tpot_ms": f"time per output token of {self.answer}"}
        what = f"{self.cached:,} tokens in {self.modules} modules" if self.modules else "plain"
        if not self.modules and self.cached:
            what += f", {self.cached:,} cached"
        what += f"{' that are encoded first' if self.is_cold else ''}, {self.new} new"
        if self.level > 1:
            what += f", {self.num_asked} requests, {self.level} in flight"
        if self.block_size:
            what += f", blocks of {self.block_size}"
        return f"{what}: {times.get(self.measured, f'duration with {self.answer} tokens answered')}"


def _kinds() -> dict[str, Kind]:
    """Of `tax`, of `ttft --grid named`, and of `decode`."""
    found = [
        Kind("prefill", "ttft_ms", 0, 512, share=3),
        Kind("prefix", "ttft_ms", 2048, 24),
        Kind("decode", "tpot_ms", 0, 256, answer=48, share=3),
        Kind("batch", "seconds", 0, 256, answer=32, level=8, num_asked=16, share=4),
    ]
    for point in NAMED:
        asked = (point.cached, point.new, point.modules)
        found += [
            Kind(f"warm:{point.key}", "ttft_ms", *asked, block_size=point.block_size),
            Kind(f"cold:{point.key}", "ttft_ms", *asked, is_cold=True, block_size=point.block_size, share=4),
        ]
    found += [
        Kind(
            f"decode:{n}x{m}", "tpot_ms", n, 24, 8, answer=48, level=m, num_asked=m, share=3 if m == 1 else 4
        )
        for n in _LENGTHS
        for m in _LEVELS
    ]
    return {kind.key: kind for kind in found}


KINDS = _kinds()


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--against",
        default=str(HERE),
        help="a folder with another checkout (default: this one, for what a ratio means)",
    )
    parser.add_argument(
        "--other-env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="in the environment of the other server only (may be given again)",
    )
    parser.add_argument("--starts", type=int, default=2, help="fresh pairs of servers (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=36, help="of each way and start (default: %(default)s)"
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help="(default: %(default)s)")


def _variable(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def run(run: Run, args: argparse.Namespace) -> None:
    """Two servers at once, asked in turn; then two fresh ones, of which the other starts first."""
    settings = run.settings
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    source = TextSource(read_corpus(settings.data), tokenizer, settings.seed)
    folders = {"here": HERE, "other": Path(args.against).resolve()}
    environments = {"here": {}, "other": dict(args.other_env)}
    starts, count = (1, 3) if settings.quick else (args.starts, args.samples)
    kinds = sorted((KINDS[key] for key in args.kinds.split(",")), key=lambda kind: kind.block_size or 0)
    for start in range(starts):
        for size, group in itertools.groupby(kinds, key=lambda kind: kind.block_size):
            keys = {f"{kind.key}/{start}": kind for kind in group}
            if not any(run.wants(key) for key in keys):
                continue
            with contextlib.ExitStack() as stack:
                order = WAYS if start % 2 == 0 else WAYS[::-1]
                kv_gib = min(settings.kv_gib, 1.5)
                servers = {
                    way: stack.enter_context(
                        Server(
                            settings,
                            Plugin.ON,
                            block_size=size,
                            kv_gib=kv_gib,
                            name=f"plugin {way}",
                            checkout=folders[way],
                            environment=environments[way],
                        )
                    )
                    for way in order
                }
                for server in servers.values():
                    run.add_server(server.describe())
                client = stack.enter_context(Client())
                for key, kind in keys.items():
                    if run.wants(key):
                        run.add(key, _measure(kind, servers, client, source, count, settings))
                        run.say(f"{key}: here / other {shown(_ratio([run.result['cells'][key]]), 4)}")


def _measure(
    kind: Kind, servers: dict[str, Server], client: Client, source: TextSource, count: int, settings: Settings
) -> Cell:
    make = _maker(kind, servers, source, settings)
    count = max(count // kind.share, 2)
    num_warm_up = 2 if kind.share == 1 else 1
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in servers}
    # Both are asked the same at a place, so that a pair differs in nothing else.
    asked: dict[Place, list[Ask]] = {}
    for way, place in interleave(dict.fromkeys(WAYS, 1), count + num_warm_up):
        if place not in asked:
            asked = {place: [make() for _ in range(kind.num_asked)]}
        let_others_rest()
        value = _sample(kind, servers[way], client, asked[place])
        if place[0] >= num_warm_up:
            samples[way].append({"place": place, kind.measured: value})
    return {"kind": kind.key, "samples": samples}


def _sample(kind: Kind, server: Server, client: Client, asks: list[Ask]) -> float:
    if kind.level == 1:
        return float(getattr(client.ask(server, asks[0]), kind.measured))
    burst = ask_at_once(server, asks, kind.level)
    # The median between tokens: a mean would have the prefills of the others in it.
    return burst.seconds if kind.measured == "seconds" else burst.median_between_ms


def _maker(
    kind: Kind, servers: dict[str, Server], source: TextSource, settings: Settings
) -> Callable[[], Ask]:
    """What makes a kind's requests; schemas are registered with both servers."""
    if not kind.modules:
        prefix = source.token_ids(source.take(kind.cached)) if kind.cached else []

        def plain() -> Ask:
            prompt = [*prefix, *source.token_ids(source.take(kind.new))]
            return Ask(prompt, len(prompt), kind.answer)

        return plain
    cached = settings.cached_tokens(kind.cached)
    name = f"s{uuid4().hex[:8]}"
    schema = make_schema(name, cached, kind.modules, source, np.random.default_rng(settings.seed))
    for server in servers.values():
        server.forget_states()
        server.register(schema.to_pml())
    salts = itertools.count()

    def composed() -> Ask:
        body = {"cache_salt": f"cold{next(salts)}"} if kind.is_cold else {}
        new = source.take(kind.new)
        return Ask(new, schema.num_tokens + kind.new, kind.answer, {"pml": schema.prompt(), **body})

    return composed


def _times(cell: Cell, way: str) -> dict[Place, float]:
    return by_place(cell["samples"][way], KINDS[cell["kind"]].measured)


def _ratio(cells: list[Cell]) -> Spread | None:
    return ratio_over_starts([(_times(cell, "here"), _times(cell, "other")) for cell in cells])


def tables(result: Result) -> list[Table]:
    """Times and ratios by kind of request."""
    rows = []
    for kind, cells in cells_by_kind(result).items():
        times = (shown(Spread.of(t for cell in cells for t in _times(cell, way).values()), 2) for way in WAYS)
        by_start = ", ".join(f"{r.median:.3f}" for cell in cells if (r := _ratio([cell])))
        rows.append((KINDS[kind].words, *times, shown(_ratio(cells), 4), by_start))
    note = (
        "Milliseconds (the batch: seconds). Ratios are geometric means over the starts. Each time the server "
        "of the other checkout is started first, and is slower for as long as it lives."
    )
    columns = ("request", *WAYS, "here / other", "by start")
    return [Table("This checkout and another", columns, tuple(rows), note)]


def figures(result: Result) -> list[Figure]:
    """At most 2%."""
    return [
        Figure(f"here / other: {KINDS[kind].words}", ratio, 1.02, True)
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
