"""What loading modules takes beside encoding them: ``python -m benchmarks.speed.loading``.

One engine in this process, on one core. Rounds are interleaved; medians in milliseconds of a request for one
token: 4,000 tokens encoded and loaded; 8 members of a pool of about 500 tokens, in an order that is new each
time, all placed and all in records; the same tokens as a perfect prefix and as a full prefill. ``--tier
files`` keeps no records in memory, so each load reads its file.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
import zlib
from typing import Any

import numpy as np

from vllm_promptcache.blocks.wire import plan_to_wire, prompt_token_ids
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan, Segment
from vllm_promptcache.contract.unit import Unit

NUM_MEMBERS = 8
ROOT_TOKENS = 32
NEW_TOKENS = 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="(default: the embedded model)")
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    parser.add_argument(
        "--tier", choices=["memory", "files"], default="memory", help="(default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=4000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    args = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(args, folder)
    print("| | ms |\n|---|---|")
    for name, times in measured.items():
        print(f"| {name} | {statistics.median(times):.1f} |")


def measure(args: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Milliseconds of each way, by round."""
    from vllm import LLM

    from demo.embedded_model import embedded_model_path

    keeps = {"host_gib": 4.0} if args.tier == "memory" else {"host_gib": 0, "dir": folder}
    llm = LLM(
        model=args.model or str(embedded_model_path()),
        dtype=args.dtype,
        enforce_eager=True,
        max_model_len=8192,
        kv_cache_memory_bytes=1 << 30,
        additional_config={"prompt_cache": keeps},
    )
    scheduler: Any = llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    found: dict[str, list[float]] = {}
    drawn = random.Random(0)
    numbers = itertools.count()
    pool = [_unit(f"member {i}", args.tokens // NUM_MEMBERS, ROOT_TOKENS) for i in range(NUM_MEMBERS)]
    _ask(llm, _plan(pool, next(numbers)))

    def note(name: str, milliseconds: float) -> None:
        found.setdefault(f"{args.tokens} tokens {name}", []).append(milliseconds)

    def drop() -> None:
        for _ in scheduler.store.resident.reclaim(set()):
            pass
        llm.generate({"prompt_token_ids": [1, 2, 3]}, _one_token(), use_tqdm=False)

    for round_number in range(args.rounds):
        whole = [_unit(f"whole {round_number}", args.tokens, ROOT_TOKENS)]
        note("encoded", _ask(llm, _plan(whole, next(numbers))))
        drop()
        note("loaded", _ask(llm, _plan(whole, next(numbers))))
        order = drawn.sample(pool, NUM_MEMBERS)
        drop()
        note("in 8 members, in records", _ask(llm, _plan(order, next(numbers))))
        note("in 8 members, placed", _ask(llm, _plan(order, next(numbers))))
        plain = prompt_token_ids(_plan([_unit(f"plain {round_number}", args.tokens, 0)], 0))
        note("full prefill", _ask(llm, plain))
        note("perfect prefix", _ask(llm, [*plain[:-NEW_TOKENS], *range(200, 200 + NEW_TOKENS)]))
    return found


def _unit(name: str, num_tokens: int, position: int) -> Unit:
    tokens = np.random.default_rng(zlib.crc32(name.encode())).integers(100, 40_000, num_tokens)
    return Unit(name, tokens, np.arange(position, position + num_tokens), np.ones(num_tokens, bool), ())


def _plan(units: list[Unit], number: int) -> Plan:
    """Units one behind the other, and new text that is another each time."""
    segments: list[Segment] = []
    at = ROOT_TOKENS
    for unit in units:
        segments.append(CachedSegment(unit, 0, unit.num_tokens, at))
        at += unit.num_tokens
    tokens = np.random.default_rng(number).integers(100, 40_000, NEW_TOKENS).tolist()
    segments.append(NewSegment(tokens, at, "new"))
    return Plan("loading", "loading", tuple(units), tuple(segments))


def _ask(llm: Any, prompt: Plan | list[int]) -> float:
    params = _one_token()
    if isinstance(prompt, Plan):
        params.extra_args = {"prompt_cache": plan_to_wire(prompt, with_texts=True)}
    tokens = prompt_token_ids(prompt) if isinstance(prompt, Plan) else prompt
    begun = time.perf_counter()
    llm.generate({"prompt_token_ids": tokens}, params, use_tqdm=False)
    return (time.perf_counter() - begun) * 1000


def _one_token() -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0, detokenize=False)


if __name__ == "__main__":
    main()
