"""Real text, cut to exact token counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from benchmarks.harness.modules import joined_ids, joined_text, make_schema, shuffled, some
from benchmarks.harness.text import Corpus, TextSource, installed_descriptions, ragged_lengths, read_corpus
from tests.byte_tokenizer import byte_tokenizer
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.pml.parser import parse_document

TEXT = "The quick brown fox, aged 12, jumps over <lazy> dogs & cats; nothing is «simple» in English prose. "


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(embedded_model)


@pytest.fixture
def source(tokenizer: Any) -> TextSource:
    words = ["".join(chr(97 + i // 26**k % 26) for k in range(3)) for i in range(6000)]
    documents = tuple(f"{TEXT} {' '.join(words[i : i + 300])}" for i in range(0, 6000, 300))
    return TextSource(Corpus("here", documents), tokenizer)


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 24, 127, 128, 1000])
def test_texts_have_exactly_so_many_tokens(source: TextSource, num_tokens: int) -> None:
    text = source.take(num_tokens)
    assert len(source.token_ids(text)) == num_tokens
    assert text[0] == " " and text.strip() == text[1:]


def test_texts_follow_each_other_and_repeat_only_after_all_of_the_corpus(source: TextSource) -> None:
    count = source.num_distinct_tokens // 100 - 2
    texts = [source.take(100) for _ in range(count)]
    assert len(set(texts)) == count
    assert [len(source.token_ids(source.take(100))) for _ in range(10)] == [100] * 10


def test_the_same_seed_gives_the_same_texts(tokenizer: Any, source: TextSource) -> None:
    again = TextSource(source.corpus, tokenizer)
    assert [source.take(50) for _ in range(5)] == [again.take(50) for _ in range(5)]


def test_a_corpus_too_small_is_refused(tokenizer: Any) -> None:
    small = TextSource(Corpus("here", ("A few words only.",)), tokenizer)
    with pytest.raises(ValueError, match="here has"):
        small.take(500)


def test_modules_laid_out_from_pml_have_the_tokens_of_the_plain_prompt(source: TextSource) -> None:
    schema = make_schema("s", 800, 8, source, np.random.default_rng(0))
    layout = build_layout(parse_document(schema.to_pml()).schemas[0], source._tokenizer, 8192)  # type: ignore[arg-type]
    assert [token for unit in layout.units for token in unit.token_ids.tolist()] == joined_ids(schema.modules)
    assert layout.num_positions == schema.num_tokens == 800


def test_tokens_do_not_merge_across_modules(source: TextSource) -> None:
    schema = make_schema("s", 500, 10, source, np.random.default_rng(0))
    assert source.token_ids(joined_text(schema.modules)) == joined_ids(schema.modules)


def test_modules_in_another_order_and_half_of_them(source: TextSource) -> None:
    rng = np.random.default_rng(0)
    modules = make_schema("s", 200, 8, source, rng).modules
    assert sorted(m.name for m in shuffled(modules, rng)) == [m.name for m in modules]
    half = some(modules, rng)
    assert len(half) == 4 and [m.name for m in half] == sorted(m.name for m in half)


@given(st.integers(1, 40), st.integers(1, 5000), st.integers(0, 99))
def test_ragged_lengths_make_the_total(count: int, extra: int, seed: int) -> None:
    total = 2 * count + extra
    lengths = ragged_lengths(total, count, np.random.default_rng(seed))
    assert sum(lengths) == total and len(lengths) == count and min(lengths) >= 1


def test_any_machine_has_enough_text() -> None:
    corpus = installed_descriptions()
    assert sum(len(document.split()) for document in corpus.documents) > 20_000
    assert not any("](" in document or "```" in document for document in corpus.documents)


def test_data_is_read_from_jsonl(tmp_path: Path) -> None:
    rows = [
        {"contexts": [{"title": "T", "text": "one"}, {"title": "U", "text": "two"}], "question": "Which?"},
        {"contexts": [{"title": "T", "text": "one"}], "question": "What?"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    corpus = read_corpus(str(path))
    assert corpus.documents == ("T one", "U two")


def test_text_keeps_out_what_xml_cannot_hold() -> None:
    text = TextSource(Corpus("here", ("a\x00b\x1b c d e f" * 20,)), byte_tokenizer())
    assert all(c.isprintable() for c in text.take(10))
