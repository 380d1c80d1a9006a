"""The result of `retrieval`: requests a second, time to first token, what was cached, memory, who wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import NOT_MEASURED, Figure, Table, shown
from benchmarks.harness.run import Cell, Result
from benchmarks.harness.spread import Spread, by_place, ratio_of

WAYS = {
    "off": "vLLM, no cache",
    "on": "vLLM, prefix cache",
    "reordered": "prefix cache, passages reordered",
    "marks": "passages marked",
}
# Popular questions are asked again and again: Zipf over the first so many.
POPULAR = 64


@dataclass(frozen=True)
class Load:
    """A kind of load, and the ways it is asked in: without a cache it does not matter what came before."""

    what: str
    ways: tuple[str, ...]


CACHES = ("on", "reordered", "marks")
LOADS = {
    "new": Load("each question once", tuple(WAYS)),
    "popular": Load(f"{POPULAR} questions, Zipf-distributed", CACHES),
    "seen": Load("each question once, every passage sent before", CACHES),
}


def tables(result: Result) -> list[Table]:
    """Throughput, time to first token, what was cached, memory."""
    cells = list(result["cells"].values())
    ways = tuple(way for way in WAYS if any(way in cell["samples"] for cell in cells))
    names = tuple(WAYS[way] for way in ways)
    columns = ("load", "in flight", *names)

    def table(title: str, value: Callable[[Cell, str], str], *, note: str = "", most: bool = False) -> Table:
        rows = [
            (
                LOADS[cell["load"]].what,
                str(cell["concurrency"]),
                *(value(cell, way) if cell["samples"].get(way) else NOT_MEASURED for way in ways),
                *((winner(cell),) if most else ()),
            )
            for cell in cells
        ]
        return Table(title, (*columns, *(("most",) if most else ())), tuple(rows), note)

    memory = {way: bytes for cell in cells for way, bytes in cell["memory_bytes"].items()}
    sizes = tuple(f"{memory[way] / 2**30:.2f}" for way in ways)
    return [
        table(
            "Requests per second", lambda cell, way: shown(_rate(cell, way), 2), note=_note(result), most=True
        ),
        table("Time to first token, ms: median, 99th percentile", _ttft),
        table("Prompt tokens that were cached", lambda cell, way: f"{cached_share([cell], way):.0%}"),
        Table(
            "Memory at the end, GiB", names, (sizes,), "Of all the server's processes, shared pages in parts."
        ),
        Table("Where reordering wins", ("load", "in flight", "reordered / marked"), _lost(cells), _LOST_NOTE),
    ]


_LOST_NOTE = (
    "Points at which a prefix cache with reordered passages answers more requests a second than marked "
    "passages. It reorders what the retriever ranked, and its "
    "answers are a full prefill's over that order; marked passages keep their ranking and have not seen "
    "each other ([quality](../../docs/quality.md))."
)


def _lost(cells: Iterable[Cell]) -> tuple[tuple[str, ...], ...]:
    found = ((cell, _ratio(cell, "reordered", "marks")) for cell in cells)
    rows = [
        (LOADS[cell["load"]].what, str(cell["concurrency"]), ratio.text(2))
        for cell, ratio in found
        if ratio is not None and ratio.median > 1
    ]
    return tuple(rows) or (("nowhere here", NOT_MEASURED, NOT_MEASURED),)


def _note(result: Result) -> str:
    known = result["passages"]
    lengths = known["tokens_compared"]
    room = (
        f" Every server has a KV cache of {known['kv_gib']:g} GiB, and that of the marked passages "
        f"{known['host_gib']:g} GiB of memory and {known['disk_gib']:g} GiB of files for records beside it."
    )
    plain = next((lengths[way] for way in ("on", "off") if way in lengths), 0)
    told = (
        f"{known['passages']} passages and {known['questions']} questions: {known['source']}. Each is "
        "asked over its best 5 to 10 by BM25, in their ranking but where they are reordered. Every way was "
        f"asked {known['warm_up']} before. Of {known['compared']} prompts {known['same_tokens']} are the "
        "same token by token in all ways but the reordering"
    )
    if plain and "marks" in lengths:
        told += f" ({lengths['marks']} tokens marked, {plain} plain)"
    if "sent_s" in known:
        told += f". Sending every passage before the last kind of load took {known['sent_s']:.0f} s"
    return f"{told}.{room}"


def said_of(cell: Cell) -> str:
    """A point in a line."""
    rates = ((WAYS[way], _rate(cell, way)) for way in WAYS)
    return ", ".join(f"{what} {rate.median:.2f}/s" for what, rate in rates if rate)


def _rate(cell: Cell, way: str) -> Spread | None:
    samples = cell["samples"].get(way)
    return Spread.of(sample["requests_per_s"] for sample in samples) if samples else None


def _ttft(cell: Cell, way: str) -> str:
    times = [time for sample in cell["samples"][way] for time in sample["ttfts_ms"]]
    median, last = np.percentile(times, (50, 99))
    return f"{median:.0f}, {last:.0f}"


def _ratio(cell: Cell, above: str, below: str) -> Spread | None:
    rates = {way: by_place(cell["samples"].get(way, ()), "requests_per_s") for way in (above, below)}
    return ratio_of(rates[above], rates[below])


def cached_share(cells: Iterable[Cell], way: str) -> float:
    """The share of prompts' tokens that a way's server says it found; 0 where it was asked nothing."""
    samples = [sample for cell in cells for sample in cell["samples"].get(way, ())]
    total = sum(sample["tokens"] for sample in samples)
    return sum(sample["cached"] for sample in samples) / total if total else 0.0


def winner(cell: Cell) -> str:
    """The way with the most requests a second."""
    rates = {way: spread.median for way in WAYS if (spread := _rate(cell, way))}
    return WAYS[max(rates, key=lambda way: rates[way])]


def figures(result: Result) -> list[Figure]:
    """More requests than with the prefix cache, reordered or not, where most are in flight."""
    found = []
    for load, what in LOADS.items():
        cells = [cell for cell in result["cells"].values() if cell["load"] == load]
        for other in ("on", "reordered") if cells else ():
            cell = max(cells, key=lambda cell: cell["concurrency"])
            ratio = _ratio(cell, "marks", other)
            if ratio is not None:
                name = f"marked / {WAYS[other]}: {what.what}, {cell['concurrency']} in flight"
                found.append(Figure(name, ratio, 1.0, False))
    return found


def panels(result: Result) -> list[Panel]:
    """Requests a second by concurrency, one panel a kind of load."""
    made = []
    for load in dict.fromkeys(cell["load"] for cell in result["cells"].values()):
        cells = [cell for cell in result["cells"].values() if cell["load"] == load]
        series = [
            Series(what, tuple((c["concurrency"], s) for c in cells if (s := _rate(c, way))))
            for way, what in WAYS.items()
        ]
        drawn = tuple(one for one in series if one.points)
        made.append(Panel(LOADS[load].what, "requests in flight", "requests/s", drawn, log_x=len(cells) > 1))
    return made
