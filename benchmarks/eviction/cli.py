"""``python -m benchmarks eviction``: hit rates on Zipf traces; counted, not timed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.eviction.traces import compare


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks eviction", description=__doc__)
    parser.add_argument("--members", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--fitting", type=int, default=200, help="room for so many (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100_000, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    print(compare(args.members, args.fitting, args.requests))
    return 0
