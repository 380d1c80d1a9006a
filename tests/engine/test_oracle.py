"""The table of schemas and prompts, served and held against the oracle.

Every case is served in both encode modes, cold and warm, with all other cases in the same batch, on
engines whose block and chunk lengths cut through the prompts in different places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm.outputs import RequestOutput

from tests.cases import CASES, ENCODE_MODES
from tests.engine.language import plan_of
from tests.engine.long_cases import LONG_CASES
from tests.engine.oracle import Oracle
from tests.engine.plans import placements_of
from tests.engine.support import greedy, largest_error, serving, tokens_of, tokens_of_modules
from tests.pool_cases import POOL_CASES
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.repairs.repaired import without_reuse

MAX_ERROR = 1e-3
ALL = (*CASES, *LONG_CASES, *POOL_CASES)
NUM_TOKENS = 32
NUM_PLAIN_TOKENS = 4
ALL_CASES = [case.with_encode(mode) for case in ALL for mode in ENCODE_MODES]
IDS = [f"{case.name}-{mode}" for case in ALL for mode in ENCODE_MODES]

# Block size, tokens a step at most, requests a step at most.
ENGINES = [(32, 2048, 64), (32, 37, 16), (64, 2048, 3), (64, 101, 64), (128, 2048, 64), (128, 53, 8)]


@dataclass
class Answers:
    """What one engine said to every case: at first, once more, and without any reuse."""

    cold: list[RequestOutput]
    warm: list[RequestOutput]
    plain: list[RequestOutput]
    num_encodings: int


@pytest.fixture(scope="module")
def plans(tiny_model: Path) -> list[Plan]:
    return [plan_of(case, tiny_model) for case in ALL_CASES]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: f"blocks-{e[0]}-chunks-{e[1]}")
def answers(request: pytest.FixtureRequest, tiny_model: Path, plans: list[Plan]) -> Answers:
    block_size, num_batched_tokens, num_seqs = request.param
    with serving(
        tiny_model,
        block_size=block_size,
        max_num_batched_tokens=num_batched_tokens,
        max_num_seqs=num_seqs,
        num_gpu_blocks_override=64_000 // block_size,
    ) as engine:
        params = greedy(NUM_TOKENS, logprobs=5)
        cold = engine.ask(plans, params)
        num_encodings = len(engine.encoded)
        warm = engine.ask(reversed(plans), params)[::-1]
        plain = engine.ask([without_reuse(p) for p in plans], greedy(NUM_PLAIN_TOKENS, logprobs=5))
        assert len(engine.encoded) == num_encodings
    return Answers(cold, warm, plain, num_encodings)


@pytest.mark.parametrize("index", range(len(ALL_CASES)), ids=IDS)
def test_case(answers: Answers, plans: list[Plan], tiny_model: Path, oracle: Oracle, index: int) -> None:
    plan = plans[index]
    tokens, logprobs = oracle(tiny_model, plan, NUM_TOKENS)
    for output in (answers.cold[index], answers.warm[index]):
        assert largest_error(output, logprobs) < MAX_ERROR
        assert tokens_of(output) == tokens
        assert tokens_of_modules(output) == plan.num_cached_tokens
    plain_tokens, plain_logprobs = oracle(tiny_model, without_reuse(plan), NUM_PLAIN_TOKENS)
    assert largest_error(answers.plain[index], plain_logprobs) < MAX_ERROR
    assert tokens_of(answers.plain[index]) == plain_tokens
    assert tokens_of_modules(answers.plain[index]) == 0


def test_each_unit_was_encoded_once(answers: Answers, plans: list[Plan]) -> None:
    assert answers.num_encodings == len({placement for plan in plans for placement in placements_of(plan)})
