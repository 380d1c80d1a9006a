"""``python -m benchmarks models``: every model family against Transformers, and the table in docs/models.md.

Each family is a tiny random model (tests/family.py): a prompt with context, gaps,
arguments, text between modules, asked cold, warm and with reuse off, and a plain prompt for what vLLM and
Transformers differ by themselves. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.families import FAMILIES
from tests.family import WAYS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/models.json"
PAGE = ROOT / "docs/models.md"
BEGIN, END = "<!-- made by python -m benchmarks models -->", "<!-- end -->"
MAX_ERROR = 1e-3
# Families measured by one process: importing takes as long as measuring.
TOGETHER = 8


def main(arguments: Sequence[str]) -> int:
    """Measure families and write the table; 1 if one is neither exact nor as near as vLLM itself."""
    parser = argparse.ArgumentParser(prog="benchmarks models", description=__doc__)
    parser.add_argument("--only", help="names of families, separated by commas", default=",".join(FAMILIES))
    parser.add_argument("--missing", action="store_true", help="only families without a result")
    args = parser.parse_args(arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    names = [n for n in args.only.split(",") if not (args.missing and "cold" in results.get(n, {}))]
    for first in range(0, len(names), TOGETHER):
        for name, found in measure(names[first : first + TOGETHER]):
            results[name] = found
            print(f"{name}: {verdict(found)}", flush=True)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        write_table(results)
    return int(any(not verdict(results[name]).startswith("exact") for name in args.only.split(",")))


def measure(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The deviations of families, or why there are none, in a process of theirs."""
    command = [sys.executable, "-m", "tests.family", *names]
    left = set(names)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout or ():
            if line.startswith("FAMILY "):
                name, found = json.loads(line.removeprefix("FAMILY "))
                left.discard(name)
                yield name, found
    for name in sorted(left):
        yield name, {"failed": f"the process ended with {process.returncode}"}


def verdict(result: dict[str, Any]) -> str:
    """In a word or two."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    worst = max(result.get(way, float("inf")) for way in WAYS)
    if worst < MAX_ERROR:
        return "exact"
    return "exact up to vLLM" if worst <= 2 * result["control"] else "differs"


def write_table(results: dict[str, dict[str, Any]]) -> None:
    """Put the results between the marks in the page."""
    lines = [
        "| models | family | | cold | warm | moved | reuse off | plain prompt |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        if name in results:
            numbers = [
                f"{results[name][way]:.1e}" if way in results[name] else "" for way in (*WAYS, "control")
            ]
            lines.append(f"| {family.users} | `{name}` | {verdict(results[name])} | {' | '.join(numbers)} |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), encoding="utf-8")
