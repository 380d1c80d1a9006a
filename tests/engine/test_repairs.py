"""Repairs, held against the oracle: what each makes new is computed here from docs/semantics.md alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm.outputs import RequestOutput

from tests.cases import CASES, ENCODE_MODES
from tests.engine.language import plan_of
from tests.engine.oracle import Oracle
from tests.engine.plans import new, placements_of, plan, travel, unit
from tests.engine.support import (
    Engine,
    composed,
    greedy,
    largest_error,
    report_of,
    serving,
    tokens_of,
    tokens_of_modules,
)
from tests.pool_cases import POOL_CASES
from tests.repairs import repair as repaired_by_definition
from vllm_promptcache.blocks.unit_key import WHOLE
from vllm_promptcache.blocks.wire import prompt_token_ids, units_to_wire
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.contract.repair import FULL, Repair
from vllm_promptcache.repairs.repaired import repaired

MAX_ERROR = 1e-3
NUM_TOKENS = 4
REPAIRS = ["link:1", "link:5", "link:33", "link:64", "tail", "link:40+tail", "close", "full"]
TABLE = (*CASES, *POOL_CASES)
ALL_CASES = [case.with_encode(mode) for case in TABLE for mode in ENCODE_MODES]
IDS = [f"{case.name}-{mode}" for case in TABLE for mode in ENCODE_MODES]

# Block size, tokens a step at most, requests a step at most.
ENGINES = [(32, 2048, 64), (32, 37, 16), (128, 101, 64)]


@dataclass
class Answers:
    """What one engine said to every case with every repair: at first, and once more."""

    cold: list[list[RequestOutput]]
    warm: list[list[RequestOutput]]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: f"blocks-{e[0]}-chunks-{e[1]}")
def answers(request: pytest.FixtureRequest, tiny_model: Path) -> Answers:
    block_size, num_batched_tokens, num_seqs = request.param
    plans = [plan_of(case, tiny_model) for case in ALL_CASES]
    with serving(
        tiny_model,
        block_size=block_size,
        max_num_batched_tokens=num_batched_tokens,
        max_num_seqs=num_seqs,
        num_gpu_blocks_override=64_000 // block_size,
    ) as engine:
        asked = [repaired(plan, Repair.parse(name)) for plan in plans for name in REPAIRS]
        params = greedy(NUM_TOKENS, logprobs=5)
        cold = engine.ask(asked, params)
        num_encodings = len(engine.encoded)
        warm = engine.ask(reversed(asked), params)[::-1]
        assert len(engine.encoded) == len(set(engine.encoded)) == num_encodings
        # With and without repairs, and with any of them, a unit's blocks are the same.
        units = {placement for prompt in asked for placement in placements_of(prompt)}
        assert sum(key.part == WHOLE for key in engine.encoded) == len(units)
    step = len(REPAIRS)
    return Answers(*([o[i : i + step] for i in range(0, len(o), step)] for o in (cold, warm)))


@pytest.mark.parametrize("index", range(len(ALL_CASES)), ids=IDS)
def test_case(answers: Answers, tiny_model: Path, oracle: Oracle, index: int) -> None:
    explained = plan_to_json(plan_of(ALL_CASES[index], tiny_model))
    for name, *outputs in zip(REPAIRS, answers.cold[index], answers.warm[index], strict=True):
        defined = repaired_by_definition(explained, name)
        reused = sum(s["end"] - s["start"] for s in defined["segments"] if "new" not in s)
        tokens, logprobs = oracle(tiny_model, defined, NUM_TOKENS)
        for output in outputs:
            assert largest_error(output, logprobs) < MAX_ERROR, name
            assert tokens_of(output) == tokens, name
            assert tokens_of_modules(output) == reused, name
            report, renewed = report_of(output), explained["num_cached_tokens"] - reused
            assert report["tokens_new"] + report["tokens_found"] == explained["num_new_tokens"] + renewed, (
                name
            )
            assert report["tokens_repaired"] <= renewed, name
            assert report["tokens_found"] or report["tokens_repaired"] == renewed, name
        assert report_of(outputs[1])["modules_encoded"] == 0


def linked(link_tokens: int, prompt: Plan | None = None) -> Plan:
    return repaired(prompt or travel(), Repair.parse(f"link:{link_tokens}"))


# -- heads -----------------------------------------------------------------------------------------


def test_full_attention_is_what_a_repair_of_everything_gives(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    """Link tokens beyond the longest unit, and the tail of the one that stands first."""
    full, everything = repaired(travel(), FULL), repaired(travel(), Repair.parse("link:1024+tail"))
    _, expected = oracle(tiny_model, full, 8)
    for output in engine.ask([full, everything], greedy(8, logprobs=5)):
        assert largest_error(output, expected) < MAX_ERROR


def test_one_head_serves_all_link_tokens_that_end_in_its_block(engine: Engine) -> None:
    engine.ask([travel()])
    assert len(engine.encoded) == 5
    engine.ask([linked(5)])
    heads = engine.encoded[5:]
    assert heads and all(key.part != WHOLE for key in heads)
    engine.ask([linked(31), linked(6), linked(1), linked(32), travel()])
    assert len(engine.encoded) == 5 + len(heads)
    engine.ask([linked(33)])
    assert len(engine.encoded) > 5 + len(heads)
    assert all(key.part != WHOLE for key in engine.encoded[5:])


def test_heads_hold_no_blocks_and_go_with_their_units(engine: Engine) -> None:
    engine.ask([travel()])
    before = engine.call("stats")
    engine.ask([linked(5)])
    after = engine.call("stats")
    assert after["units_resident"] > before["units_resident"]
    assert after["blocks_modules"] == before["blocks_modules"]
    engine.reclaim_all()
    assert not any(key.part != WHOLE for key in engine.store.known.by_key)
    again = engine.ask([linked(5)])[0]
    assert report_of(again)["modules_encoded"] > 0


def test_a_head_alone_leaves_its_unit(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    """The last token of a unit that ends behind a block is computed anew: no block of its own is used."""
    root, module = unit("alone root", (0, 40)), unit("alone", (40, 73))
    last = NewSegment(module.token_list[32:], 72, "prompt:1")
    prompt = linked(5, plan(root, CachedSegment(module, 0, 32), last))
    tokens, _ = oracle(tiny_model, prompt, 8)
    (output,) = engine.ask([prompt])
    assert tokens_of(output) == tokens
    assert [key.part != WHOLE for key in engine.encoded] == [False, True]
    assert report_of(output)["modules_encoded"] == 1


def test_a_schema_s_heads_are_forgotten_with_it(engine: Engine) -> None:
    prompt = linked(5)
    engine.call("define", texts=units_to_wire(prompt.units))
    engine.ask([prompt])
    engine.call("forget", units=[u.placement for u in prompt.units])
    assert engine.call("stats")["units_known"] == 0


def test_tenants_have_heads_of_their_own(engine: Engine) -> None:
    for salt in ("one", "two", "one", None):
        engine.ask([linked(5)], cache_salt=salt)
    heads = [key for key in engine.encoded if key.part != WHOLE]
    assert len(heads) == len(set(heads))
    assert {key.tenant for key in heads} == {"one", "two", None}


def test_a_repaired_prompt_gives_the_same_after_a_reset(engine: Engine) -> None:
    prompt = linked(5)
    (before,) = engine.ask([prompt])
    name = engine.add(prompt)
    engine.step()
    assert engine.llm_engine.reset_prefix_cache(reset_running_requests=True)
    engine.finish()
    assert tokens_of(engine.outputs[name]) == tokens_of(before)


def test_a_later_turn_finds_what_an_earlier_one_repaired(engine: Engine) -> None:
    root, module = unit("turns", (0, 40)), unit("turns module", (40, 100))
    first = new(100, 64, "turns")
    turns = [linked(9, plan(root, module, *texts)) for texts in ([first], [first, new(164, 6)])]
    engine.ask([turns[0]])
    params = composed(greedy(), turns[1])
    report = report_of(engine.ask([prompt_token_ids(turns[1])], params)[0])
    assert report["tokens_repaired"] == 0
    assert report["tokens_new"] < 64


# -- by default ------------------------------------------------------------------------------------


def test_pinned_and_warmed_units_are_ready_for_the_default_repair(tiny_model: Path) -> None:
    with serving(tiny_model, prompt_cache={"repair": "link:5"}) as engine:
        prompt = travel("default")
        placements = [u.placement for u in prompt.units]
        for operation in ("warm", "pin"):
            engine.call("define", texts=units_to_wire(prompt.units))
            pinned = engine.call("stats")["blocks_pinned"]
            engine.call(operation, units=placements)
            engine.drain()
            num_encodings = len(engine.encoded)
            (cold,) = engine.ask([linked(5, prompt)], greedy(8))
            assert len(engine.encoded) == num_encodings
            assert report_of(cold)["modules_encoded"] == 0
            assert tokens_of(cold) == tokens_of(engine.ask([linked(5, prompt)], greedy(8))[0])
        engine.reclaim_all()
        assert engine.call("stats")["blocks_pinned"] > pinned
        assert report_of(engine.ask([linked(5, prompt)])[0])["modules_encoded"] == 0
        engine.call("unpin", units=placements)
        assert engine.call("stats")["units_pinned"] == 0
        for _ in range(2):
            engine.call("forget", units=placements)
        assert engine.call("stats")["units_known"] == 0
