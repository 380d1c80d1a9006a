"""Where a request's time to first token goes: marks in all of the server's processes."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.harness.load import Client
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.servers import Plugin, Server
from benchmarks.harness.spread import Spread, interleave
from benchmarks.harness.text import TextSource, read_corpus
from benchmarks.speed import marks
from benchmarks.speed.grid import Point
from benchmarks.speed.ttft import WAYS, Measurement

# Between two requests, until the server has finished with the first one.
PAUSE_S = 0.05
# The stages of a request, and the mark that ends each; what ends the last is the first token's arrival.
STAGES = (
    ("HTTP, PML, plan, token IDs", marks.SENT, "begin"),
    ("to the engine core", marks.ADDED, "begin"),
    ("composition, scheduler, block tables", marks.SCHEDULED, "begin"),
    ("to the worker", marks.STEP, "begin"),
    ("inputs, edge rows", marks.FORWARD, "begin"),
    ("forward pass", marks.FORWARD, "end"),
    ("logits, sampling", marks.SAMPLED, "end"),
)
BACK = "back to the client"
# The forward pass is shown in two parts.
ATTENTION, LAYERS = "attention", "forward pass without attention"
BY_TIME = attrgetter("ns")
SHOWN = (*(name for name, _, _ in STAGES[:5]), ATTENTION, LAYERS, STAGES[6][0], BACK)


@dataclass(frozen=True, order=True)
class Mark:
    """A method of vLLM's began or ended, at a time in nanoseconds."""

    ns: int
    name: str
    edge: str


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--grid",
        default="4000:16:8,4096:16:8",
        help="points cached:new:modules, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--ways", default="alone,prefix,warm", help="of ttft (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=24, help="requests of each way (default: %(default)s)")


def run(run: Run, args: argparse.Namespace) -> None:
    """One server, whose processes are marked; ways in turn."""
    settings = run.settings
    source = TextSource(
        read_corpus(settings.data), AutoTokenizer.from_pretrained(settings.model), settings.seed
    )
    points = [Point(512, 16, 4)] if settings.quick else [Point.read(text) for text in args.grid.split(",")]
    rounds = 4 if settings.quick else args.rounds
    if all(run.has(point.key) for point in points):
        return
    with marked_servers() as folder, Server(settings, Plugin.ON) as server:
        run.add_server(server.describe())
        for point in points:
            if run.wants(point.key):
                measurement = Measurement(server, settings, point, source)
                cell = _measure(measurement, args.ways.split(","), rounds, folder)
                run.add(point.key, {"cached_tokens": measurement.cached, "samples": cell})
                run.say(point.key)


def _measure(measurement: Measurement, ways: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with measurement.registered(), Client() as client:
        asks = {way: measurement.asks(way) for way in ways}
        for way in (*ways, *ways):
            client.ask(measurement.server, next(asks[way]))
        for way, _ in interleave(dict.fromkeys(ways, 1), rounds):
            time.sleep(PAUSE_S)
            began = time.monotonic_ns()
            answer = client.ask(measurement.server, next(asks[way]))
            arrived = began + int(answer.ttft_ms * 1e6)
            samples[way].append(stages_of(read_marks(folder), began, arrived))
    return samples


@contextlib.contextmanager
def marked_servers() -> Iterator[Path]:
    """Servers that start meanwhile load ``benchmarks.speed.marks`` as a plugin; marks arrive in the folder.

    vLLM finds its plugins by their entry points, so a folder on the module path has one.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-marks-") as made:
        site, folder = Path(made, "site"), Path(made, "marks")
        information = site / "benchmark_marks-0.dist-info"
        information.mkdir(parents=True)
        folder.mkdir()
        (site / "benchmark_marks.py").symlink_to(Path(marks.__file__).resolve())
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: benchmark-marks\nVersion: 0\n")
        (information / "entry_points.txt").write_text(
            "[vllm.general_plugins]\nbenchmark_marks = benchmark_marks:register\n"
        )
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        with _environment(PYTHONPATH=path, **{marks.FOLDER: str(folder)}):
            yield folder


@contextlib.contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def read_marks(folder: Path) -> list[Mark]:
    """All marks of all processes so far, in order of time."""
    lines = itertools.chain.from_iterable(
        path.read_text(encoding="ascii").splitlines() for path in folder.glob("*.marks")
    )
    return sorted(Mark(int(ns), name, edge) for ns, name, edge in (line.split() for line in lines))


def stages_of(found: Sequence[Mark], began: int, arrived: int) -> dict[str, float]:
    """Milliseconds of each stage of the one request that was asked between two times, in nanoseconds.

    Raises:
        ValueError: a mark is missing: more than one request, or another vLLM.
    """
    window = found[bisect_left(found, began, key=BY_TIME) : bisect_right(found, arrived, key=BY_TIME)]
    stages: dict[str, float] = {}
    at = began
    for stage, name, edge in STAGES:
        first = next((m.ns for m in window if m.ns >= at and (m.name, m.edge) == (name, edge)), None)
        if first is None:
            raise ValueError(f"no mark ends the stage {stage!r}: {name} {edge}")
        stages[stage] = (first - at) / 1e6
        at = first
    stages[BACK] = (arrived - at) / 1e6
    attention = [m for m in window if m.name == marks.ATTENTION]
    stages[ATTENTION] = sum(m.ns if m.edge == "end" else -m.ns for m in attention) / 1e6
    stages[LAYERS] = stages.pop("forward pass") - stages[ATTENTION]
    return {stage: round(stages[stage], 4) for stage in SHOWN}


# -- the result ----------------------------------------------------------------------------------------


def _stage(cell: Cell, way: str, stage: str) -> Spread:
    return Spread.of(sample[stage] for sample in cell["samples"][way])


def _total(cell: Cell, way: str) -> Spread:
    return Spread.of(sum(sample.values()) for sample in cell["samples"][way])


def tables(result: Result) -> list[Table]:
    """Milliseconds by stage."""
    made = []
    for key, cell in result["cells"].items():
        ways = list(cell["samples"])
        rows = [(stage, *(shown(_stage(cell, way, stage), 2) for way in ways)) for stage in SHOWN]
        total = ("**time to first token**", *(shown(_total(cell, way), 2) for way in ways))
        note = (
            "; ".join(f"*{way}*: {WAYS[way]}" for way in ways) + ". Medians of parts do not add up exactly."
        )
        made.append(Table(f"{key}, ms", ("stage", *ways), (*rows, total), note))
    return made


def figures(result: Result) -> list[Figure]:
    """None is to be reached."""
    return []


def panels(result: Result) -> list[Panel]:
    """Stages on top of each other, a bar for each way."""
    return [
        Panel(
            f"Time to first token: {cell['cached_tokens']:,} cached tokens, {Point.read(key).new} new",
            "",
            "ms",
            tuple(
                Series(stage, tuple((way, _stage(cell, way, stage)) for way in cell["samples"]))
                for stage in SHOWN
            ),
            stacked=True,
        )
        for key, cell in result["cells"].items()
    ]
