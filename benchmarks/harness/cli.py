"""``python -m benchmarks [options] NAME [options of NAME]``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import settings as common
from benchmarks.harness.report import render
from benchmarks.harness.run import Result, Run, RunError
from benchmarks.harness.servers import ServerError

# In the order in which `all` runs them: short ones first.
BENCHMARKS = {
    "overhead": "microseconds of host work per request: parse, layout, plan, tables",
    "memory": "blocks needed by 100 requests that share a module",
    "ttft": "time to first token: full prefill, perfect prefix, composed warm and cold",
    "timeline": "where the milliseconds of a time to first token go, stage by stage (CPU)",
    "decode": "time per output token by context length",
    "conversation": "the second turn over the same modules",
    "tax": "plain traffic: plugin on, off, not installed",
    "versions": "this checkout against another one: plain and composed requests",
    "throughput": "questions over a pool of documents at concurrency 1 to 32",
    "loading": "members of a pool encoded, loaded from memory and files, placed; and after a restart",
    "retrieval": "passages found by BM25, marked, or for a prefix cache in two orders, concurrency 1 to 32",
}
# These have options of their own.
OTHERS = {
    "eviction": "hit rates of what is evicted on Zipf traces, beside LRU and the offline optimum",
    "placements": "the first token over moved placements and over encoded ones, in bfloat16",
    "original": "KL of the first token to full prefill over schemas of the original's shapes",
    "layouts": "tokens computed by everyday prompts: plain sent twice, composed sent twice",
    "routing": "units found resident by which of several engines requests go to",
    "models": "every model family against Transformers; makes the table of docs/models.md",
    "quality": "answers over modules against full prefill",
    "laboratory": "the same of encodings and repairs that no engine has, as masks in Transformers",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark; returns the exit status."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    given = list(sys.argv[1:] if arguments is None else arguments)
    known, _ = _parser(add_help=False).parse_known_args(given)
    if known.name is None:
        _parser().print_help()
        return 0 if {"-h", "--help"} & set(given) else 2
    if known.name == "report":
        return _report(_parser().parse_args(given).files)
    if known.name in OTHERS:
        given.remove(known.name)
        return int(importlib.import_module(f"benchmarks.{known.name}.cli").main(given))
    if known.name == "all":
        return _all(given)
    args = _parser(known.name).parse_args(given)
    if args.resume and args.out is None:
        print("benchmarks: --resume continues the result that --out names", file=sys.stderr)
        return 2
    # Servers that were started are stopped also when somebody stops this process (`timeout`).
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _run(known.name, args, given)
    except (RunError, ServerError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _parser(name: str | None = None, *, add_help: bool = True) -> argparse.ArgumentParser:
    listed, others = (
        "\n".join(f"  {name:<13} {what}" for name, what in some.items()) for some in (BENCHMARKS, OTHERS)
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        add_help=add_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Side by side, in one run, interleaved; see docs/performance.md.",
        epilog=f"benchmarks:\n{listed}\n  {'all':<13} each of these\n{others}\n"
        f"  {'report':<13} FILE.json…: tables and plots again, from results\n\n"
        "`python -m benchmarks NAME --help` lists the options of NAME.",
    )
    parser.add_argument("name", nargs="?", choices=[*BENCHMARKS, *OTHERS, "all", "report"], metavar="NAME")
    if name is None:
        parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    common.add_arguments(parser)
    parser.add_argument(
        "--out", type=Path, help="result file (default: benchmarks/results/NAME-time.json); of all, a folder"
    )
    parser.add_argument("--resume", action="store_true", help="keep what --out holds, measure the rest")
    if name is not None:
        _module(name).add_arguments(parser.add_argument_group(f"options of {name}"))
    return parser


def _module(name: str) -> Any:
    """The module of a benchmark: add_arguments, run, tables, figures, panels."""
    return importlib.import_module(f"benchmarks.speed.{name}")


def _command(given: Sequence[str]) -> str:
    """The command line that measures the same again, wherever its result goes."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--out")
    own.add_argument("--resume", action="store_true")
    return shlex.join(["python", "-m", "benchmarks", *own.parse_known_args(list(given))[1]])


def _run(name: str, args: argparse.Namespace, given: Sequence[str]) -> None:
    settings = common.read_settings(args)
    own = argparse.ArgumentParser()
    _module(name).add_arguments(own)
    options = {key: getattr(args, key) for key in vars(own.parse_args([]))}
    run = Run(name, settings, options, args.out, resume=args.resume, command=_command(given))
    try:
        _module(name).run(run, args)
    finally:
        # What was measured before an error, or Ctrl-C, is a result too.
        if run.result["cells"]:
            run.save()
            write_report(run.path)


def write_report(path: Path) -> None:
    """Tables (NAME.md) and plots (NAME.svg, NAME.png) beside a result, which gains its figures."""
    from benchmarks.harness.plot import save_plot

    result: Result = json.loads(path.read_text(encoding="utf-8"))
    module = _module(result["benchmark"])
    figures = module.figures(result)
    result["figures"] = [figure.to_json() for figure in figures]
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot = path.with_suffix(".svg")
    panels = module.panels(result)
    try:
        if panels:
            save_plot(panels, plot)
    except ImportError:
        print("benchmarks: no plot: pip install 'vllm-promptcache[bench]'", file=sys.stderr)
    text = render(result, module.tables(result), figures, plot.name if plot.exists() else "")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(f"{path}\n{path.with_suffix('.md')}\n{plot}", file=sys.stderr)


def _report(files: Sequence[Path]) -> int:
    for path in files:
        write_report(path)
    return 0


def _all(given: Sequence[str]) -> int:
    """Every benchmark with the common options; one that fails does not stop the others.

    ``--out`` names a folder, with a result NAME.json for each.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--out", type=Path)
    folder, rest = own.parse_known_args(list(given))
    rest.remove("all")
    failed = []
    for name in BENCHMARKS:
        print(f"== {name}: {BENCHMARKS[name]}", file=sys.stderr)
        try:
            out = ["--out", str(folder.out / f"{name}.json")] if folder.out else []
            if main([name, *rest, *out]):
                failed.append(name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"benchmarks: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
