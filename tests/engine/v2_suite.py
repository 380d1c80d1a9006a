"""What vLLM's V2 model runner has to get right, by Triton's interpreter. Cut to what that does in minutes.

Run by test_model_runner_v2.py in a process of its own, with the plugin tests/interpreted_triton.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cases import CASES, ENCODE_MODES
from tests.engine.language import plan_of
from tests.engine.long_cases import LONG_CASES
from tests.engine.oracle import Oracle
from tests.engine.plans import Plan, members, new, plan, random_tokens, simple, travel, unit
from tests.engine.support import MAX_MODEL_LEN, Engine, greedy, largest_error, serving, tokens_of
from tests.engine.test_speculation import Drafts, write_eagle
from tests.engine.test_speculation import check as check_drafted
from tests.families import FAMILIES
from vllm_promptcache.repairs.repaired import without_reuse

MAX_ERROR = 1e-3
CHOSEN = [case.with_encode(mode) for case in (*CASES[::20], *LONG_CASES[::9]) for mode in ENCODE_MODES]
SMALL_STEPS = {"max_num_batched_tokens": 37, "max_num_seqs": 16}


def runner_of(engine: Engine) -> Any:
    return engine.core.model_executor.driver_worker.worker.model_runner


def check(engine: Engine, model: Path, oracle: Oracle, prompts: list[Plan], num_tokens: int) -> None:
    """Ask cold, warm and without reuse, all prompts at once."""
    expected = [oracle(model, prompt, num_tokens) for prompt in prompts]
    plain = [without_reuse(prompt) for prompt in prompts]
    expected_plain = [oracle(model, prompt, 2) for prompt in plain]
    params = greedy(num_tokens, logprobs=2)
    answers = [engine.ask(prompts, params), engine.ask(prompts[::-1], params)[::-1]]
    for outputs in answers:
        for output, (tokens, logprobs) in zip(outputs, expected, strict=True):
            assert largest_error(output, logprobs) < MAX_ERROR
            assert tokens_of(output) == tokens
    outputs = engine.ask(plain, greedy(2, logprobs=2))
    for output, (tokens, logprobs) in zip(outputs, expected_plain, strict=True):
        assert largest_error(output, logprobs) < MAX_ERROR and tokens_of(output) == tokens


def test_the_table_of_cases(tiny_model: Path, oracle: Oracle) -> None:
    with serving(tiny_model, num_gpu_blocks_override=2000, **SMALL_STEPS) as engine:
        names = [cls.__module__ for cls in type(runner_of(engine)).__mro__]
        assert {"vllm.v1.worker.gpu.model_runner", "vllm_promptcache.engine.model_runner_v2"} <= set(names)
        check(engine, tiny_model, oracle, [plan_of(case, tiny_model) for case in CHOSEN], 5)


def test_positions_in_several_dimensions(oracle: Oracle) -> None:
    """M-RoPE's positions stand in a buffer of their own."""
    family = FAMILIES["qwen2.5-vl"]
    model = family.model()
    with serving(model, **(SMALL_STEPS | family.settings)) as engine:
        check(engine, model, oracle, [travel(), simple("a")], 4)


def test_asynchronous_steps(tiny_model: Path, oracle: Oracle) -> None:
    with serving(tiny_model, block_size=64, force_async=True, **SMALL_STEPS) as engine:
        check(engine, tiny_model, oracle, [travel(), simple("a")], 6)
        expected = tokens_of(engine.ask([travel("running")], greedy(6))[0])
        engine.forget_everything()
        name = engine.add(travel("running"), greedy(6))
        for _ in range(3):
            engine.step()
        assert engine.llm_engine.reset_prefix_cache(reset_running_requests=True)
        engine.finish()
        assert tokens_of(engine.outputs[name]) == expected


GAP = plan(unit("a", (0, 130)), new(130, 3), unit("b", (200, 330)), new(3000, 9))
# Positions run out in the midst of drafts, long before tokens do.
END = plan(unit("end", (0, 100)), new(MAX_MODEL_LEN - 15, 10))


def test_blocks_run_out(tiny_model: Path, oracle: Oracle) -> None:
    """Units give way, and requests are preempted and admitted again, while steps are in flight."""
    settings = {"num_gpu_blocks_override": 44, "max_model_len": 1280, "block_size": 32}
    prompts = [simple(name, 300, 30) for name in "abcd"] + [simple("b", 300, 300, "again")]
    for force_async in (False, True):
        with serving(tiny_model, force_async=force_async, **settings, **SMALL_STEPS) as engine:
            preempted: list[str] = []
            preempt = engine.scheduler._preempt_request

            def noted(
                request: Any, *args: Any, preempt: Any = preempt, to: Any = preempted, **more: Any
            ) -> Any:
                to.append(request.request_id)
                return preempt(request, *args, **more)

            engine.scheduler._preempt_request = noted
            names = []
            for prompt in prompts:
                names.append(engine.add(prompt, greedy(40)))
                engine.step()
            plain = engine.add(random_tokens(200, "plain").tolist(), greedy(40))
            engine.finish()
            for name, prompt in zip(names, prompts, strict=True):
                assert tokens_of(engine.outputs[name]) == oracle(tiny_model, prompt, 40)[0]
            assert len(tokens_of(engine.outputs[plain])) == 40
            assert preempted or engine.call("stats")["evictions"]


def test_what_counts_generated_tokens(tiny_model: Path, oracle: Oracle) -> None:
    """Fewest tokens are tokens; positions behind a gap are many more."""
    tokens, _ = oracle(tiny_model, GAP, 6)
    with serving(tiny_model) as engine:
        stops = [greedy(6, stop_token_ids=[tokens[3]], min_tokens=n, ignore_eos=False) for n in (2, 5)]
        early, late = (engine.ask([GAP], params)[0] for params in stops)
        assert tokens_of(early) == tokens[:4] and early.outputs[0].finish_reason == "stop"
        assert tokens_of(late)[:3] == tokens[:3] and len(tokens_of(late)) >= 5
        assert tokens[3] not in tokens_of(late)[:4]


@pytest.mark.parametrize(
    "settings", [{}, {"force_async": True}, SMALL_STEPS], ids=["once", "async", "chunks"]
)
def test_a_draft_model_that_is_the_model_itself(
    tiny_model: Path, oracle: Oracle, settings: dict[str, Any]
) -> None:
    """It drafts what the model says if, and only if, it sees what the model sees. (Triton's interpreter
    cannot run V2's n-grams.)"""
    draft = {"method": "draft_model", "model": str(tiny_model), "num_speculative_tokens": 2}
    prompts = [travel(), GAP, members(1, 2), members(2, 1)]
    with serving(tiny_model, speculative_config=draft, **settings) as engine:
        assert runner_of(engine).speculator is not None
        drafts = Drafts(engine)
        check_drafted(engine, tiny_model, oracle, prompts, 7)
        # A first token, then two rounds of two drafts and one token more.
        assert drafts.num_accepted == len(prompts) * 2 * 2 * 2
        check_drafted(engine, tiny_model, oracle, [END], 7)


def drafts_of(engine: Engine, prompt: Plan, num_tokens: int) -> list[int]:
    """All drafts that are made for an answer's tokens. The scheduler hears of their number only."""
    speculator, drafted = runner_of(engine).speculator, []
    propose = speculator.propose

    def noted(*args: Any, **kwargs: Any) -> Any:
        drafts = propose(*args, **kwargs)
        drafted.extend(drafts.flatten().tolist())
        return drafts

    speculator.propose = noted
    try:
        engine.ask([prompt], greedy(num_tokens))
    finally:
        speculator.propose = propose
    return drafted


def test_eagle(tiny_model: Path, oracle: Oracle, tmp_path: Path) -> None:
    """Drafts are those that full prefill gives, but for the state of the module's last token."""
    eagle = str(write_eagle(tiny_model, tmp_path / "eagle"))
    speculation = {"method": "eagle", "model": eagle, "num_speculative_tokens": 2}
    with serving(tiny_model, speculative_config=speculation) as engine:
        check_drafted(engine, tiny_model, oracle, [travel(), GAP, members(1, 2), END], 5)
        for prompt in (simple("x", 500), plan(unit("y", (0, 500)), new(900, 9))):
            engine.ask([prompt], greedy(1))
            drafted = [drafts_of(engine, asked, 24) for asked in (prompt, without_reuse(prompt))]
            same = sum(a == b for a, b in zip(*drafted, strict=True))
            assert same >= 0.9 * len(drafted[0]), drafted
