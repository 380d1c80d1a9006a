"""Thousands of random operations on an engine with few blocks: nothing is lost, answers stay the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.plans import new, plan, random_tokens, unit
from tests.engine.support import Engine, greedy, serving, tokens_of
from vllm_promptcache.blocks.wire import plan_to_wire, prompt_token_ids, units_to_wire
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.unit import Unit

NUM_OPERATIONS = 2000
MAX_UNFINISHED = 24
MAX_TOKENS = 12
OPERATIONS = {
    "ask": 30,
    "ask_plain": 12,
    "step": 38,
    "abort": 8,
    "define": 3,
    "forget": 3,
    "pin": 2,
    "unpin": 2,
    "warm": 1,
    "reset": 1,
    "ask_nonsense": 1,
}


def schemas() -> list[list[Unit]]:
    """Three schemas: ragged and whole modules in a common context, and two with one module in common."""
    root = unit("root", (0, 40), (600, 610))
    first = [root]
    for i in range(4):
        start = 40 + 140 * i
        hole = (start + 4, start + 7)
        first.append(unit(f"a{i}", (start, start + 32 + 67 * i % 97), context=[root], holes=[hole]))
    common = unit("common", (0, 64))
    second = [common, unit("b0", (64, 220)), unit("b1", (220, 221)), unit("b2", (230, 358))]
    third = [common, unit("c0", (70, 103), context=[common]), unit("c1", (110, 301), context=[common])]
    return [first, second, third]


def prompts(of: list[list[Unit]]) -> list[Plan]:
    """Some prompts over each schema, with new text at the end and in gaps."""
    found = []
    randomly = random.Random(1)
    for units in of:
        for index in range(6):
            root, *others = units
            chosen = [u for u in others if randomly.random() < 0.6]
            end = max(int(u.position_ids[-1]) + 1 for u in [root, *chosen])
            parts: list[Any] = [root, *chosen, new(end, randomly.randrange(1, 60), str(index))]
            taken = {
                int(p) for u in [root, *chosen] for p, k in zip(u.position_ids, u.kept, strict=True) if k
            }
            gap = next((p for p in range(5, end) if not taken & set(range(p, p + 3))), None)
            if gap is not None:
                parts.append(new(gap, 3, str(index)))
            found.append(plan(*parts))
    return found


class Stress:
    """Random operations, and what is expected of them."""

    def __init__(self, engine: Engine, seed: int):
        self.engine, self.random = engine, random.Random(seed)
        self.schemas = schemas()
        self.plans = prompts(self.schemas)
        self.plain = [random_tokens(30 + 50 * i, f"plain {i}").tolist() for i in range(8)]
        self.expected = {
            index: tokens_of(engine.ask([prompt], greedy(MAX_TOKENS))[0])
            for index, prompt in enumerate([*self.plans, *self.plain])
        }
        assert all(len(tokens) == MAX_TOKENS for tokens in self.expected.values())
        self.defined = [0] * len(self.schemas)
        self.asked: dict[str, int | None] = {}
        self.num_finished = self.num_aborted = 0

    def run(self, num_operations: int) -> None:
        names, weights = list(OPERATIONS), list(OPERATIONS.values())
        for number in range(num_operations):
            (operation,) = self.random.choices(names, weights)
            getattr(self, operation)()
            while len(self.asked) > MAX_UNFINISHED:
                self.step()
            if number % 5 == 0:
                self.engine.check()

    def end(self) -> None:
        self.engine.finish()
        self.look_at_answers()
        assert not self.asked
        for index, holders in enumerate(self.defined):
            for _ in range(holders):
                self.engine.call("forget", units=self.placements(index))
        self.engine.check()
        assert self.engine.llm_engine.reset_prefix_cache()
        stats = self.engine.call("stats")
        assert stats["units_known"] == stats["blocks_modules"] == stats["blocks_pinned"] == 0
        assert stats["blocks_free"] == stats["blocks_total"]

    def look_at_answers(self) -> None:
        for name, output in list(self.engine.outputs.items()):
            index = self.asked.pop(name)
            del self.engine.outputs[name]
            reason = output.outputs[0].finish_reason
            if index is None:
                assert reason == "error"
            elif reason != "abort":
                assert reason == "length", (name, reason)
                tokens = tokens_of(output)
                assert tokens == self.expected[index][: len(tokens)]
                self.num_finished += 1

    def placements(self, schema: int) -> list[Any]:
        return [u.placement for u in self.schemas[schema]]

    # -- operations ------------------------------------------------------------------------------

    def step(self) -> None:
        self.engine.step()
        self.look_at_answers()

    def ask(self) -> None:
        index = self.random.randrange(len(self.plans))
        prompt = self.plans[index]
        with_texts = not self.defined[index // 6] or self.random.random() < 0.5
        params = self.params()
        wire = plan_to_wire(prompt, with_texts=with_texts)
        params.extra_args = {"prompt_cache": wire}
        salt = self.random.choice(["tenant", None, None, None, None])
        self.asked[self.engine.add(prompt_token_ids(prompt), params, cache_salt=salt)] = index

    def ask_plain(self) -> None:
        index = self.random.randrange(len(self.plain))
        self.asked[self.engine.add(self.plain[index], self.params())] = len(self.plans) + index

    def ask_nonsense(self) -> None:
        prompt = self.random.choice(self.plans)
        params = self.params()
        params.extra_args = {"prompt_cache": plan_to_wire(prompt, with_texts=True)}
        params.extra_args["prompt_cache"]["items"][-2] += self.random.choice([-500, 5000])
        self.asked[self.engine.add(prompt_token_ids(prompt), params)] = None

    def params(self) -> SamplingParams:
        return greedy(self.random.randrange(1, MAX_TOKENS + 1))

    def abort(self) -> None:
        if self.asked:
            name = self.random.choice(list(self.asked))
            del self.asked[name]
            self.engine.abort(name)
            self.num_aborted += 1

    def define(self) -> None:
        index = self.random.randrange(len(self.schemas))
        self.engine.call("define", texts=units_to_wire(self.schemas[index]))
        self.defined[index] += 1

    def forget(self) -> None:
        index = self.random.randrange(len(self.schemas))
        if self.defined[index]:
            self.engine.call("forget", units=self.placements(index))
            self.defined[index] -= 1

    def pin(self) -> None:
        index = self.random.randrange(len(self.schemas))
        if self.defined[index]:
            chosen = self.random.sample(self.placements(index), 2)
            self.engine.call("pin", units=chosen)
        assert self.engine.store.pins.num_blocks <= self.engine.store.pins.limit

    def unpin(self) -> None:
        self.engine.call("unpin", units=self.placements(self.random.randrange(len(self.schemas))))

    def warm(self) -> None:
        index = self.random.randrange(len(self.schemas))
        if self.defined[index]:
            self.engine.call("warm", units=self.placements(index))

    def reset(self) -> None:
        self.engine.llm_engine.reset_prefix_cache(reset_running_requests=self.random.random() < 0.5)


@pytest.mark.parametrize("force_async", [False, True], ids=["synchronous", "asynchronous"])
def test_random_operations(tiny_model: Path, force_async: bool) -> None:
    with serving(
        tiny_model,
        max_model_len=1024,
        num_gpu_blocks_override=48,
        max_num_batched_tokens=128,
        max_num_seqs=8,
        force_async=force_async,
    ) as engine:
        stress = Stress(engine, seed=7)
        stress.run(NUM_OPERATIONS)
        assert stress.num_finished > 200
        assert stress.num_aborted > 50
        assert engine.call("stats")["evictions"] > 20
        stress.end()
