"""A few cases on a trained model: chat roles, scaffolds, gaps, in float32 against the oracle."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.language import plan_named, tokenizer_of
from tests.engine.oracle import Oracle
from tests.engine.support import Engine, greedy, largest_error, serving, tokens_of
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.build import build_chat
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.repairs.repaired import repaired

CASES = ("travel", "roles-conversation", "scaffold-whole", "parameter-short", "gap-of-thousands")
NUM_TOKENS = 12
MAX_ERROR = 1e-3
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def engine(embedded_model: Path) -> Iterator[Engine]:
    with serving(embedded_model, num_gpu_blocks_override=400, max_num_batched_tokens=512) as engine:
        yield engine


@pytest.mark.timeout(300)
def test_cold_and_warm_against_the_oracle(embedded_model: Path, oracle: Oracle, engine: Engine) -> None:
    plans = [plan_named(name, embedded_model) for name in CASES]
    for is_warm in (False, True):
        outputs = engine.ask(plans, greedy(NUM_TOKENS, logprobs=5))
        for plan, output in zip(plans, outputs, strict=True):
            tokens, logprobs = oracle(embedded_model, plan, NUM_TOKENS)
            assert largest_error(output, logprobs) < MAX_ERROR
            assert tokens_of(output) == tokens
            assert not is_warm or output.num_cached_tokens >= plan.num_cached_tokens


@pytest.mark.timeout(300)
def test_the_readme_s_example_is_answered_right_by_default(embedded_model: Path, engine: Engine) -> None:
    """The best season for the Alps is from June to September."""
    (schema,) = re.findall(r"^<schema.*?^</schema>", README, re.S | re.M)
    pml = re.findall(r'"pml": "(<prompt.*?</prompt>)"', README)[0]
    encoder = TextEncoder(tokenizer_of(embedded_model))
    layout = build_layout(parse_document(schema).schemas[0], encoder, 2048)
    prompt = parse_document(pml).prompt
    assert prompt is not None
    asked = Turns([{"role": "user", "content": "When should we travel?"}])
    plan = build_chat(layout, resolve_prompt(layout, prompt, IssueList()), asked)
    (output,) = engine.ask([repaired(plan, PromptCacheConfig().repair)], greedy(24))
    assert "June to September" in encoder.decode(tokens_of(output))
