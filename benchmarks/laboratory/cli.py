"""A laboratory for encodings and repairs that no engine has yet: masks over states, in Transformers.

    python -m benchmarks laboratory --data FILE.jsonl --questions 0:40 --ways context,context+select:0.1

Passages and questions stand as in ``python -m benchmarks quality``; a way is an encoding and, after plus
signs, what is done to it. Here a new idea is a few lines, and one pass of the model tells what it is worth;
what is worth it is built, and measured by ``quality`` (docs/quality.md, "Log of what was tried").
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.harness.report import Table
from benchmarks.laboratory.bench import Bench
from benchmarks.laboratory.encodings import Company
from benchmarks.laboratory.states import Model, Modules
from benchmarks.quality.bootstrap import paired
from benchmarks.quality.metrics import Distribution, containment, divergence, f1, first_line
from benchmarks.quality.models import find_model
from benchmarks.quality.prompts import PromptMaker
from benchmarks.quality.questions import (
    LEFT_OUT,
    Question,
    among_others,
    read_questions,
    read_span,
    select,
)
from benchmarks.quality.rows import Row, Rows
from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.layout.encoder import TextEncoder


def measure(
    model: Model,
    tokenizer: Any,
    maker: PromptMaker,
    questions: Sequence[Question],
    company: Sequence[Question],
    ways: Sequence[str],
    rows: Rows,
    most: int,
) -> None:
    """Ask each question in all ways that ``rows`` does not hold; full prefill always, to compare with."""
    done = {(row["way"], row["id"]) for row in rows.rows}
    bench: Bench | None = None
    passages = None
    for number, question in enumerate(questions, 1):
        missing = [way for way in ways if (way, question.id) not in done]
        if not missing:
            continue
        if passages != question.passages:
            passages = question.passages
            modules = Modules.of(maker.plan(question, "context"))
            others = next(q for q in company if not set(q.passages) & set(question.passages))
            stranger = Modules.of(maker.plan(others, "context"))
            left_out = {
                share: Modules.of_question(maker, among_others([question], company, share)[0])
                for share in LEFT_OUT[1:]
            }
            bench = Bench(model, modules, Company(stranger.token_ids[stranger.in_passages]), left_out)
        assert bench is not None
        new = [s for s in maker.plan(question, "full").segments if not isinstance(s, CachedSegment)]
        token_ids = np.concatenate([np.asarray(s.token_ids) for s in new])
        gold = maker.answer_token_ids(question)
        asked = ["full", *missing]
        found = [bench.states(way) for way in asked]
        end = bench.modules.position_ids[-1]
        moved = [bench.at(way.partition("@")[2]).modules.position_ids[-1] - end for way in asked]
        starts = [new[0].first_position + int(shift) for shift in moved]
        logprobs, answers = model.ask([s for s, _ in found], starts, token_ids, gold, most)
        reference = Distribution.of(logprobs[0, 0].numpy(), 1024)
        made: list[Row] = []
        for index, way in enumerate(asked):
            if index == 0 and "full" in missing:
                continue
            text = first_line(tokenizer.decode(answers[index])) if most else ""
            picked = logprobs[index, torch.arange(len(gold)), torch.tensor(gold)]
            made.append(
                {
                    "way": way,
                    "id": question.id,
                    "nll": -float(picked.mean()),
                    "kl": divergence(reference, logprobs[index, 0].numpy()),
                    "f1": f1(text, question.answers),
                    "contains": containment(text, question.answers),
                    "renewed": found[index][1],
                    "tokens": len(bench.modules.token_ids),
                    "answer": text,
                }
            )
        rows.append([row for row in made if (row["way"], row["id"]) not in done])
        done |= {(row["way"], row["id"]) for row in made}
        print(f"{number} of {len(questions)}", file=sys.stderr, flush=True)


def table(rows: Sequence[Row], ways: Sequence[str], questions: Sequence[Question]) -> Table:
    """Means, and differences to full prefill with their intervals, of what was asked in every way."""
    ids = {q.id for q in questions}
    by_way: dict[str, dict[str, Row]] = {way: {} for way in dict.fromkeys(["full", *ways])}
    for row in rows:
        if row["way"] in by_way and row["id"] in ids:
            by_way[row["way"]][row["id"]] = row
    common = set.intersection(*(set(found) for found in by_way.values()))
    lines = []
    for way, found in by_way.items():
        share = np.mean([found[i]["renewed"] / found[i]["tokens"] for i in common])
        cells = [f"{np.mean([found[i]['kl'] for i in common]):.3f}"]
        for metric, scale, digits in (("nll", 1, 3), ("f1", 100, 1), ("contains", 100, 1)):
            against = paired(
                {i: found[i][metric] for i in common}, {i: by_way["full"][i][metric] for i in common}
            )
            cells.append(f"{scale * np.mean([found[i][metric] for i in common]):.{digits}f}")
            cells.append(against.text(digits, scale, sign=True) if against else "")
        lines.append((way, f"{share:.1%}", *cells))
    columns = ("way", "anew", "KL", "NLL", "to full", "F1", "to full", "contains", "to full")
    return Table("Laboratory", columns, tuple(lines), f"{len(common)} questions.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks laboratory",
        description="Encodings and repairs as masks; see docs/quality.md.",
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="as for `quality` (default: the embedded model)")
    parser.add_argument("--ways", default="full,isolated,context,scaffold")
    parser.add_argument("--split", default="tune", choices=("tune", "report"))
    parser.add_argument("--questions", type=read_span, default=(0, 40), metavar="A:B")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--answer-tokens", type=int, default=32, help="0: no answers, only distributions")
    parser.add_argument("--out", type=Path, required=True, help="rows, added to")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    folder = find_model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    everything = read_questions(args.data)
    questions = select(everything, args.split, args.questions)
    company = [q for q in everything if q.part == args.split]
    ways, rows = args.ways.split(","), Rows(args.out)
    model = Model(folder, getattr(torch, args.dtype))
    maker = PromptMaker(TextEncoder(tokenizer), 8192)
    measure(model, tokenizer, maker, questions, company, ways, rows, args.answer_tokens)
    print(table(rows.rows, ways, questions).to_markdown())
    return 0
