"""The measurement: questions in chunks, all ways of a chunk in one batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality.engine import Answer, Ask, QualityEngine
from benchmarks.quality.metrics import Distribution, containment, divergence, exact_match, f1, first_line
from benchmarks.quality.prompts import Prompt, PromptMaker
from benchmarks.quality.questions import Question, chunks
from benchmarks.quality.rows import FirstTokens, Row, Rows
from benchmarks.quality.ways import Way

# Distributions are compared by so many tokens, the likeliest of full prefill, and the rest as one.
FIRST_TOKENS = 1024


@dataclass(frozen=True)
class Measurement:
    """How a run asks."""

    max_tokens: int = 32
    chunk: int = 8


class Quality:
    """Measures what rows do not hold yet."""

    def __init__(
        self,
        engine: QualityEngine,
        maker: PromptMaker,
        ways: Sequence[Way],
        rows: Rows,
        first_tokens: FirstTokens,
        measurement: Measurement,
    ):
        self._engine = engine
        self._maker = maker
        self._ways = ways
        self._rows = rows
        self._first_tokens = first_tokens
        self._measurement = measurement
        self._done = {(row["way"], row["id"]) for row in rows.rows}

    def run(self, questions: Sequence[Question]) -> None:
        """Ask all questions in all ways; rows are on disk after each chunk."""
        progress = Progress([q for q in questions if self._missing(q)])
        for chunk in chunks(questions, self._measurement.chunk):
            missing = [question for question in chunk if self._missing(question)]
            if missing:
                self._measure(missing)
                progress.tell(len(missing))

    def _missing(self, question: Question) -> list[Way]:
        """The ways in which a question is still to be asked."""
        ways = [way for way in self._ways if (way.name, question.id) not in self._done]
        full = self._ways[0]
        if ways and question.id not in self._first_tokens and full not in ways:
            return [full, *ways]
        return ways

    def _measure(self, questions: Sequence[Question]) -> None:
        prompts = [self._maker.make(q, way) for q in questions for way in self._missing(q)]
        firsts = self._one_for_each_prefix(prompts)
        answers = self._engine.ask(self._asks(firsts))
        answers |= self._engine.ask(self._asks([p for p in prompts if p not in firsts]))
        rows = []
        # Full prefill comes first among a question's ways: the others are compared with it.
        for prompt in prompts:
            row = self._row(prompt, answers)
            if (row["way"], row["id"]) not in self._done:
                rows.append(row)
        self._rows.append(rows)
        self._done |= {(row["way"], row["id"]) for row in rows}

    def _one_for_each_prefix(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """One full prefill for each set of passages: the others find its states."""
        found = {p.question.passages: p for p in reversed(prompts) if p.way.is_full}
        return list(found.values())

    def _asks(self, prompts: Sequence[Prompt]) -> Iterator[Ask]:
        for prompt in prompts:
            name = _name(prompt)
            task = prompt.question.task
            max_tokens = task.max_tokens if task else self._measurement.max_tokens
            yield Ask(f"{name} answer", prompt, max_tokens=max_tokens, keep_as=name)
            forced = tuple(self._maker.answer_token_ids(prompt.question))
            yield Ask(f"{name} gold", prompt, forced=forced)

    def _row(self, prompt: Prompt, answers: Mapping[str, Answer]) -> Row:
        question, way, name = prompt.question, prompt.way, _name(prompt)
        answer, gold = answers[f"{name} answer"], answers[f"{name} gold"]
        if not way.is_full and answer.num_cached_tokens != prompt.plan.num_cached_tokens:
            planned = prompt.plan.num_cached_tokens
            raise AssertionError(f"{name}: {answer.num_cached_tokens} tokens reused, {planned} planned")
        logprobs = self._engine.take_first_token(name)
        if way.is_full:
            self._first_tokens[question.id] = Distribution.of(logprobs, FIRST_TOKENS)
        task = question.task
        text = first_line(answer.text) if task is None or task.first_line else answer.text.strip()
        score = {} if task is None else {"score": task.best_score(text, question.answers)}
        return {
            **score,
            "way": way.name,
            "id": question.id,
            "part": question.part,
            "f1": f1(text, question.answers),
            "exact": exact_match(text, question.answers),
            "contains": containment(text, question.answers),
            "nll": -sum(gold.logprobs) / len(gold.logprobs),
            "kl": divergence(self._first_tokens[question.id], logprobs),
            "recomputed": prompt.num_recomputed,
            "in_modules": prompt.num_in_modules,
            "new": prompt.plan.num_new_tokens,
            "gold_tokens": len(gold.logprobs),
            "answer": text,
        }


class Progress:
    """A line for each chunk, with how long the rest will take."""

    def __init__(self, questions: Sequence[Question]):
        self._total = len(questions)
        self._done = 0
        self._started = time.monotonic()
        self._cpu_started = time.process_time()

    def tell(self, num_questions: int) -> None:
        """So many more questions are done."""
        self._done += num_questions
        seconds = time.monotonic() - self._started
        each = seconds / self._done
        left = each * (self._total - self._done) / 60
        cpu = (time.process_time() - self._cpu_started) / self._done
        print(
            f"[{seconds / 60:6.1f} min] {self._done} of {self._total} questions,"
            f" {each:.1f} s each ({cpu:.1f} s of processor time), {left:.0f} min left",
            file=sys.stderr,
            flush=True,
        )


def _name(prompt: Prompt) -> str:
    return f"{prompt.way.name} {prompt.question.id}"
