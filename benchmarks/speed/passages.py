"""Passages, questions, and which passages a question is asked over: found by BM25, in its ranking."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.text import installed_descriptions

FEWEST, MOST = 5, 10
# Passages that are cut out of texts without any, and the words of one of their questions.
WORDS_A_PASSAGE, WORDS_A_QUESTION = 120, 12


@dataclass(frozen=True)
class Found:
    """A question, and the passages it is asked over in the order of their ranking."""

    question: str
    passages: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """Passages, each once, and questions; ``source`` says where they are from."""

    source: str
    passages: tuple[str, ...]
    questions: tuple[str, ...]

    @classmethod
    def read(cls, path: Path | None, num_passages: int | None = None, seed: int = 0) -> Library:
        """Passages and questions of a JSONL file, or of those in a folder (``contexts``, ``question``);
        for None, of the installed packages' descriptions, in pieces, asked about by a few of their words.

        Of more passages than ``num_passages`` so many are drawn with the seed.

        Raises:
            ValueError: there are too few passages.
        """
        library = cls._of_packages() if path is None else cls._of_files(path)
        if num_passages is not None and num_passages < len(library.passages):
            drawn = np.random.default_rng(seed).choice(len(library.passages), num_passages, replace=False)
            library = replace(library, passages=tuple(library.passages[i] for i in sorted(drawn.tolist())))
        if len(library.passages) < MOST or not library.questions:
            raise ValueError(f"{library.source} holds no {MOST} passages and a question")
        return library

    @classmethod
    def _of_files(cls, path: Path) -> Library:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        passages: dict[str, None] = {}
        questions: dict[str, None] = {}
        for file in files:
            for line in filter(str.strip, file.read_text(encoding="utf-8").splitlines()):
                row = json.loads(line)
                passages |= dict.fromkeys(map(_passage_text, row["contexts"]))
                questions[str(row["question"])] = None
        return cls(", ".join(file.name for file in files), tuple(passages), tuple(questions))

    @classmethod
    def _of_packages(cls) -> Library:
        corpus = installed_descriptions()
        passages: dict[str, None] = {}
        questions: dict[str, None] = {}
        for document in corpus.documents:
            words = document.split()
            for start in range(0, len(words), WORDS_A_PASSAGE):
                piece = words[start : start + WORDS_A_PASSAGE]
                passages[" ".join(piece)] = None
                if len(piece) == WORDS_A_PASSAGE:
                    questions[f"What is said of {' '.join(piece[40 : 40 + WORDS_A_QUESTION])}?"] = None
        return cls(corpus.source, tuple(passages), tuple(questions))

    def find(self, num_questions: int, seed: int) -> list[Found]:
        """Questions in an order of the seed, each with its best five to ten passages."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.questions))[:num_questions]
        questions = [self.questions[i] for i in order]
        counts = rng.integers(FEWEST, MOST + 1, len(questions))
        rankings = rank(self.passages, questions, MOST)
        return [
            Found(question, tuple(self.passages[i] for i in ranking[:count]))
            for question, ranking, count in zip(questions, rankings, counts, strict=True)
        ]


def rank(passages: Sequence[str], questions: Sequence[str], count: int) -> list[list[int]]:
    """The indices of each question's best passages, the best one first, by BM25.

    In a process of its own: bm25s loads numba, and vLLM cannot start an engine on CPUs where that is loaded
    (``vllm.triton_utils.dispatcher`` looks into every module, llvmlite's among them).
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_rank, list(passages), list(questions), count).result()


def _rank(passages: list[str], questions: list[str], count: int) -> list[list[int]]:
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(questions, return_ids=False, show_progress=False)
    found, _ = index.retrieve(asked, k=count, show_progress=False)
    return [list(map(int, row)) for row in found]


def _passage_text(context: dict[str, Any]) -> str:
    title, text = str(context.get("title", "")), str(context["text"])
    return re.sub(r"\s+", " ", f"{title}. {text}" if title else text).strip()
