"""``python -m benchmarks routing``: units found resident by where requests go; counted, without an engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.routing.traces import compare


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks routing", description=__doc__)
    parser.add_argument("--modules", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--per-request", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--engines", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--room", type=int, default=60, help="modules an engine holds (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=20_000, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    print(compare(args.modules, args.per_request, args.engines, args.room, args.requests))
    return 0
