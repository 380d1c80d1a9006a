"""``python -m benchmarks placements``: the first token's distribution over moved and over encoded placements.

The same prompt is asked twice of one engine that keeps nothing in between: its passages encoded at home and
moved to where they stand, and encoded where they stand, in sight of a context that stands as much further on.
In exact arithmetic both are one; what is printed is what rounding makes of it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.harness.report import Table
from benchmarks.harness.text import read_corpus
from benchmarks.quality.metrics import Distribution, divergence
from benchmarks.quality.models import find_model
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.frontend.composer import ComposedPrompt
from vllm_promptcache.offline import LLM
from vllm_promptcache.pml.escape import text as escaped

SCHEMA = """<schema name="desk"><system>Answer from these passages.
<pool name="passages"/></system></schema>"""
WORDS_OF_PASSAGE = 120


@dataclass(frozen=True)
class Found:
    """One prompt: how far its passages were moved in all, in tokens; KL in nats; whether the likeliest token
    is the same."""

    moved: int
    kl: float
    is_same: bool


def encoded_there(plan: Plan) -> Plan:
    """The same prompt over units whose homes are where they stand."""
    units: dict[tuple[Unit, int], Unit] = {}

    def shifted(unit: Unit, moved: int) -> Unit:
        if not moved:
            return unit
        if (unit, moved) not in units:
            context = tuple(shifted(seen, moved) for seen in unit.context)
            units[unit, moved] = replace(unit, position_ids=unit.position_ids + moved, context=context)
        return units[unit, moved]

    segments = [
        CachedSegment(shifted(segment.unit, segment.moved), segment.start, segment.end)
        if isinstance(segment, CachedSegment)
        else segment
        for segment in plan.segments
    ]
    placed = tuple(shifted(unit, moved) for unit, moved in plan.placed_units)
    return replace(plan, units=placed, segments=tuple(segments))


def measure(llm: LLM, questions: int, passages: int, seed: int) -> list[Found]:
    """Ask prompts of so many passages in random order, over both kinds of placements."""
    drawn = random.Random(seed)
    texts = [" ".join(text.split()[:WORDS_OF_PASSAGE]) for text in read_corpus(None).documents]
    found = []
    for _ in range(questions):
        members = "".join(
            f'<module name="{number}">{escaped(text)}</module>'
            for number, text in enumerate(drawn.sample(texts, passages))
        )
        pml = f'{SCHEMA}<prompt schema="desk"><passages>{members}</passages></prompt>'
        question = [{"role": "user", "content": "Which package is this about?"}]
        moved = llm.compose(f"<pml>{pml}</pml>", question)
        there = ComposedPrompt(encoded_there(moved.plan), None, moved.max_new_tokens)
        logprobs = []
        for prompt in (there, ComposedPrompt(moved.plan, None, moved.max_new_tokens)):
            assert llm.reset_prefix_cache()
            logprobs += llm.first_token_logprobs([prompt])
        reference = Distribution.of(logprobs[0], len(logprobs[0]))
        far = sum(s.moved for s in moved.plan.segments if isinstance(s, CachedSegment))
        is_same = bool(np.argmax(logprobs[0]) == np.argmax(logprobs[1]))
        found.append(Found(far, divergence(reference, logprobs[1]), is_same))
    return found


def table(dtype: str, found: Sequence[Found]) -> Table:
    """One line: how far apart both are."""
    kl = [one.kl for one in found]
    cells = (
        dtype,
        f"{len(found)}",
        f"{np.mean([one.moved for one in found]):.0f}",
        f"{np.mean(kl):.2e}",
        f"{np.median(kl):.2e}",
        f"{max(kl):.2e}",
        f"{sum(one.is_same for one in found)} of {len(found)}",
    )
    columns = ("data type", "prompts", "tokens moved", "KL, mean", "median", "largest", "same first token")
    return Table("Moved and encoded placements", columns, (cells,), "KL in nats of the first token.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks placements", description=__doc__)
    parser.add_argument("--model", help="as for `quality` (default: the embedded model)")
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--questions", type=int, default=20, help="prompts (default: %(default)s)")
    parser.add_argument("--passages", type=int, default=5, help="in each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    llm = LLM(
        model=str(find_model(args.model)),
        dtype=args.dtype,
        max_model_len=4096,
        max_logprobs=-1,
        enforce_eager=True,
        prompt_cache={"host_gib": 0.5},
    )
    found = measure(llm, args.questions, args.passages, args.seed)
    print(table(args.dtype, found).to_markdown())
    return 0
