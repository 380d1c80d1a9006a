"""``python -m benchmarks quality``."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import describe_machine
from benchmarks.harness.settings import RESULTS
from benchmarks.quality.models import MODELS, find_model
from benchmarks.quality.prompts import PLACES
from benchmarks.quality.questions import (
    LEFT_OUT,
    REPORT,
    TUNE,
    Question,
    among_others,
    read_questions,
    read_span,
    select,
)
from benchmarks.quality.rows import FirstTokens, Rows
from benchmarks.quality.summary import panels, summarize, tables
from benchmarks.quality.ways import DEFAULT_WAYS, Way, read_ways


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or only report; returns the exit status."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        ways = read_ways(args.ways)
        everything = read_questions(args.data)
        asked = select(everything, args.split, args.questions)
        asked = among_others(asked, [q for q in everything if args.split in (None, q.part)], args.left_out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not asked:
        parser.error("no question is selected")
    folder = args.data.stem if args.left_out == "none" else f"{args.data.stem}-{args.left_out}-left-out"
    out = args.out or RESULTS / "quality" / _short_name(args.model) / folder
    interrupted = False
    if not args.only_report:
        try:
            _measure(args, ways, asked, out)
        except KeyboardInterrupt:
            interrupted = True
            print("\nquality: interrupted; the same command goes on from here", file=sys.stderr)
        except OtherSettingsError as error:
            parser.error(str(error))
    write_report(out, ways, asked, args.split or "all")
    return 130 if interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks quality",
        description="Answers over modules against full prefill; see docs/quality.md. Goes on where an "
        "earlier run with the same --out stopped.",
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="JSONL: id, contexts, question, answers; or LongBench's own"
    )
    parser.add_argument("--model", help=f"{', '.join(MODELS)}, a path, or a hub name (default: the embedded)")
    parser.add_argument("--ways", default=DEFAULT_WAYS, help="names, comma-separated (default: %(default)s)")
    parser.add_argument("--split", choices=(TUNE, REPORT), help="choose on one, report on the other")
    parser.add_argument("--questions", type=read_span, metavar="A:B", help="of the selected: 0:200")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results/quality/MODEL/DATA)")
    parser.add_argument("--times", type=int, default=10, help="questions to time (default: %(default)s)")
    parser.add_argument("--only-times", action="store_true", help="measure nothing but the times")
    parser.add_argument("--only-report", action="store_true", help="tables and plots of what is there")
    parser.add_argument("--place", choices=PLACES, default="system", help="of the passages (default: system)")
    parser.add_argument(
        "--left-out",
        choices=LEFT_OUT,
        default="none",
        help="passages of another question in the schema, which prompts do not include (default: none)",
    )
    parser.add_argument("--chunk", type=int, default=8, help="questions in a batch (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=32, help="of an answer (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of weights and KV cache (default: %(default)s)")
    parser.add_argument("--block-size", type=int, help="KV cache block size (default: vLLM's)")
    parser.add_argument("--max-model-len", type=int, default=8192, help="positions (default: %(default)s)")
    parser.add_argument("--kv-gib", type=float, default=2.0, help="KV cache, GiB (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the model (default: all cores)")
    return parser


def _measure(args: argparse.Namespace, ways: list[Way], asked: list[Question], out: Path) -> None:
    from transformers import AutoTokenizer

    from benchmarks.quality.engine import EngineSettings, QualityEngine
    from benchmarks.quality.latency import measure_latency
    from benchmarks.quality.measure import Measurement, Quality
    from benchmarks.quality.prompts import PromptMaker
    from vllm_promptcache.layout.encoder import TextEncoder

    model = find_model(args.model)
    settings = EngineSettings(
        model,
        args.dtype,
        args.block_size,
        args.max_model_len,
        kv_gib=args.kv_gib,
        threads=args.threads,
    )
    _note_settings(args, model, out)
    engine = QualityEngine(settings)
    encoder = TextEncoder(AutoTokenizer.from_pretrained(model))
    maker = PromptMaker(encoder, args.max_model_len, args.place)
    fitting = [question for question in asked if maker.fits(question)]
    if len(fitting) < len(asked):
        left = len(asked) - len(fitting)
        print(f"quality: {left} questions do not fit into {args.max_model_len} positions", file=sys.stderr)
    if not args.only_times:
        rows, first_tokens = Rows(out / "rows.jsonl"), FirstTokens(out / "first-tokens.jsonl")
        measurement = Measurement(args.max_tokens, args.chunk)
        Quality(engine, maker, ways, rows, first_tokens, measurement).run(fitting)
    measure_latency(engine, maker, ways, fitting[: args.times], Rows(out / "times.jsonl"))


class OtherSettingsError(RuntimeError):
    """A folder holds measurements that were made otherwise."""


def _note_settings(args: argparse.Namespace, model: str, out: Path) -> None:
    """Write down, or compare, what every row of a folder rests on."""
    path = out / "run.json"
    settings: dict[str, Any] = {
        "model": Path(model).name if "/" in model else model,
        "data": args.data.name,
        "data_sha256": sha256(args.data.read_bytes()).hexdigest(),
        "order": "shuffled by question",
        "place": args.place,
        "left_out": args.left_out,
        "max_tokens": args.max_tokens,
        "dtype": args.dtype,
        "block_size": args.block_size,
    }
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        noted = {"settings": settings, "machine": describe_machine()}
        path.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))["settings"]
    if found != settings:
        others = [f"{name} {found.get(name)!r}" for name in settings if found.get(name) != settings[name]]
        raise OtherSettingsError(f"{out} was measured with {', '.join(others)}: give another --out")


def write_report(out: Path, ways: Sequence[Way], asked: Sequence[Question], name: str) -> None:
    """Summary (JSON), tables (Markdown) and plot of a folder's rows for the questions and ways asked for."""
    names = [way.name for way in ways]
    rows = [row for row in Rows(out / "rows.jsonl").rows if row["way"] in names]
    summary = summarize(rows, Rows(out / "times.jsonl").rows, [q.id for q in asked])
    if not summary:
        print("quality: no question is answered in every way yet", file=sys.stderr)
        return
    summary = {way: summary[way] for way in names if way in summary}
    noted = json.loads((out / "run.json").read_text(encoding="utf-8"))
    result = {**noted, "part": name, "questions_selected": len(asked), "ways": summary}
    path = out / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot = _plot(summary, path)
    settings = noted["settings"]
    parts = [
        f"# Quality: {settings['data']}, {settings['model']}, part: {name}",
        *(table.to_markdown() for table in tables(summary)),
        *([f"![quality against the recomputed share]({plot.name})"] if plot else []),
    ]
    text = "\n\n".join(parts) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(path, file=sys.stderr)


def _plot(summary: dict[str, Any], path: Path) -> Path | None:
    from benchmarks.harness.plot import save_plot

    try:
        save_plot(panels(summary), path.with_suffix(".svg"))
    except ImportError:
        print("quality: no plot: pip install 'vllm-promptcache[bench]'", file=sys.stderr)
        return None
    return path.with_suffix(".svg")


def _short_name(model: str | None) -> str:
    name = model or "smollm2-135m"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name if "/" in name else name)
