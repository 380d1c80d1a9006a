"""What plain traffic pays: the plugin on, off, and not installed, request by request in turn."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import Client, ask_at_once
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run, cells_by_kind
from benchmarks.harness.servers import Plugin, Server, let_others_rest
from benchmarks.harness.spread import Place, Spread, by_place, interleave, ratio_over_starts
from benchmarks.harness.text import TextSource, read_corpus

WAYS = {"on": Plugin.ON, "off": Plugin.OFF, "absent": Plugin.ABSENT}
# Kind of traffic: what is measured of it.
TRAFFIC = {
    "prefill": ("ttft_ms", "512 new tokens, time to first token"),
    "prefix": ("ttft_ms", "2,048 cached and 24 new tokens, time to first token"),
    "decode": ("tpot_ms", "time per output token of 48, after 256 tokens"),
    "batch": ("seconds", "16 requests of 256 tokens and 32 answered, 8 in flight, duration"),
}
PREFIX_TOKENS = 2048


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument("--starts", type=int, default=3, help="fresh sets of servers (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=24, help="of each way and start (default: %(default)s)"
    )
    parser.add_argument("--traffic", default=",".join(TRAFFIC), help="(default: %(default)s)")


def run(run: Run, args: argparse.Namespace) -> None:
    """Three servers at once, asked in turn; then three fresh ones: memory falls another way each time."""
    settings = run.settings
    source = TextSource(
        read_corpus(settings.data), AutoTokenizer.from_pretrained(settings.model), settings.seed
    )
    starts, count = (1, 3) if settings.quick else (args.starts, args.samples)
    for start in range(starts):
        keys = {kind: f"{kind}:{start}" for kind in args.traffic.split(",")}
        if not any(run.wants(key) for key in keys.values()):
            continue
        with contextlib.ExitStack() as stack:
            # In another order each time: which one starts first may matter to memory.
            order = [list(WAYS)[(start + i) % len(WAYS)] for i in range(len(WAYS))]
            kv_gib = min(settings.kv_gib, 1.0)
            servers = {w: stack.enter_context(Server(settings, WAYS[w], kv_gib=kv_gib)) for w in order}
            for server in servers.values():
                run.add_server(server.describe())
            client = stack.enter_context(Client())
            for kind, key in keys.items():
                if run.wants(key):
                    run.add(key, _measure(kind, servers, client, source, count))
                    run.say(
                        f"{key}: on / absent {shown(_ratio([run.result['cells'][key]], 'on', 'absent'), 4)}"
                    )


def _measure(kind: str, servers: dict[str, Server], client: Client, source: TextSource, count: int) -> Cell:
    prefix = source.token_ids(source.take(PREFIX_TOKENS))
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in servers}
    measured = TRAFFIC[kind][0]

    def plain(num_tokens: int, num_answer: int, before: list[int] | None = None) -> Ask:
        prompt = [*(before or ()), *source.token_ids(source.take(num_tokens))]
        return Ask(prompt, len(prompt), num_answer)

    def sample(server: Server, asks: list[Ask]) -> float:
        if kind == "batch":
            return ask_at_once(server, asks, 8).seconds
        answer = client.ask(server, asks[0])
        return answer.tpot_ms if kind == "decode" else answer.ttft_ms

    count = max(count * 3 if kind == "prefix" else count // 6 if kind == "batch" else count, 2)
    num_warm_up = 2
    # All ways of a place are asked the same, so that a pair differs in nothing else.
    asked: dict[Place, list[Ask]] = {}
    for way, place in interleave(dict.fromkeys(WAYS, 1), count + num_warm_up):
        if place not in asked:
            made = {
                "prefill": lambda: [plain(512, 1)],
                "prefix": lambda: [plain(24, 1, prefix)],
                "decode": lambda: [plain(256, 48)],
                "batch": lambda: [plain(256, 32) for _ in range(16)],
            }
            asked = {place: made[kind]()}
        let_others_rest()
        value = sample(servers[way], asked[place])
        if place[0] >= num_warm_up:
            samples[way].append({"place": place, measured: value})
    return {"kind": kind, "samples": samples}


def _times(cells: list[Cell], way: str) -> dict[Place, float]:
    """Samples of several starts; a pair is of one start."""
    measured = TRAFFIC[cells[0]["kind"]][0]
    return {
        (start, *place): value
        for start, cell in enumerate(cells)
        for place, value in by_place(cell["samples"][way], measured).items()
    }


def _ratio(cells: list[Cell], above: str, below: str) -> Spread | None:
    return ratio_over_starts([(_times([cell], above), _times([cell], below)) for cell in cells])


RATIOS = (("on", "absent"), ("off", "absent"), ("on", "off"))


def tables(result: Result) -> list[Table]:
    """Times and ratios by kind of traffic."""
    rows = []
    for kind, cells in cells_by_kind(result).items():
        times = (shown(Spread.of(_times(cells, way).values()), 2) for way in WAYS)
        by_start = ", ".join(f"{r.median:.3f}" for c in cells if (r := _ratio([c], "on", "absent")))
        ratios = (shown(_ratio(cells, a, b), 4) for a, b in RATIOS)
        rows.append((TRAFFIC[kind][1], *times, *ratios, by_start))
    columns = ("traffic", *WAYS, *(f"{a} / {b}" for a, b in RATIOS), "on / absent by start")
    note = (
        "Milliseconds (the batch: seconds). *off / absent* compares two servers that run the same code: it "
        "shows how much a ratio means. Ratios are geometric means over the starts. Each time the server of "
        "another way is started first, and is slower for as long as it lives."
    )
    return [Table("Plain traffic", columns, tuple(rows), note)]


def figures(result: Result) -> list[Figure]:
    """At most 1%."""
    return [
        Figure(f"plugin on / not installed: {TRAFFIC[kind][1]}", ratio, 1.01, True)
        for kind, cells in cells_by_kind(result).items()
        if (ratio := _ratio(cells, "on", "absent"))
    ]


def panels(result: Result) -> list[Panel]:
    """Ratios by kind of traffic."""
    series = []
    for above, below in RATIOS[:2]:
        points = [(k, r) for k, cells in cells_by_kind(result).items() if (r := _ratio(cells, above, below))]
        low = [(kind, Spread(r.median - 1, r.low - 1, r.high - 1, r.count)) for kind, r in points]
        percent = [(k, Spread(s.median * 100, s.low * 100, s.high * 100, s.count)) for k, s in low]
        series.append(Series(f"{above} / {below}", tuple(percent)))
    return [Panel("Plain traffic", "", "% slower", tuple(series), bars=True, line_at=1.0)]
