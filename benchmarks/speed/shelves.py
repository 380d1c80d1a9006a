"""A pool of documents in a schema, and questions that need a few of them in any order.

In Prompt Cache a module has one place. A pool larger than the model's positions is therefore put on
*shelves*: unions side by side, each with room for one document of a prompt. Each document is a member of
two of them, so that five to ten documents nearly always find places together (cuckoo hashing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from benchmarks.harness.ask import Ask
from benchmarks.harness.modules import Module, joined_ids, make_module, prompt_pml
from benchmarks.harness.text import TextSource

FEWEST, MOST = 5, 10
NUM_SHELVES = 16
NUM_QUESTION_TOKENS = (16, 32)


@dataclass(frozen=True)
class Question:
    """Documents in the order in which they were found, where they are on shelves, and new text."""

    documents: tuple[Module, ...]
    elements: tuple[str, ...]
    unshelved: tuple[Module, ...]
    text: str
    text_ids: tuple[int, ...]
    schema: str

    def to_ask(self, way: str, num_answer_tokens: int) -> Ask:
        """The request: composed, or the same tokens plain."""
        plain = [*joined_ids(self.documents), *self.text_ids]
        if way != "composed":
            return Ask(plain, len(plain), num_answer_tokens)
        new = "".join(m.text for m in self.unshelved) + self.text
        return Ask(new, len(plain), num_answer_tokens, {"pml": prompt_pml(self.schema, self.elements)})


class Shelves:
    """A pool of documents; questions are drawn from it with a generator of its own."""

    name = "shelves"

    def __init__(
        self, documents: Sequence[Module], num_shelves: int, source: TextSource, zipf: float, seed: int
    ):
        self.documents = list(documents)
        self.num_shelves = num_shelves
        self.zipf = zipf
        self._source = source
        self._rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, len(documents) + 1) ** zipf
        self._weights = self._rng.permutation(weights / weights.sum())
        second = self._rng.integers(1, num_shelves, len(documents))
        # Two different shelves for each document, equally full.
        self.shelves_of = [(i % num_shelves, (i + int(s)) % num_shelves) for i, s in enumerate(second)]
        # Documents of questions so far, and those that found both their shelves taken.
        self.num_asked = self.num_unshelved = 0

    @classmethod
    def fill(
        cls,
        source: TextSource,
        num_documents: int,
        mean_tokens: int,
        most_tokens: int,
        zipf: float,
        seed: int,
    ) -> Shelves:
        """A pool of the next texts of a source, each up to a fifth off the mean length."""
        rng = np.random.default_rng(seed)
        longest = int(mean_tokens * 1.2)
        lengths = rng.integers(int(mean_tokens * 0.8), longest + 1, num_documents)
        documents = [make_module(f"d{i}", int(n), source) for i, n in enumerate(lengths)]
        return cls(documents, min(NUM_SHELVES, most_tokens // longest), source, zipf, seed)

    def describe(self) -> dict[str, Any]:
        """What the pool is."""
        return {
            "documents": len(self.documents),
            "document_tokens": round(float(np.mean([len(d.token_ids) for d in self.documents]))),
            "shelves": self.num_shelves,
            "zipf": self.zipf,
            "documents_a_question": f"{FEWEST} to {MOST}",
            "same_tokens": sum(len(self.documents[i].token_ids) for i in self._same),
        }

    def to_pml(self) -> str:
        """The schema: a union a shelf."""
        unions = []
        for shelf in range(self.num_shelves):
            members = (
                f'<module name="{d.name}s{shelf}">{escape(d.text)}</module>'
                for d, shelves in zip(self.documents, self.shelves_of, strict=True)
                if shelf in shelves
            )
            unions.append(f"<union>{''.join(members)}</union>")
        return f'<schema name="{self.name}">{"".join(unions)}</schema>'

    def ask(self) -> Question:
        """A question over five to ten documents."""
        count = int(self._rng.integers(FEWEST, MOST + 1))
        chosen = self._rng.choice(len(self.documents), count, replace=False, p=self._weights).tolist()
        return self._question(chosen)

    def same(self) -> Question:
        """A question over the same documents as always, in the order of their shelves."""
        return self._question(list(self._same))

    @property
    def _same(self) -> range:
        return range(min((FEWEST + MOST) // 2 + 1, self.num_shelves))

    def _question(self, chosen: list[int]) -> Question:
        placed = place(chosen, self.shelves_of)
        self.num_asked += len(chosen)
        self.num_unshelved += len(chosen) - len(placed)
        text = self._source.take(int(self._rng.integers(*NUM_QUESTION_TOKENS)))
        return Question(
            tuple(self.documents[i] for i in chosen),
            tuple(f"{self.documents[i].name}s{shelf}" for i, shelf in placed.items()),
            tuple(self.documents[i] for i in chosen if i not in placed),
            text,
            tuple(self._source.token_ids(text)),
            self.name,
        )


def place(chosen: Sequence[int], shelves_of: Sequence[tuple[int, int]]) -> dict[int, int]:
    """A shelf for as many of the chosen documents as possible: bipartite matching, in order."""
    on_shelf: dict[int, int] = {}

    def put(document: int, tried: set[int]) -> bool:
        for shelf in shelves_of[document]:
            if shelf in tried:
                continue
            tried.add(shelf)
            if shelf not in on_shelf or put(on_shelf[shelf], tried):
                on_shelf[shelf] = document
                return True
        return False

    for document in chosen:
        put(document, set())
    return {document: shelf for shelf, document in on_shelf.items()}
