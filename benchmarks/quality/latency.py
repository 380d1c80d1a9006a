"""Time to first token of each way, warm, one request at a time, the ways in turn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.harness.spread import interleave
from benchmarks.quality.engine import Ask, QualityEngine
from benchmarks.quality.prompts import PromptMaker
from benchmarks.quality.questions import Question
from benchmarks.quality.rows import Rows
from benchmarks.quality.ways import Way

ROUNDS = 3


def measure_latency(
    engine: QualityEngine,
    maker: PromptMaker,
    ways: Sequence[Way],
    questions: Sequence[Question],
    rows: Rows,
) -> None:
    """Add the questions' times to rows that do not hold them yet.

    Units are resident, encoded for just the link tokens of the way; full prefill finds nothing. What is
    measured is the engine's part: the plan is made before.
    """
    named = {way.name: way for way in ways}
    done = {(row["way"], row["id"]) for row in rows.rows}
    for index, question in enumerate(questions):
        if all((name, question.id) in done for name in named):
            continue
        asks = {
            name: Ask(f"{name} time", maker.make(question, way), max_tokens=1, found_by_prefix=False)
            for name, way in named.items()
        }
        # Full prefill needs no warming: it is the longest, and the same code runs in the others.
        engine.ask(ask for name, ask in asks.items() if not named[name].is_full)
        found = []
        for number, (name, (turn, _)) in enumerate(interleave(dict.fromkeys(named, 1), ROUNDS)):
            ask = replace(asks[name], name=f"{name} time {number}")
            seconds = engine.time_to_first_token(ask)
            new = ask.prompt.plan.num_new_tokens
            found.append({"way": name, "id": question.id, "turn": turn, "ms": seconds * 1000, "new": new})
        rows.append(found)
        print(f"time to first token: {index + 1} of {len(questions)} questions", file=sys.stderr, flush=True)
