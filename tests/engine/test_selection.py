"""Selected tokens: which they are and what they see, both held against docs/semantics.md alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from vllm.outputs import RequestOutput

from tests.cases import CASES, ENCODE_MODES, Case
from tests.engine.language import layout_of, plan_of, units_of
from tests.engine.oracle import Oracle
from tests.engine.plans import new, plan, scattered, travel, unit
from tests.engine.support import Engine, composed, greedy, largest_error, serving, tokens_of
from tests.reference import load_reference_model
from tests.repairs import repair as repaired_by_definition
from tests.selection import deviations, most_deviant
from vllm_promptcache.blocks.heads import COPY
from vllm_promptcache.blocks.unit_key import WHOLE
from vllm_promptcache.blocks.wire import prompt_token_ids, units_to_wire
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.repair import Repair
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.engine.comparison import APART
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.link import run_sync
from vllm_promptcache.frontend.selection import TokenSelection
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.offline import OfflineEngineLink
from vllm_promptcache.repairs.repaired import repaired

MAX_ERROR = 1e-3
NUM_TOKENS = 4
REPAIRS = ["select:0.1", "select:0.3+tail", "select:0.5"]
SHARES = [name.removesuffix("+tail").removeprefix("select:") for name in REPAIRS]
# But for those with a module of 5,000 tokens: the oracle takes half a minute for each.
NAMED = {
    f"{c.name}-{mode}": c.with_encode(mode) for c in CASES for mode in ENCODE_MODES if "huge" not in c.schema
}
IDS, ALL_CASES = list(NAMED), list(NAMED.values())

# Block size, tokens a step at most, requests a step at most.
ENGINES = [(32, 2048, 64), (32, 53, 16), (128, 101, 64)]


@cache
def reference(model: Path) -> Any:
    return load_reference_model(model)


@cache
def defined_deviations(case: Case, model: Path) -> dict[str, dict[int, float]]:
    """How far tokens of a case's units move in company, by definition."""
    units = units_of(layout_of(case, model))
    return {unit["id"]: deviations(reference(model), units, unit) for unit in units}


def selection_of(engine: Engine) -> TokenSelection:
    return TokenSelection(OfflineEngineLink(engine.llm_engine))


def select(engine: Engine, layout: SchemaLayout, share: str) -> dict[Unit, NDArray[np.int64]]:
    """The selected tokens of a schema's units, as the engine has them."""
    return dict(run_sync(selection_of(engine).select(layout, layout.units, Fraction(share))))


@dataclass
class Answers:
    """What one engine selected of every case's units by each share, and what it said to every case with
    every repair: at first, and once more."""

    selected: list[list[dict[str, set[int]]]]
    cold: list[list[RequestOutput]]
    warm: list[list[RequestOutput]]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: f"blocks-{e[0]}-chunks-{e[1]}")
def answers(request: pytest.FixtureRequest, tiny_model: Path) -> Answers:
    block_size, num_batched_tokens, num_seqs = request.param
    with serving(
        tiny_model,
        block_size=block_size,
        max_num_batched_tokens=num_batched_tokens,
        max_num_seqs=num_seqs,
        num_gpu_blocks_override=64_000 // block_size,
    ) as engine:
        selected, asked = [], []
        for case in ALL_CASES:
            layout = layout_of(case, tiny_model)
            by_share = [select(engine, layout, share) for share in SHARES]
            selected.append([{u.id: set(t.tolist()) for u, t in found.items()} for found in by_share])
            asked += [
                repaired(plan_of(case, tiny_model), Repair.parse(name), found)
                for name, found in zip(REPAIRS, by_share, strict=True)
            ]
        params = greedy(NUM_TOKENS, logprobs=5)
        cold = engine.ask(asked, params)
        warm = engine.ask(reversed(asked), params)[::-1]
    step = len(REPAIRS)
    return Answers(selected, *([o[i : i + step] for i in range(0, len(o), step)] for o in (cold, warm)))


@pytest.mark.parametrize("index", range(len(ALL_CASES)), ids=IDS)
def test_case(answers: Answers, tiny_model: Path, oracle: Oracle, index: int) -> None:
    case = ALL_CASES[index]
    explained = plan_to_json(plan_of(case, tiny_model))
    units = units_of(layout_of(case, tiny_model))
    outputs = zip(answers.cold[index], answers.warm[index], strict=True)
    for name, share, found, pair in zip(REPAIRS, SHARES, answers.selected[index], outputs, strict=True):
        selected = most_deviant(units, defined_deviations(case, tiny_model), share)
        assert found == {unit: tokens for unit, tokens in selected.items() if tokens}, share
        defined = repaired_by_definition(explained, name, selected)
        reused = sum(s["end"] - s["start"] for s in defined["segments"] if "new" not in s)
        tokens, logprobs = oracle(tiny_model, defined, NUM_TOKENS)
        for output in pair:
            assert largest_error(output, logprobs) < MAX_ERROR, name
            assert tokens_of(output) == tokens, name
            assert output.num_cached_tokens == reused, name
            assert report_of(output)["tokens_repaired"] == explained["num_cached_tokens"] - reused, name


def report_of(output: Any) -> dict[str, int]:
    return dict(output.kv_transfer_params["prompt_cache"])


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [False, True])
def test_everything_at_once_agrees_with_the_oracle(
    engine: Engine, tiny_model: Path, oracle: Oracle, tail: bool
) -> None:
    prompts = [scattered(travel(), tail=tail), travel(), scattered(travel(), tail=tail, first=1)]
    for output, prompt in zip(engine.ask(prompts, greedy(8, logprobs=5)), prompts, strict=True):
        tokens, logprobs = oracle(tiny_model, prompt, 8)
        assert largest_error(output, logprobs) < MAX_ERROR
        assert tokens_of(output) == tokens


def test_whole_blocks_between_selected_tokens_are_shared(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    before, module = unit("blocks root", (0, 7)), unit("blocks", (7, 207))
    prompt = plan(before, module, new(207, 5))
    selected = {module: np.array([3, 4, 130, 131, 199])}
    prompt = repaired(prompt, Repair(select=Fraction(1, 2)), selected)
    (output,) = engine.ask([prompt], greedy(8, logprobs=5))
    tokens, logprobs = oracle(tiny_model, prompt, 8)
    assert largest_error(output, logprobs) < MAX_ERROR
    assert tokens_of(output) == tokens
    assert [(key[0], key.part == COPY) for key in engine.encoded] == [
        (before.digest, False),
        (module.digest, True),
        (module.digest, False),
    ]
    assert report_of(output)["modules_encoded"] == 2


def test_one_copy_serves_all_that_is_selected_and_holds_no_blocks(engine: Engine) -> None:
    engine.ask([travel()])
    before = engine.call("stats")
    engine.ask([scattered(travel())])
    copies = engine.encoded[5:]
    assert copies and all(key.part == COPY for key in copies)
    engine.ask([scattered(travel(), first=1), scattered(travel(), tail=True), travel()])
    assert engine.encoded[5:] == copies
    assert engine.call("stats")["blocks_modules"] == before["blocks_modules"]
    engine.reclaim_all()
    assert not any(key.part != WHOLE for key in engine.store.units if engine.store.units[key].whole in copies)


def test_dropped_copies_are_made_again(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompt = scattered(travel("again"))
    tokens, logprobs = oracle(tiny_model, prompt, 8)
    for _ in range(2):
        (output,) = engine.ask([prompt], greedy(8, logprobs=5))
        assert tokens_of(output) == tokens
        assert largest_error(output, logprobs) < MAX_ERROR
        engine.reclaim_all()
        for key in [k for k in engine.store.units if k.part == COPY]:
            engine.store.discard(key)
    assert len(engine.encoded) > len(set(engine.encoded))


def test_copies_that_nobody_asks_for_are_bounded(engine: Engine) -> None:
    limit = engine.store.block_pool.num_gpu_blocks * 32 // 4
    for number in range(9):
        module = unit(f"bounded {number}", (1000, 1000 + limit // 8))
        engine.ask([scattered(plan(module, new(0, 1), new(1000 + limit // 8, 3)))])
    copies = [u for u in engine.store.units.values() if u.key.part == COPY]
    assert limit // 2 < sum(u.geometry.num_rows for u in copies) <= limit


def test_a_repaired_prompt_gives_the_same_after_a_reset(engine: Engine) -> None:
    prompt = scattered(travel("reset"))
    (before,) = engine.ask([prompt])
    name = engine.add(prompt)
    engine.step()
    assert engine.llm_engine.reset_prefix_cache(reset_running_requests=True)
    engine.finish()
    assert tokens_of(engine.outputs[name]) == tokens_of(before)


def test_requests_wait_for_blocks_without_losing_copies(tiny_model: Path) -> None:
    """Units are dropped for their blocks while requests wait for the copies of the same units."""
    with serving(tiny_model, num_gpu_blocks_override=60, max_model_len=1024, max_num_seqs=8) as engine:
        prompts: list[Plan] = []
        for number in range(6):
            module = unit(f"waiting {number}", (5, 305))
            prompts += [plan(module, new(0, 5), new(305, 9))]
            prompts += [scattered(prompts[-1]), scattered(prompts[-1], first=1)]
        alone = [tokens_of(engine.ask([prompt])[0]) for prompt in prompts]
        together = [tokens_of(output) for output in engine.ask(prompts)]
        assert together == alone


def test_a_later_turn_finds_what_an_earlier_one_repaired(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    root, module = unit("turns", (0, 40)), unit("turns module", (40, 100))
    first = new(100, 64, "turns")
    turns = [scattered(plan(root, module, *texts)) for texts in ([first], [first, new(164, 6)])]
    engine.ask([turns[0]])
    params = composed(greedy(logprobs=5), turns[1], num_history_tokens=turns[1].num_new_tokens)
    (output,) = engine.ask([prompt_token_ids(turns[1])], params)
    assert report_of(output)["tokens_repaired"] == 0
    assert report_of(output)["tokens_new"] < 64
    tokens, logprobs = oracle(tiny_model, turns[1], 8)
    assert tokens_of(output) == tokens
    assert largest_error(output, logprobs) < MAX_ERROR


def test_a_schema_s_copies_are_forgotten_with_it(engine: Engine) -> None:
    prompt = scattered(travel("gone"))
    engine.call("define", texts=units_to_wire(prompt.units))
    engine.ask([prompt])
    engine.call("forget", units=[u.placement for u in prompt.units])
    assert engine.call("stats")["units_known"] == 0


# -- selecting -------------------------------------------------------------------------------------

SCHEMA = """<schema name="s" encode="isolated">{9 tokens}<module name="a">{70 tokens: a}</module>
<module name="b">{100 tokens: b}</module><module name="c">{40 tokens: c}</module></schema>"""


def notes(model: Path, text: str = SCHEMA) -> SchemaLayout:
    return layout_of(Case("notes", text, ""), model)


def ask_for(selection: TokenSelection, layout: SchemaLayout, units: Iterable[Unit], **more: Any) -> list[int]:
    found = run_sync(selection.select(layout, units, Fraction("0.1"), **more))
    return [len(tokens) for tokens in found.values()]


def test_units_are_compared_once(engine: Engine, tiny_model: Path) -> None:
    layout, selection = notes(tiny_model), selection_of(engine)
    root, a, b, c = layout.units
    assert ask_for(selection, layout, [a, b, root]) == [7, 10]
    encoded = list(engine.encoded)
    assert ask_for(selection, layout, [b, a, root]) == [10, 7]
    assert engine.encoded == encoded
    assert ask_for(selection, layout, [c, a]) == [4, 7]
    again = engine.encoded[len(encoded) :]
    assert {(key[0].split()[0], key.part == COPY) for key in again} == {(b.digest, False), (c.digest, True)}
    # What was encoded in company is gone; the copies are there for the requests that follow.
    assert not any(" after " in key[0] for key in engine.store.units)
    asked = repaired(plan(a, b, new(179, 3)), Repair(select=Fraction(1, 2)), {b: np.array([40])})
    assert all(key.part != COPY for key in engine.encoded[len(encoded) + len(again) :])
    assert report_of(engine.ask([asked])[0])["tokens_repaired"] == 1


def test_what_is_not_shared_is_found_by_nobody(engine: Engine, tiny_model: Path) -> None:
    layout = notes(tiny_model)
    _, a, b, _ = layout.units
    assert ask_for(selection_of(engine), layout, [b], is_shared=False) == [10]
    assert {key.adapter for key in engine.encoded} == {APART}
    assert not any(key.part == COPY for key in engine.store.units)
    assert report_of(engine.ask([plan(a, b, new(179, 3))])[0])["modules_encoded"] == 2


def test_other_requests_go_on_meanwhile(engine: Engine, tiny_model: Path) -> None:
    link = OfflineEngineLink(engine.llm_engine)
    layout = notes(tiny_model)
    engine.add(travel(), name="other")
    with pytest.raises(RefusedError, match="wait for what is enqueued"):
        run_sync(TokenSelection(link).select(layout, layout.units, Fraction("0.1")))
    engine.finish()
    assert "other" in engine.outputs
    assert ask_for(TokenSelection(link), layout, layout.units) == [7, 10, 4]


def test_too_little_room_is_said(tiny_model: Path) -> None:
    """16 blocks are not pinned away: 8 hold the company, and encoding behind it takes 9."""
    text = SCHEMA.replace("{70 tokens", "{256 tokens").replace("{100 tokens", "{240 tokens")
    settings = {"num_gpu_blocks_override": 34, "max_model_len": 512, "prompt_cache": {"pin_fraction": 1.0}}
    with serving(tiny_model, **settings) as engine:
        layout = notes(tiny_model, text)
        assert engine.call("stats")["blocks_total"] - engine.call("stats")["blocks_pin_limit"] == 16
        with pytest.raises(RefusedError, match=r"tokens cannot be selected: .* KV blocks") as caught:
            ask_for(selection_of(engine), layout, [layout.units[2]])
        assert caught.value.status == 507
        assert ask_for(selection_of(engine), layout, [layout.units[1]]) == [26]
