"""Questions over passages: reading, splitting into parts, and the order in which they are asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

from benchmarks.quality.longbench import Task, task_of

TUNE, REPORT = "tune", "report"
# How many passages that a prompt leaves out stand among its own.
LEFT_OUT = ("none", "one", "half")
# Questions over the same passages that are asked together: their modules are encoded once.
RUN_OF_QUESTIONS = 8


@dataclass(frozen=True)
class Passage:
    """A passage with its title."""

    title: str
    text: str


LeftOut = tuple[tuple[int, Passage], ...]


@dataclass(frozen=True)
class Question:
    """A question over passages; any of ``answers`` is right, the first one is the gold answer.

    ``left_out`` are passages that the schema holds and the prompt does not include, each with the number of
    the passage that it stands before. ``filed`` are the passages in the order of the file,
    if that is another. ``task`` is LongBench's, if the question is.
    """

    id: str
    passages: tuple[Passage, ...]
    question: str
    answers: tuple[str, ...]
    left_out: LeftOut = ()
    filed: tuple[Passage, ...] = ()
    task: Task | None = None

    @property
    def passages_digest(self) -> str:
        """The same for questions over the same passages, whatever order they are asked over."""
        filed = self.filed or self.passages
        return sha256(json.dumps([[p.title, p.text] for p in filed]).encode()).hexdigest()

    @property
    def part(self) -> str:
        """``tune`` or ``report``.

        By the passages, not the question: what is chosen on one part has seen no passage of the other.
        """
        return REPORT if int(self.passages_digest[:8], 16) % 2 else TUNE


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSONL file: ``id``, ``contexts`` (``title``, ``text``), ``question``, ``answers``;
    or of one of LongBench's: ``_id``, ``context``, ``input``, ``answers``, ``dataset``.

    Passages, but for pieces of one text, are shuffled by the question's ID: files have their first questions
    answered in the first passage, which is encoded in sight of all that is before it.

    Raises:
        ValueError: a line is no such question, or there is none.
    """
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                question = _longbench_question(row) if "context" in row else _question(row)
                in_order = question.task is not None and question.task.split is None
                questions.append(question if in_order else shuffled(question))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: no question over passages: {error!r}") from error
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def _question(row: dict[str, object]) -> Question:
    contexts, answers = row["contexts"], row["answers"]
    if not isinstance(contexts, list) or not isinstance(answers, list) or not contexts or not answers:
        raise ValueError("contexts and answers must be lists that hold something")
    passages = tuple(Passage(str(c.get("title", "")), str(c["text"])) for c in contexts)
    return Question(str(row["id"]), passages, str(row["question"]), tuple(map(str, answers)))


def _longbench_question(row: dict[str, object]) -> Question:
    task, answers = task_of(row), row["answers"]
    if not isinstance(answers, list) or not answers:
        raise ValueError("answers must be a list that holds something")
    passages = tuple(Passage(title, text) for title, text in task.passages(str(row["context"])))
    asked = task.ask.format(input=row["input"])
    return Question(str(row["_id"]), passages, asked, tuple(map(str, answers)), task=task)


def shuffled(question: Question) -> Question:
    """The question over the same passages in an order of its own, always the same."""
    passages = list(question.passages)
    random.Random(question.id).shuffle(passages)
    return replace(question, passages=tuple(passages), filed=question.filed or question.passages)


def select(
    questions: Sequence[Question], part: str | None = None, span: tuple[int, int] | None = None
) -> list[Question]:
    """The questions of a part (all for None), in the order of asking, and of those a half-open range."""
    asked = in_order([q for q in questions if part is None or q.part == part])
    return asked if span is None else asked[slice(*span)]


def among_others(questions: Sequence[Question], others: Sequence[Question], share: str) -> list[Question]:
    """The questions over schemas that also hold passages of another question, which prompts leave out.

    ``share`` is ``none``, ``one`` (before the passage in the middle) or ``half`` (before every passage).
    """
    return (
        [_among_others(question, others, share) for question in questions]
        if share != "none"
        else [*questions]
    )


def _among_others(question: Question, others: Sequence[Question], share: str) -> Question:
    own = set(question.passages)
    # The next question in the file that shares none of the passages.
    at = next((n for n, other in enumerate(others) if other.id == question.id), 0)
    other = next(o for o in (*others[at:], *others[:at]) if not own & set(o.passages))
    count = len(question.passages)
    places = [count // 2] if share == "one" else range(count)
    left_out = tuple((place, other.passages[place % len(other.passages)]) for place in places)
    return replace(question, left_out=left_out)


def in_order(questions: Iterable[Question], run: int = RUN_OF_QUESTIONS) -> list[Question]:
    """Runs of questions over the same passages, all sets of passages in turn.

    A run that ends early has seen as many sets of passages as it could.
    """
    sets: dict[str, list[Question]] = {}
    for question in questions:
        sets.setdefault(question.passages_digest, []).append(question)
    left = [iter(of_set) for of_set in sets.values()]
    ordered: list[Question] = []
    while left:
        taken = [list(islice(questions_left, run)) for questions_left in left]
        left = [rest for rest, some in zip(left, taken, strict=True) if some]
        ordered += [question for some in taken for question in some]
    return ordered


def chunks(questions: Sequence[Question], most: int) -> list[list[Question]]:
    """Consecutive questions that are asked at once."""
    return [list(questions[start : start + most]) for start in range(0, len(questions), most)]


def read_span(text: str) -> tuple[int, int]:
    """``10:30``, or ``30`` for the first 30.

    Raises:
        ValueError: it is neither.
    """
    first, colon, last = text.rpartition(":")
    span = (int(first or 0) if colon else 0, int(last))
    if not 0 <= span[0] < span[1]:
        raise ValueError(f"{text!r} is no range A:B")
    return span
