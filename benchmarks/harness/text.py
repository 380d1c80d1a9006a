"""Real text of exact token counts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# How many places to try for a text that tokenizes back to the very tokens it was cut from.
MAX_TRIES = 500
MIN_WORDS = 60


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Any: ...
    def decode(self, token_ids: list[int]) -> Any: ...


@dataclass(frozen=True)
class Corpus:
    """Documents to make modules and questions of; ``source`` says where they are from."""

    source: str
    documents: tuple[str, ...]


def read_corpus(data: str | None) -> Corpus:
    """The passages of a JSONL file (``contexts``), or text that any machine has.

    Raises:
        ValueError: there is no text in it.
    """
    corpus = _read_jsonl(Path(data)) if data else installed_descriptions()
    if not corpus.documents:
        raise ValueError(f"{corpus.source} holds no text")
    return corpus


def _read_jsonl(path: Path) -> Corpus:
    documents: dict[str, None] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            row = json.loads(line)
            for context in row["contexts"]:
                documents[f"{context.get('title', '')} {context['text']}"] = None
    return Corpus(path.name, tuple(documents))


def installed_descriptions() -> Corpus:
    """The long descriptions of this environment's packages, prose lines only, sorted by name."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = str(distribution.metadata["Name"] or "")
        # An email message: the description is a field in old metadata, the body since.
        message: Any = distribution.metadata
        prose = _prose(str(message.get("Description") or message.get_payload() or ""))
        if len(prose.split()) >= MIN_WORDS:
            found[name.lower()] = prose
    documents = tuple(found[name] for name in sorted(found))
    return Corpus("long descriptions of the installed packages", documents)


def _prose(description: str) -> str:
    """Lines that read as sentences: no badges, links, tables, code or markup."""
    kept = []
    for line in description.splitlines():
        line = line.strip(" \t#*>-")
        letters = sum(c.isalpha() or c.isspace() for c in line)
        if (
            len(line.split()) >= 4
            and letters >= 0.85 * len(line)
            and not re.search(r"https?:|[<>|{}]|\]\(|```", line)
        ):
            kept.append(line)
    return " ".join(kept)


class TextSource:
    """Texts of exactly so many tokens, one after another from a corpus, never the same place twice.

    When the corpus is used up it begins again, one token further in, so a text still differs from those
    before. ``num_distinct_tokens`` says how much real text there is.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seed: int = 0):
        self.corpus = corpus
        self._tokenizer = tokenizer
        order = np.random.default_rng(seed).permutation(len(corpus.documents))
        words = [word for i in order for word in _printable(corpus.documents[i]).split()]
        # Word by word: pieces begin with a space and a word, so tokens never merge across their edges.
        self._ids: list[int] = list(tokenizer.encode(" " + " ".join(words), add_special_tokens=False))
        self._at = 0
        self._laps = 0

    @property
    def num_distinct_tokens(self) -> int:
        """Tokens of the whole corpus."""
        return len(self._ids)

    def take(self, num_tokens: int) -> str:
        """The next text that tokenizes, by itself, to exactly ``num_tokens`` tokens.

        Begins with a space, ends with a visible character, and has no run of white space in it.

        Raises:
            ValueError: the corpus has fewer tokens, or no such text.
        """
        if num_tokens > len(self._ids):
            raise ValueError(f"{self.corpus.source} has {len(self._ids)} tokens; {num_tokens} are needed")
        for _ in range(MAX_TRIES):
            if self._at + num_tokens > len(self._ids):
                self._laps += 1
                self._at = self._laps
            text = self._exact(self._ids[self._at : self._at + num_tokens])
            if text is not None:
                self._at += num_tokens
                return text
            self._at += 1
        raise ValueError(f"no text of exactly {num_tokens} tokens in {self.corpus.source}")

    def _exact(self, token_ids: list[int]) -> str | None:
        text = str(self._tokenizer.decode(token_ids))
        if not (text[:1] == " " and text[1:2].isalpha() and text[-1:].strip() and "  " not in text):
            return None
        return text if self.token_ids(text) == token_ids else None

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text by itself, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def _printable(text: str) -> str:
    """Without what XML, or a terminal, could not show, and with plain spaces."""
    return "".join(c if c.isprintable() else " " for c in text if c != "\ufeff")


def ragged_lengths(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` lengths that make ``total``, each up to a fifth off the mean: no whole blocks by luck."""
    mean = total / count
    weights = rng.uniform(0.8, 1.2, count) if count > 1 else np.ones(1)
    lengths: Sequence[int] = np.floor(weights / weights.sum() * mean * count).astype(int).tolist()
    lengths = list(lengths)
    for index in range(total - sum(lengths)):
        lengths[index % count] += 1
    return lengths
