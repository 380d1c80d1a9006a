"""Time to first token, one request at a time over HTTP (paper, section 5.2)."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import ask_in_turn, reuse
from benchmarks.harness.modules import Schema, joined_ids, joined_text, make_schema, shuffled, some
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.servers import Plugin, Server
from benchmarks.harness.settings import Settings
from benchmarks.harness.spread import Place, Spread, by_place, interleave, ratio_of
from benchmarks.harness.text import TextSource, read_corpus
from benchmarks.speed.grid import NAMED, Point, points_of
from benchmarks.speed.uses import NEW, USE_WAYS, USES, UseCase

# What is compared. All go to one server with the plugin on; only `warm…` and `cold…` carry PML.
WAYS = {
    "full": "full prefill: nothing is found in a cache (a salt of its own)",
    "prefix": "perfect prefix: vLLM's prefix cache has all of it, in whole blocks",
    "prefix-text": "the same, sent as text instead of token IDs",
    "warm": "composed of resident modules",
    "alone": "the new tokens alone, with nothing before them: what any request costs",
    "reordered": "the modules in another order each time, plain, prefix cache on",
    "subset": "another half of the modules each time, plain, prefix cache on",
    "warm-subset": "another half of the modules each time, composed",
    "cold": "composed, no module resident (a salt of its own)",
    "cold-inline": "composed, no module resident, the schema sent with the request",
}
FAST = ("prefix", "prefix-text", "warm", "alone", "warm-subset")
MANY_MODULES = ("reordered", "subset", "warm-subset")


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--grid",
        default="all",
        help="all: the figures to reach, then the whole grid; named: only the former; grid: only the latter; "
        f"uses: the paper's use cases ({', '.join(USES)}); or CACHED:NEW:MODULES[:bsSIZE],… "
        "(default: %(default)s)",
    )
    parser.add_argument("--ways", default=",".join(w for w in WAYS if w != "cold-inline"))
    parser.add_argument("--rounds", type=int, help="samples of slow ways (default: 3; figures to reach: 5)")
    parser.add_argument("--fast", type=int, help="samples of fast ways a round (default: 7; figures: 8)")


def run(run: Run, args: argparse.Namespace) -> None:
    """Measure all points, those of one block size on one server."""
    settings = run.settings
    source = TextSource(
        read_corpus(settings.data), AutoTokenizer.from_pretrained(settings.model), settings.seed
    )
    run.result["text"] = {"source": source.corpus.source, "tokens": source.num_distinct_tokens}
    run.result["ways"] = WAYS
    ways = args.ways.split(",")
    if args.grid == "uses":
        _measure_uses(run, args, ways, source)
        return
    points = sorted(points_of(args.grid, quick=settings.quick), key=lambda p: p.block_size or 0)
    for size, group in itertools.groupby(points, key=lambda p: p.block_size):
        wanted = [point for point in group if run.wants(point.key)]
        if not wanted:
            continue
        run.say(f"starting a server, block size {size or settings.block_size or 'default'}")
        with Server(settings, Plugin.ON, block_size=size) as server:
            run.add_server(server.describe())
            for point in wanted:
                if run.is_over:
                    run.wants(point.key)
                    continue
                rounds, fast = _counts(point, args, settings)
                cell = Measurement(server, settings, point, source).measure(ways, rounds, fast)
                run.add(point.key, cell)
                run.say(f"{point.key}: {_line(cell)}")


def _measure_uses(run: Run, args: argparse.Namespace, ways: list[str], source: TextSource) -> None:
    settings = run.settings
    wanted = [name for name in USES if run.wants(name)]
    if not wanted:
        return
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    with Server(settings, Plugin.ON) as server:
        run.add_server(server.describe())
        for name in wanted:
            use = UseCase.read(name, tokenizer, settings.max_model_len)
            asks = {way: use.asks(way, source, _salt) for way in USE_WAYS if way in ways}
            server.forget_states()
            server.register(use.schema)
            rounds, fast = (2, 2) if settings.quick else (args.rounds or 5, args.fast or 8)
            samples, reused = _sample(server, asks, rounds, fast)
            server.unregister(use.name)
            cell = {
                "cached_tokens": sum(use.module_tokens),
                "new_tokens": len(use.token_ids) - sum(use.module_tokens) + NEW,
                "module_tokens": list(use.module_tokens),
                **reused,
                "samples": samples,
            }
            run.add(name, cell)
            run.say(f"{name}: {_line(cell)}")


def _sample(
    server: Server, asks: dict[str, Iterator[Ask]], rounds: int, fast: int
) -> tuple[dict[str, list[dict[str, Any]]], Cell]:
    """Samples of ways in turn, and what the server says it reused and encoded before and after them."""
    # Warm up: twice, as the first request is what fills the caches.
    found = {way: [reuse(server, next(asks[way])) for _ in range(2)] for way in asks}
    order = interleave({way: fast if way in FAST else 1 for way in asks}, rounds)
    answers = ask_in_turn([(server, next(asks[way])) for way, _ in order])
    for way in asks:
        if way in FAST:
            found[way].append(reuse(server, next(asks[way])))
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in asks}
    for (way, place), answer in zip(order, answers, strict=True):
        samples[way].append({"place": place, "ttft_ms": round(answer.ttft_ms, 3)})
    return samples, {
        "reused_tokens": {way: [r.num_tokens for r in all_of] for way, all_of in found.items()},
        "encoded_modules": {way: [r.num_encoded for r in all_of] for way, all_of in found.items()},
    }


def _counts(point: Point, args: argparse.Namespace, settings: Settings) -> tuple[int, int]:
    rounds, fast = (2, 2) if settings.quick else (5, 8) if point in NAMED else (3, 7)
    return args.rounds or rounds, args.fast or fast


class Measurement:
    """All ways at one point, on texts of its own."""

    def __init__(self, server: Server, settings: Settings, point: Point, source: TextSource):
        self.server, self.point, self.source = server, point, source
        self.rng = np.random.default_rng(settings.seed)
        self.cached = settings.cached_tokens(point.cached)
        self.schema = make_schema(f"s{uuid4().hex[:8]}", self.cached, point.modules, source, self.rng)

    def measure(self, ways: list[str], rounds: int, fast: int) -> Cell:
        """Samples of all ways, and how many tokens the server says it reused before and after them."""
        chosen = [w for w in ways if self.point.modules > 1 or w not in MANY_MODULES]
        asks = {way: self.asks(way) for way in chosen}
        with self.registered():
            samples, reused = _sample(self.server, asks, rounds, fast)
        lengths = [len(m.token_ids) for m in self.schema.modules]
        return {
            "cached_tokens": self.cached,
            "new_tokens": self.point.new,
            "module_tokens": lengths,
            "tokens_in_part_filled_blocks": sum(n % self.server.block_size() for n in lengths),
            **reused,
            "samples": samples,
        }

    @contextlib.contextmanager
    def registered(self) -> Iterator[None]:
        """The schema is registered, and nothing else is in the server's caches."""
        self.server.forget_states()
        self.server.register(self.schema.to_pml())
        yield
        self.server.unregister(self.schema.name)

    def asks(self, way: str) -> Iterator[Ask]:
        """Requests of a way, without end, each with new text of its own."""
        asks: Iterator[Ask] = getattr(self, "_" + way.replace("-", "_"))()
        return asks

    def _plain(self, tokens: Callable[[], list[int]], **body: Callable[[], Any]) -> Iterator[Ask]:
        while True:
            prompt = [*tokens(), *self.source.token_ids(self.source.take(self.point.new))]
            yield Ask(prompt, len(prompt), body={key: value() for key, value in body.items()})

    def _composed(self, pml: Callable[[], str], **body: Callable[[], Any]) -> Iterator[Ask]:
        while True:
            new = self.source.take(self.point.new)
            more = {key: value() for key, value in body.items()}
            yield Ask(new, self.cached + self.point.new, body={"pml": pml(), **more})

    def _full(self) -> Iterator[Ask]:
        return self._plain(lambda: joined_ids(self.schema.modules), cache_salt=_salt)

    def _prefix(self) -> Iterator[Ask]:
        return self._plain(lambda: joined_ids(self.schema.modules))

    def _prefix_text(self) -> Iterator[Ask]:
        while True:
            text = joined_text(self.schema.modules) + self.source.take(self.point.new)
            yield Ask(text, self.cached + self.point.new)

    def _alone(self) -> Iterator[Ask]:
        return self._plain(list)

    def _reordered(self) -> Iterator[Ask]:
        return self._plain(lambda: joined_ids(shuffled(self.schema.modules, self.rng)))

    def _subset(self) -> Iterator[Ask]:
        return self._plain(lambda: joined_ids(some(self.schema.modules, self.rng)))

    def _warm(self) -> Iterator[Ask]:
        return self._composed(self.schema.prompt)

    def _warm_subset(self) -> Iterator[Ask]:
        return self._composed(lambda: self.schema.prompt(some(self.schema.modules, self.rng)))

    def _cold(self) -> Iterator[Ask]:
        return self._composed(self.schema.prompt, cache_salt=_salt)

    def _cold_inline(self) -> Iterator[Ask]:
        def pml() -> str:
            return Schema(f"i{uuid4().hex[:8]}", self.schema.modules).in_one()

        return self._composed(pml, cache_salt=_salt)


def _salt() -> str:
    return uuid4().hex


# -- the result ----------------------------------------------------------------------------------------

RATIOS = (
    ("warm / prefix", "warm", "prefix"),
    ("full / warm", "full", "warm"),
    ("full / prefix", "full", "prefix"),
    ("cold / full", "cold", "full"),
    ("reordered / warm", "reordered", "warm"),
    ("subset / warm subset", "subset", "warm-subset"),
    ("warm / prefix as text", "warm", "prefix-text"),
    ("cold inline / full", "cold-inline", "full"),
)


def _times(cell: Cell, way: str) -> dict[Place, float]:
    return by_place(cell["samples"].get(way, ()), "ttft_ms")


def _spread(cell: Cell, way: str) -> Spread | None:
    times = _times(cell, way)
    return Spread.of(times.values()) if times else None


def _ratio(cell: Cell, above: str, below: str) -> Spread | None:
    return ratio_of(_times(cell, above), _times(cell, below))


def _line(cell: Cell) -> str:
    found = ((name, _ratio(cell, above, below)) for name, above, below in RATIOS[:4])
    return ", ".join(f"{name} {ratio.median:.3f}" for name, ratio in found if ratio is not None)


def tables(result: Result) -> list[Table]:
    """Times, ratios, and what the server says it reused."""
    cells: dict[str, Cell] = result["cells"]
    ways = [way for way in WAYS if any(way in cell["samples"] for cell in cells.values())]
    key = "cached:new:modules"
    times = [(k, *(shown(_spread(cell, way)) for way in ways)) for k, cell in cells.items()]
    ratios = [(k, *(shown(_ratio(cell, a, b), 2) for _, a, b in RATIOS)) for k, cell in cells.items()]
    said = {
        what: [
            (k, *("/".join(map(str, cell.get(what, {}).get(way, ()))) for way in ways))
            for k, cell in cells.items()
        ]
        for what in ("reused_tokens", "encoded_modules")
    }
    note = f"Text: {result['text']['source']}, {result['text']['tokens']} tokens. " + "; ".join(
        f"*{way}*: {WAYS[way]}" for way in ways
    )
    clamped = [
        f"{k} has {c['cached_tokens']}"
        for k, c in cells.items()
        if k not in USES and not k.startswith(str(c["cached_tokens"]))
    ]
    if clamped:
        note += f". Cached tokens are as many as fit the model's positions: {', '.join(clamped)}."
    return [
        Table("Ratios", (key, *(name for name, _, _ in RATIOS)), tuple(ratios)),
        Table("Time to first token, ms", (key, *ways), tuple(times), note),
        Table(
            "Tokens that the server says it reused: first, second, last request",
            (key, *ways),
            tuple(said["reused_tokens"]),
        ),
        Table("Modules that it encoded for them", (key, *ways), tuple(said["encoded_modules"])),
    ]


def figures(result: Result) -> list[Figure]:
    """The figures to reach that were measured."""
    one, four, eight = "warm / perfect prefix", "4k in 8 ragged modules", "8k in 8 ragged modules"
    wanted = [
        ("4000:24:8", "warm", "prefix", 1.00, True, f"{one}, {four}, 24 new"),
        ("4096:24:8", "warm", "prefix", 1.00, True, f"{one}, the same with 4,096 (whole blocks)"),
        ("4000:24:8:bs32", "warm", "prefix", 1.03, True, f"{one}, {four}, 24 new, block size 32"),
        ("4096:24:8:bs32", "warm", "prefix", 1.03, True, f"{one}, the same with 4,096 (whole blocks)"),
        ("4000:16:8", "full", "warm", 40, False, f"full prefill / warm, {four}, 16 new"),
        ("8000:16:8", "full", "warm", 80, False, f"full prefill / warm, {eight}, 16 new"),
        ("4000:16:8", "cold", "full", 1.05, True, f"cold / full prefill, {four}, 16 new"),
        ("8000:16:8", "cold", "full", 1.05, True, f"cold / full prefill, {eight}, 16 new"),
    ]
    found = []
    for key, above, below, target, at_most, what in wanted:
        ratio = _ratio(result["cells"][key], above, below) if key in result["cells"] else None
        if ratio is not None:
            found.append(Figure(what, ratio, target, at_most))
    points = {key: cell for key, cell in result["cells"].items() if key not in USES}
    grid = {key: cell for key, cell in points.items() if Point.read(key).block_size is None}
    ratios = {key: ratio for key, cell in grid.items() if (ratio := _ratio(cell, "warm", "prefix"))}
    if ratios:
        worst = max(ratios, key=lambda key: ratios[key].median)
        found.append(Figure(f"warm / perfect prefix, worst of the grid ({worst})", ratios[worst], 1.10, True))
    return found


def panels(result: Result) -> list[Panel]:
    """Times by cached tokens, and the ratio to a perfect prefix by cached tokens and modules."""
    cells = [(Point.read(k), c) for k, c in result["cells"].items() if k not in USES]
    base = [(p, c) for p, c in cells if p.block_size is None]
    if not base:
        return []
    best = max(
        {(p.new, p.modules) for p, _ in base}, key=lambda nm: sum((p.new, p.modules) == nm for p, _ in base)
    )
    shown_cells = sorted(((p, c) for p, c in base if (p.new, p.modules) == best), key=lambda pc: pc[0].cached)
    times = tuple(
        Series(way, tuple((c["cached_tokens"], s) for _, c in shown_cells if (s := _spread(c, way))))
        for way in WAYS
        if any(way in c["samples"] for _, c in shown_cells)
    )
    title = f"{best[0]} new tokens, {best[1]} modules"
    ratios = []
    for modules in sorted({p.modules for p, _ in base}):
        for new in sorted({p.new for p, _ in base}):
            points = [
                (c["cached_tokens"], r)
                for p, c in base
                if (p.new, p.modules) == (new, modules) and (r := _ratio(c, "warm", "prefix"))
            ]
            if points:
                ratios.append(
                    Series(f"{modules} modules, {new} new", tuple(sorted(points, key=lambda xy: xy[0])))
                )
    return [
        Panel(f"Time to first token: {title}", "cached tokens", "ms", times, log_x=True, log_y=True),
        Panel(
            "Warm composed / perfect prefix", "cached tokens", "ratio", tuple(ratios), log_x=True, line_at=1.0
        ),
    ]
