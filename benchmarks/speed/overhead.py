"""Where the host's microseconds go for a warm request, outside vLLM's own code."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness.engine import core_of, in_own_process, make_engine, one_layer_of, runner_of
from benchmarks.harness.modules import make_schema
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.settings import Settings
from benchmarks.harness.spread import Spread
from benchmarks.harness.stopwatch import VLLM, Stopwatch, watch_plugin
from benchmarks.harness.text import TextSource, read_corpus

NUM_NEW_TOKENS = 16
# Stages of the front end, timed one by one, then classes of the engine, by what their names hold.
FRONT_END = {
    "parse": "parse the prompt's PML",
    "plan": "prompt to plan",
    "tokens": "the prompt's token IDs, in position order",
    "wire": "plan to what travels to the engine",
}
ENGINE = {
    "scheduler": "scheduler: composition, slots, encoding requests",
    "blocks": "block manager and module store: block tables",
    "worker": "model runner: positions, slots, rows",
    "edge rows": "model runner: writing edge rows (tensor copies, not counted as host work)",
    "other": "hashing of private blocks, and the rest",
}
ONCE = {"layout": "schema to layout, once when it is registered"}
# What vLLM does for every request too.
COMPARED = {
    "tokenize": "for comparison: tokenize the new text",
    "sending": "for comparison: msgpack of the token IDs, there and back, as vLLM sends every prompt",
}
STAGES = {**FRONT_END, **ENGINE}
COUNTED = [stage for stage in STAGES if stage != "edge rows"]


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument("--cached", default="1000,2000,4000,8000", help="(default: %(default)s)")
    parser.add_argument("--modules", default="1,8,32", help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=60, help="of each point (default: %(default)s)")
    parser.add_argument(
        "--one-layer",
        action="store_true",
        help="a model of one layer: between requests the processor's caches are not the model's, as in a "
        "server, where scheduler and front end have a core of their own",
    )


def run(run: Run, args: argparse.Namespace) -> None:
    """All points on one engine whose core runs in one process, one request after another."""
    settings = run.settings
    lengths = [1000, 4000] if settings.quick else [int(n) for n in args.cached.split(",")]
    modules = [int(n) for n in args.modules.split(",")]
    count = 10 if settings.quick else args.requests
    points = [(n, m) for n in lengths for m in modules]
    wanted = [point for point in points if run.wants(_key(*point))]
    if not wanted:
        return
    run.result["one_layer"] = args.one_layer
    cells = in_own_process(measure, settings, wanted, count, args.one_layer)
    for point, cell in zip(wanted, cells, strict=True):
        run.add(_key(*point), cell)
    run.result["stages"] = {**STAGES, **COMPARED, **ONCE}


def _key(cached: int, modules: int) -> str:
    return f"{cached}:{modules}"


def measure(
    settings: Settings, points: list[tuple[int, int]], count: int, one_layer: bool = False
) -> list[Cell]:
    """Runs in a process of its own, whose classes it changes."""
    llm = make_engine(settings, composed=True, **(one_layer_of(settings) if one_layer else {}))
    source = TextSource(read_corpus(settings.data), llm.get_tokenizer(), settings.seed)
    stopwatch = Stopwatch()
    scheduler = core_of(llm).scheduler
    store = scheduler.store
    parts = [scheduler.composing, scheduler.composed, scheduler.residence, scheduler.encodings]
    live = [scheduler, *parts, scheduler.kv_cache_manager, store.known, store.resident, runner_of(llm)]
    watched = watch_plugin(stopwatch, live)
    _watch_cache_updates(stopwatch, llm)
    cells = [_Point(llm, settings, source, stopwatch, *point).measure(count) for point in points]
    # Once more, with every method watched: a profile, whose sum is larger than what was measured.
    watch_plugin(stopwatch, live, every_method=True)
    profile = _Point(llm, settings, source, stopwatch, *points[-1]).measure(count)
    cells[-1]["profile_us"] = profile["methods_us"]
    cells[0]["watched"] = watched
    return cells


def _watch_cache_updates(stopwatch: Stopwatch, llm: Any) -> None:
    """The attention backend's cache update is vLLM's, though the plugin calls it for edge rows too."""
    context = llm.llm_engine.vllm_config.compilation_config.static_forward_context
    impl = type(next(layer.impl for layer in context.values() if hasattr(layer, "impl")))
    name = "do_kv_cache_update"
    owner = next(cls for cls in impl.__mro__ if name in vars(cls))
    setattr(owner, name, stopwatch.watched_within("edge rows", vars(owner)[name]))


class _Point:
    """One number of cached tokens and modules."""

    def __init__(
        self,
        llm: Any,
        settings: Settings,
        source: TextSource,
        stopwatch: Stopwatch,
        cached: int,
        modules: int,
    ):
        from vllm_promptcache.layout.build import build_layout
        from vllm_promptcache.layout.encoder import TextEncoder
        from vllm_promptcache.pml.parser import parse_document

        self.llm, self.source, self.stopwatch = llm, source, stopwatch
        self.encoder = TextEncoder(llm.get_tokenizer())
        self.cached = settings.cached_tokens(cached)
        self.schema = make_schema("s", self.cached, modules, source, np.random.default_rng(settings.seed))
        llm.add_schema(self.schema.to_pml())
        started = time.perf_counter_ns()
        node = parse_document(self.schema.to_pml()).schemas[0]
        self.layout = build_layout(node, self.encoder, settings.max_model_len)
        self.layout_us = (time.perf_counter_ns() - started) / 1e3

    def measure(self, count: int) -> Cell:
        """Times of ``count`` warm requests, in microseconds by stage; three more come first."""
        samples = [self._request() for _ in range(count + 3)][3:]
        methods: dict[str, list[float]] = {}
        for sample in samples:
            for name, microseconds in sample.pop("methods").items():
                methods.setdefault(name, []).append(microseconds)
        medians = {name: round(float(np.median(times)), 2) for name, times in methods.items()}
        self.llm.remove_schema("s")
        return {
            "cached_tokens": self.cached,
            "modules": len(self.schema.modules),
            "layout_us": self.layout_us,
            "samples_us": samples,
            "methods_us": dict(sorted(medians.items(), key=lambda item: -item[1])),
        }

    def _request(self) -> dict[str, Any]:
        from vllm import SamplingParams

        new = self.source.take(NUM_NEW_TOKENS)
        stages = self._front_end(new)
        self.stopwatch.reset()
        params = SamplingParams(max_tokens=1, temperature=0.0)
        output = self.llm.generate_pml(self.schema.prompt(), params, prompt=new)[0]
        report = output.prompt_cache
        assert report["tokens_reused"] + report["tokens_encoded"] == self.cached, (report, self.cached)
        own = {n: t / 1e3 for n, t in self.stopwatch.reset().items() if n != VLLM}
        stages.update(dict.fromkeys(ENGINE, 0.0))
        for name, microseconds in own.items():
            stages[stage_of(name)] += microseconds
        return {**stages, "methods": own}

    def _front_end(self, new: str) -> dict[str, float]:
        """The front end's own functions, one after another on what the one before it made."""
        import msgspec

        from vllm_promptcache.blocks.wire import plan_to_wire, prompt_token_ids
        from vllm_promptcache.plan.build import build_plan
        from vllm_promptcache.pml.parser import parse_document

        pml = self.schema.prompt()
        times: dict[str, float] = {}

        def timed(stage: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter_ns()
            made = function(*args, **kwargs)
            times[stage] = (time.perf_counter_ns() - started) / 1e3
            return made

        new_ids = timed("tokenize", self.encoder.encode, new)
        prompt = timed("parse", parse_document, pml).prompt
        plan = timed("plan", build_plan, self.layout, prompt, [(new_ids, "prompt")])
        token_ids = timed("tokens", prompt_token_ids, plan)
        timed("wire", plan_to_wire, plan, with_texts=False)
        timed("sending", lambda: msgspec.msgpack.decode(msgspec.msgpack.encode(token_ids)))
        return times


def stage_of(name: str) -> str:
    """The stage of the engine that a watched method belongs to."""
    cls, _, method = name.partition(".")
    if name == "edge rows" or "edge_row" in method:
        return "edge rows"
    for word, stage in (
        ("Step", "worker"),
        *((word, "scheduler") for word in ("Schedul", "Compos", "Residence", "Encodings")),
        ("Block", "blocks"),
        ("Units", "blocks"),
        ("Runner", "worker"),
    ):
        if word in cls:
            return stage
    return "other"


# -- the result ----------------------------------------------------------------------------------------


def _stage(cell: Cell, stage: str) -> Spread:
    return Spread.of(sample[stage] for sample in cell["samples_us"])


def _total(cell: Cell, stages: list[str]) -> Spread:
    return Spread.of(sum(sample[stage] for stage in stages) for sample in cell["samples_us"])


def tables(result: Result) -> list[Table]:
    """Microseconds by stage and point, and the methods that take longest."""
    cells: list[Cell] = list(result["cells"].values())
    columns = ("stage, µs", *(f"{c['cached_tokens']} in {c['modules']}" for c in cells))
    rows = [(what, *(f"{_stage(c, s).median:.0f}" for c in cells)) for s, what in STAGES.items()]
    rows.append(("**host work** (without edge rows)", *(_total(c, COUNTED).text(0) for c in cells)))
    rows += [(what, *(f"{_stage(c, s).median:.0f}" for c in cells)) for s, what in COMPARED.items()]
    rows.append((ONCE["layout"], *(f"{c['layout_us']:.0f}" for c in cells)))
    note = (
        "Each request runs through a real engine. Front-end stages are its own functions, timed one by one; "
        "engine stages are the own time of the methods of the plugin's that vLLM calls, without vLLM's that "
        "they call in turn."
    )
    if result.get("one_layer"):
        note += " The model has one layer, of random weights, so that it leaves the processor's caches alone."
    made = [Table("Host work of a warm request: cached tokens in modules", columns, tuple(rows), note)]
    for cell in cells:
        if "profile_us" in cell:
            methods = tuple((name, f"{us:.0f}") for name, us in list(cell["profile_us"].items())[:15])
            title = f"Profile: {cell['cached_tokens']} cached in {cell['modules']} modules"
            note = "With every method watched, which adds a microsecond or so to each call."
            made.append(Table(title, ("method", "own time, µs"), methods, note))
    return made


def figures(result: Result) -> list[Figure]:
    """At most 1 ms, and growth no more than what sending the IDs costs."""
    found = []
    cells: list[Cell] = list(result["cells"].values())
    largest = max(cells, key=lambda c: (c["cached_tokens"], c["modules"]))
    what = f"host work, ms: {largest['cached_tokens']} cached in {largest['modules']} modules"
    found.append(Figure(what, _total(largest, COUNTED).median / 1e3, 1.0, True))
    same = [c for c in cells if c["modules"] == largest["modules"]]
    smallest = min(same, key=lambda c: int(c["cached_tokens"]))
    if smallest is not largest:
        host, sending = (
            _total(largest, stages).median - _total(smallest, stages).median
            for stages in (COUNTED, ["sending"])
        )
        grows = f"from {smallest['cached_tokens']} to {largest['cached_tokens']} cached"
        found.append(Figure(f"growth of host work / of sending the IDs, {grows}", host / sending, 1.0, True))
    return found


def panels(result: Result) -> list[Panel]:
    """Stacked stages by point."""
    cells: list[Cell] = list(result["cells"].values())
    made = []
    for modules in sorted({int(c["modules"]) for c in cells}):
        points = [c for c in cells if c["modules"] == modules]
        series = [
            Series(stage, tuple((f"{c['cached_tokens']}", _stage(c, stage)) for c in points))
            for stage in COUNTED
        ]
        made.append(Panel(f"{modules} modules", "cached tokens", "µs", tuple(series), stacked=True))
    return made
