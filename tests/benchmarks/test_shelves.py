"""Documents of a question find places on shelves."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.modules import joined_ids
from benchmarks.harness.text import Corpus, TextSource
from benchmarks.speed.shelves import Shelves, place
from tests.byte_tokenizer import byte_tokenizer
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import parse_document

PAIRS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=8)


@given(PAIRS)
def test_no_shelf_is_taken_twice_and_each_document_stands_on_one_of_its_own(pairs: Any) -> None:
    placed = place(range(len(pairs)), pairs)
    assert len(set(placed.values())) == len(placed)
    assert all(shelf in pairs[document] for document, shelf in placed.items())


def test_a_document_moves_to_its_other_shelf_to_make_room() -> None:
    assert place([0, 1, 2], [(0, 1), (0, 2), (0, 0)]) == {0: 1, 1: 2, 2: 0}


@pytest.fixture
def shelves() -> Shelves:
    source = TextSource(Corpus("here", ("Some words to cut into documents. " * 200,)), byte_tokenizer())
    return Shelves.fill(source, 40, 50, 4000, 1.0, 0)


def test_questions_make_prompts_over_the_pool_s_schema(shelves: Shelves) -> None:
    tokenizer = byte_tokenizer()
    layout = build_layout(parse_document(shelves.to_pml()).schemas[0], tokenizer, 8192)
    for _ in range(30):
        question = shelves.ask()
        assert 5 <= len(question.documents) <= 10
        ask = question.to_ask("composed", 8)
        prompt = parse_document(ask.body["pml"]).prompt
        assert prompt is not None
        tail = tokenizer.encode(str(ask.prompt), add_special_tokens=False)
        plan = build_plan(layout, prompt, [(tail, "prompt")])
        plain = question.to_ask("on", 8).prompt
        assert isinstance(plain, list)
        assert plan.num_cached_tokens + plan.num_new_tokens == len(plain) == ask.num_prompt_tokens
        assert plain[: len(joined_ids(question.documents))] == joined_ids(question.documents)
    assert shelves.num_asked >= 150
    assert shelves.num_unshelved <= 10


def test_the_same_documents_every_time(shelves: Shelves) -> None:
    first, second = shelves.same(), shelves.same()
    assert first.documents == second.documents and first.text != second.text
    assert not first.unshelved
