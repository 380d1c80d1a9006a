"""A pool of documents, and questions that need a few of them in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness.ask import Ask
from benchmarks.harness.modules import Module, joined_ids, make_module
from benchmarks.harness.text import TextSource

FEWEST, MOST = 5, 10
NUM_QUESTION_TOKENS = (16, 32)
SCHEMA, ELEMENT = "documents", "found"


@dataclass(frozen=True)
class Question:
    """Documents in the order in which they were found, and new text."""

    documents: tuple[Module, ...]
    text: str
    text_ids: tuple[int, ...]

    def to_ask(self, way: str, num_answer_tokens: int) -> Ask:
        """The request: composed, or the same tokens plain."""
        plain = [*joined_ids(self.documents), *self.text_ids]
        if way != "composed":
            return Ask(plain, len(plain), num_answer_tokens)
        members = "".join(f"<{document.name}/>" for document in self.documents)
        pml = f'<prompt schema="{SCHEMA}"><{ELEMENT}>{members}</{ELEMENT}></prompt>'
        return Ask(self.text, len(plain), num_answer_tokens, {"pml": pml})


class Pool:
    """A pool of documents; questions are drawn from it with a generator of its own."""

    def __init__(self, documents: Sequence[Module], source: TextSource, zipf: float, seed: int):
        self.documents = list(documents)
        self.zipf = zipf
        self._source = source
        self._rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, len(documents) + 1) ** zipf
        self._weights = self._rng.permutation(weights / weights.sum())

    @classmethod
    def fill(cls, source: TextSource, num_documents: int, mean_tokens: int, zipf: float, seed: int) -> Pool:
        """A pool of the next texts of a source, each up to a fifth off the mean length."""
        rng = np.random.default_rng(seed)
        lengths = rng.integers(int(mean_tokens * 0.8), int(mean_tokens * 1.2) + 1, num_documents)
        documents = [make_module(f"d{i}", int(n), source) for i, n in enumerate(lengths)]
        return cls(documents, source, zipf, seed)

    def describe(self) -> dict[str, Any]:
        """What the pool is."""
        return {
            "documents": len(self.documents),
            "document_tokens": round(float(np.mean([len(d.token_ids) for d in self.documents]))),
            "zipf": self.zipf,
            "documents_a_question": f"{FEWEST} to {MOST}",
            "same_tokens": sum(len(self.documents[i].token_ids) for i in self._same),
        }

    def to_pml(self) -> str:
        """The schema: nothing but the pool."""
        members = "".join(document.to_pml() for document in self.documents)
        return f'<schema name="{SCHEMA}"><pool name="{ELEMENT}">{members}</pool></schema>'

    def ask(self) -> Question:
        """A question over five to ten documents."""
        count = int(self._rng.integers(FEWEST, MOST + 1))
        return self._question(
            self._rng.choice(len(self.documents), count, replace=False, p=self._weights).tolist()
        )

    def same(self) -> Question:
        """A question over the same documents as always, in the same order."""
        return self._question(list(self._same))

    @property
    def _same(self) -> range:
        return range(min((FEWEST + MOST) // 2 + 1, len(self.documents)))

    def _question(self, chosen: list[int]) -> Question:
        text = self._source.take(int(self._rng.integers(*NUM_QUESTION_TOKENS)))
        documents = tuple(self.documents[i] for i in chosen)
        return Question(documents, text, tuple(self._source.token_ids(text)))
