"""Questions over a pool: the same tokens composed and plain, in the order in which documents were found."""

import pytest

from benchmarks.harness.modules import joined_ids
from benchmarks.harness.text import Corpus, TextSource
from benchmarks.speed.pool import Pool
from tests.byte_tokenizer import byte_tokenizer
from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import parse_document


@pytest.fixture
def pool() -> Pool:
    source = TextSource(Corpus("here", ("Some words to cut into documents. " * 200,)), byte_tokenizer())
    return Pool.fill(source, 40, 50, 1.0, 0)


def test_questions_make_prompts_over_the_pool(pool: Pool) -> None:
    tokenizer = byte_tokenizer()
    layout = build_layout(parse_document(pool.to_pml()).schemas[0], tokenizer, 8192)
    orders = set()
    for _ in range(30):
        question = pool.ask()
        assert 5 <= len(question.documents) <= 10
        ask = question.to_ask("composed", 8)
        prompt = parse_document(ask.body["pml"]).prompt
        assert prompt is not None
        tail = tokenizer.encode(str(ask.prompt), add_special_tokens=False)
        plan = build_plan(layout, prompt, [(tail, "prompt")])
        plain = question.to_ask("on", 8).prompt
        assert plain_tokens(plan)[0].tolist() == plain
        assert plan.num_cached_tokens == len(joined_ids(question.documents))
        assert ask.num_prompt_tokens == len(plain)
        orders.add(tuple(document.name for document in question.documents))
    assert any(list(order) != sorted(order) for order in orders)


def test_the_same_documents_every_time(pool: Pool) -> None:
    first, second = pool.same(), pool.same()
    assert first.documents == second.documents and first.text != second.text
