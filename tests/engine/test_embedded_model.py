"""A few cases on a trained model: chat roles, scaffolds, gaps, in float32 against the oracle."""

from pathlib import Path

import pytest

from tests.engine.language import plan_named
from tests.engine.oracle import Oracle
from tests.engine.support import greedy, largest_error, serving, tokens_of

CASES = ("travel", "roles-conversation", "scaffold-whole", "parameter-short", "gap-of-thousands")
NUM_TOKENS = 12
MAX_ERROR = 1e-3


@pytest.mark.timeout(300)
def test_cold_and_warm_against_the_oracle(embedded_model: Path, oracle: Oracle) -> None:
    plans = [plan_named(name, embedded_model) for name in CASES]
    with serving(embedded_model, num_gpu_blocks_override=400, max_num_batched_tokens=512) as engine:
        for _ in range(2):
            outputs = engine.ask(plans, greedy(NUM_TOKENS, logprobs=5))
            for plan, output in zip(plans, outputs, strict=True):
                tokens, logprobs = oracle(embedded_model, plan, NUM_TOKENS)
                assert largest_error(output, logprobs) < MAX_ERROR
                assert tokens_of(output) == tokens
                assert output.num_cached_tokens == plan.num_cached_tokens
