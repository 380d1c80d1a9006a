"""Settings of vLLM that the prompt cache has to get along with, each with one engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.oracle import Oracle
from tests.engine.plans import new, plan, random_tokens, simple, travel, unit
from tests.engine.support import (
    Engine,
    SharedEngine,
    close_all,
    greedy,
    largest_error,
    serving,
    tokens_of,
    tokens_of_modules,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "no-prefix-caching": {"enable_prefix_caching": False},
    "asynchronous": {"force_async": True},
    "asynchronous-chunks": {"force_async": True, "max_num_batched_tokens": 47, "max_num_seqs": 16},
    "priorities": {"scheduling_policy": "priority"},
    "compiled": {"enforce_eager": False},
    "long-prefills-in-parts": {"long_prefill_token_threshold": 100},
    "blocks-of-96": {"block_size": 96},
    "blocks-of-256": {"block_size": 256},
}


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS.keys())
def shared_engine(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[SharedEngine]:
    yield SharedEngine(tiny_model, **request.param)
    close_all()


def test_composed_and_plain_requests(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompts = [
        travel(),
        simple("a"),
        plan(unit("a", (0, 130)), new(130, 3), unit("b", (200, 330)), new(400, 9)),
    ]
    plain = random_tokens(300, "plain").tolist()
    (expected,) = engine.ask([plain])
    for _ in range(2):
        names = [engine.add(prompt, greedy(12, logprobs=2)) for prompt in prompts]
        plain_name = engine.add(plain)
        engine.finish()
        for name, prompt in zip(names, prompts, strict=True):
            tokens, logprobs = oracle(tiny_model, prompt, 12)
            assert tokens_of(engine.outputs[name]) == tokens
            assert largest_error(engine.outputs[name], logprobs) < 1e-3
            assert tokens_of_modules(engine.outputs[name]) == prompt.num_cached_tokens
        assert tokens_of(engine.outputs[plain_name]) == tokens_of(expected)


def test_a_rush_in_small_steps(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompts = [travel(f"rush {i % 3}") for i in range(9)]
    names = []
    for prompt in prompts:
        names.append(engine.add(prompt, greedy(8)))
        engine.step()
    engine.finish()
    for name, prompt in zip(names, prompts, strict=True):
        assert tokens_of(engine.outputs[name]) == oracle(tiny_model, prompt, 8)[0]
    assert len(engine.encoded) == len(set(engine.encoded)) == 15


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5])
def test_a_reset_while_everything_runs(engine: Engine, num_steps: int) -> None:
    prompts = [simple("running", 2500), simple("running", 2500, question="b"), travel("now")]
    expected = [tokens_of(o) for o in engine.ask(prompts, greedy(6))]
    engine.forget_everything()
    names = [engine.add(p, greedy(6)) for p in prompts]
    for _ in range(num_steps):
        engine.step()
    assert engine.llm_engine.reset_prefix_cache(reset_running_requests=True)
    engine.check()
    engine.finish()
    assert [tokens_of(engine.outputs[name]) for name in names] == expected


def test_priorities_order_requests_and_their_modules(tiny_model: Path) -> None:
    """Modules are encoded in the order of those who wait for them."""
    with serving(tiny_model, scheduling_policy="priority", max_num_seqs=1) as engine:
        late = [engine.add(simple(f"late {i}"), priority=5) for i in range(3)]
        urgent = engine.add(simple("urgent"), priority=0)
        finished: list[str] = []
        while len(finished) < 4:
            finished += [output.request_id for output in engine.step()]
        assert finished == [urgent, *late]


def test_a_module_is_encoded_for_the_most_urgent_who_waits_for_it(tiny_model: Path) -> None:
    with serving(tiny_model, scheduling_policy="priority", max_num_seqs=1) as engine:
        running = engine.add(random_tokens(20, "running").tolist(), greedy(12), priority=0)
        engine.step()
        late = engine.add(simple("shared"), priority=5)
        middle = engine.add(simple("middle"), priority=3)
        urgent = engine.add(simple("shared", question="urgent"), priority=1)
        finished: list[str] = []
        while len(finished) < 4:
            finished += [output.request_id for output in engine.step()]
        assert finished == [running, urgent, middle, late]


def test_under_priorities_nobody_waits_for_blocks_of_those_behind(tiny_model: Path) -> None:
    """The urgent request finds the blocks taken by a module that a less urgent one waits with."""
    settings = {"num_gpu_blocks_override": 41, "max_model_len": 1024, "max_num_batched_tokens": 256}
    with serving(tiny_model, scheduling_policy="priority", **settings) as engine:
        composed = simple("idle", 390, 300)
        engine.ask([composed], greedy(4))
        running = engine.add(random_tokens(600, "running").tolist(), greedy(30), priority=0)
        while not engine.scheduler.running or engine.scheduler.running[0].num_output_tokens == 0:
            engine.step()
        late = engine.add(composed, greedy(4), priority=5)
        urgent = engine.add(random_tokens(920, "urgent").tolist(), greedy(4), priority=1)
        engine.finish()
        for name in (running, urgent, late):
            assert engine.outputs[name].outputs[0].finish_reason == "length"
