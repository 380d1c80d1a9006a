"""LongBench's own files (Bai et al. 2024): their tasks, their contexts as passages, their metrics.

A user has the files (``narrativeqa.jsonl`` and so on, as the authors publish them); nothing of them is here.
A context of several passages becomes a module for each; one long text is cut at line ends, and stays in
order. Instructions say what LongBench's say, in a system message before the passages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.quality.metrics import f1

# Where one text is cut: at the line end behind so many words, or there if there is none near.
WORDS_A_PIECE = 400
MOST_WORDS_A_PIECE = 600


@dataclass(frozen=True)
class Task:
    """A data set of LongBench.

    Attributes:
        name: LongBench's.
        instruction: stands before the passages.
        ask: the question's text around the ``{input}``.
        score: LongBench's metric of an answer against one right answer, 0 to 1.
        max_tokens: of an answer, as LongBench has it.
        split: what passages begin with; None where the context is one text. A group is the passage's title.
        first_line: whether only the first line of an answer counts.
    """

    name: str
    instruction: str
    ask: str
    score: Callable[[str, str], float]
    max_tokens: int
    split: str | None = None
    first_line: bool = False

    def best_score(self, answer: str, golds: tuple[str, ...]) -> float:
        """The best score over the right answers."""
        return max(self.score(answer, gold) for gold in golds)

    def passages(self, context: str) -> list[tuple[str, str]]:
        """Titles and texts of a context's passages."""
        if self.split is None:
            return [("", piece) for piece in _pieces(context)]
        found = list(re.finditer(self.split, context, re.MULTILINE))
        ends = [*(match.start() for match in found[1:]), len(context)]
        passages = [
            (match[1] if match.re.groups else "", context[match.end() : end].strip())
            for match, end in zip(found, ends, strict=True)
        ]
        return [passage for passage in passages if passage[1]] or [("", context.strip())]


def _pieces(text: str) -> list[str]:
    pieces: list[list[str]] = [[]]
    count = 0
    for line in text.splitlines():
        words = line.split()
        while words:
            room = MOST_WORDS_A_PIECE - count
            pieces[-1].append(" ".join(words[:room]))
            count += len(words[:room])
            words = words[room:]
            if words or count >= WORDS_A_PIECE:
                pieces.append([])
                count = 0
    return ["\n".join(piece) for piece in pieces if piece]


def qa_f1(answer: str, gold: str) -> float:
    """F1 over words, as SQuAD normalises them."""
    return f1(answer, [gold])


def rouge_l(answer: str, gold: str) -> float:
    """The F of ROUGE-L, by the package that LongBench takes; 0 for an answer without words."""
    if not re.search(r"\w", answer):
        return 0.0
    return float(_rouge().get_scores([answer], [gold], avg=True)["rouge-l"]["f"])


@cache
def _rouge() -> Any:
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


def retrieval(answer: str, gold: str) -> float:
    """The share of the numbers in an answer that are the right paragraph's."""
    (right,) = re.findall(r"Paragraph (\d+)", gold)[:1]
    numbers = re.findall(r"\d+", answer)
    return sum(number == right for number in numbers) / len(numbers) if numbers else 0.0


_SHORT = "as concisely as you can, using a single phrase if possible, without any explanation"
_PASSAGE = r"^Passage \d+:\n"
TASKS = {
    task.name: task
    for task in (
        Task(
            "narrativeqa",
            f"You are given a story and a question. Answer the question {_SHORT}.\n\n",
            "Question: {input}",
            qa_f1,
            128,
        ),
        Task(
            "2wikimqa",
            "Answer the question based on the given passages. Only give the answer, and no other words.\n\n",
            "Question: {input}",
            qa_f1,
            32,
            _PASSAGE,
        ),
        Task(
            "musique",
            "Answer the question based on the given passages. Only give the answer, and no other words.\n\n",
            "Question: {input}",
            qa_f1,
            32,
            _PASSAGE,
        ),
        Task(
            "triviaqa",
            "Answer the question based on the given passage. Only give the answer, and no other words. "
            "These are some examples.\n\n",
            "{input}",
            qa_f1,
            32,
            r"^(?=Passage:\n)",
            first_line=True,
        ),
        Task(
            "gov_report",
            "You are given a report by a government agency. Write a one-page summary of it.\n\n",
            "Now, write a one-page summary of the report.",
            rouge_l,
            512,
        ),
        Task(
            "qmsum",
            "You are given a meeting transcript and a query. Answer the query in one or more sentences.\n\n",
            "Query: {input}",
            rouge_l,
            512,
        ),
        Task(
            "multi_news",
            "You are given several news passages. Write a one-page summary of all of them.\n\n",
            "Now, write a one-page summary of all the news.",
            rouge_l,
            512,
            _PASSAGE,
        ),
        Task(
            "passage_retrieval_en",
            "Here are 30 paragraphs from Wikipedia, and an abstract. Say which paragraph it is from.\n\n",
            "The following is an abstract.\n\n{input}\n\nAnswer with the number of the paragraph that the "
            'abstract is from, as "Paragraph 1" or "Paragraph 2".',
            retrieval,
            32,
            r"^(Paragraph \d+): ",
        ),
    )
}


def task_of(row: dict[str, object]) -> Task:
    """The task of a line.

    Raises:
        ValueError: it is none of those known here.
    """
    name = str(row["dataset"]).removesuffix("_e")
    if name not in TASKS:
        raise ValueError(f"dataset {name!r} is none of {', '.join(TASKS)}")
    return TASKS[name]
