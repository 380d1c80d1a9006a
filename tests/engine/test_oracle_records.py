"""The table of schemas and prompts once more, with every unit loaded from a record.

What was encoded gives way, and comes back at its own place and at others without a forward pass of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm.outputs import RequestOutput

from tests.cases import CASES, ENCODE_MODES
from tests.engine.language import plan_of
from tests.engine.oracle import Oracle
from tests.engine.plans import placements_of
from tests.engine.support import greedy, largest_error, report_of, serving, tokens_of, tokens_of_modules
from tests.pool_cases import POOL_CASES
from vllm_promptcache.contract.plan import Plan

MAX_ERROR = 1e-3
NUM_TOKENS = 8
TABLE = (*CASES, *POOL_CASES)
ALL_CASES = [case.with_encode(mode) for case in TABLE for mode in ENCODE_MODES]
IDS = [f"{case.name}-{mode}" for case in TABLE for mode in ENCODE_MODES]

# Block size, tokens a step at most, requests a step at most.
ENGINES = [(32, 37, 16), (64, 2048, 64), (128, 101, 64)]


@dataclass
class Answers:
    """What one engine said to every case when its units had given way, and what it encoded and loaded."""

    loaded: list[RequestOutput]
    encoded_digests: list[str]
    encoded_again: int


@pytest.fixture(scope="module")
def plans(tiny_model: Path) -> list[Plan]:
    return [plan_of(case, tiny_model) for case in ALL_CASES]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: f"blocks-{e[0]}-chunks-{e[1]}")
def answers(request: pytest.FixtureRequest, tiny_model: Path, plans: list[Plan]) -> Answers:
    block_size, num_batched_tokens, num_seqs = request.param
    with serving(
        tiny_model,
        prompt_cache={"host_gib": 1.0},
        block_size=block_size,
        max_num_batched_tokens=num_batched_tokens,
        max_num_seqs=num_seqs,
        num_gpu_blocks_override=64_000 // block_size,
    ) as engine:
        engine.ask(plans, greedy(1))
        encoded = [key.digest for key in engine.encoded]
        engine.reclaim_all()
        loaded = engine.ask(reversed(plans), greedy(NUM_TOKENS, logprobs=5))[::-1]
        return Answers(loaded, encoded, len(engine.encoded) - len(encoded))


@pytest.mark.parametrize("index", range(len(ALL_CASES)), ids=IDS)
def test_case(answers: Answers, plans: list[Plan], tiny_model: Path, oracle: Oracle, index: int) -> None:
    output = answers.loaded[index]
    tokens, logprobs = oracle(tiny_model, plans[index], NUM_TOKENS)
    assert largest_error(output, logprobs) < MAX_ERROR
    assert tokens_of(output) == tokens
    assert tokens_of_modules(output) == plans[index].num_cached_tokens
    assert report_of(output)["modules_encoded"] == 0


def test_each_text_was_encoded_once_and_never_again(answers: Answers, plans: list[Plan]) -> None:
    assert answers.encoded_again == 0
    assert sorted(answers.encoded_digests) == sorted(
        {placement.digest for plan in plans for placement in placements_of(plan)}
    )
