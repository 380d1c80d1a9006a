"""``python -m benchmarks original``: schemas of the shapes that the original's examples have.

They end in words behind their modules. A table says how far the first token's distribution is from full
prefill's, with each repair."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = {
    "code": "source files, and an answer behind them",
    "persona": "traits, a union each, and what to do with them",
    "trip": "parameters and a union, and a task behind them",
}
REPAIRS = ("auto", "none", "tail", "link:16+tail")
ENCODINGS = ("context", "sequence", "isolated")
# What is wanted of the default repair with the default encoding, in nats.
BOUND = 0.03

_HEADER = "| schema | encode | repair | computed anew | KL, nats | first token |\n|---|---|---|---|---|---|"


def documents(encode: str) -> dict[str, str]:
    """The documents of all shapes, with schemas encoded in a way."""
    folder = Path(__file__).parent
    texts = {shape: (folder / f"{shape}.pml").read_text(encoding="utf-8") for shape in SHAPES}
    return {name: t.replace("<schema ", f'<schema encode="{encode}" ', 1) for name, t in texts.items()}


def divergence(full: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The KL divergence of log-probabilities from full prefill's, both of shape (vocabulary,), in nats."""
    possible = np.isfinite(full)
    full, other = full[possible].astype(np.float64), other[possible].astype(np.float64)
    return float(np.sum(np.exp(full) * (full - other)))


def main(arguments: Sequence[str]) -> int:
    """Prints a table; 1 if with the defaults any schema is further from full prefill than `BOUND`."""
    from demo.embedded_model import embedded_model_path

    parser = argparse.ArgumentParser(prog="python -m benchmarks original", description=__doc__)
    parser.add_argument("--model", default=None, help="a model (default: the embedded one)")
    args = parser.parse_args(arguments)
    # One process: nothing is timed.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm_promptcache import LLM

    llm = LLM(
        model=args.model or str(embedded_model_path()),
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=4,
        max_logprobs=-1,
        dtype="float32",
        kv_cache_memory_bytes=1 << 29,
    )
    print(_HEADER)
    default = [found for encode in ENCODINGS for found in _rows(llm, encode) if encode == ENCODINGS[0]]
    return 0 if max(default) <= BOUND else 1


def _rows(llm: Any, encode: str) -> list[float]:
    """Prints the rows of an encoding; the divergences with the default repair."""
    default = []
    for shape, pml in documents(encode).items():
        prompts = [llm.compose(pml, [], repair=repair) for repair in REPAIRS]
        full, *found = llm.first_token_logprobs([llm.compose(pml, [], reuse=False), *prompts])
        for repair, prompt, logprobs in zip(REPAIRS, prompts, found, strict=True):
            distance = divergence(full, logprobs)
            if repair == REPAIRS[0]:
                default.append(distance)
            anew = f"{prompt.plan.num_repaired_tokens} of {len(prompt.token_ids)}"
            same = "the same" if logprobs.argmax() == full.argmax() else "another"
            print(f"| {shape} | {encode} | `{repair}` | {anew} | {distance:.4f} | {same} |", flush=True)
    return default
