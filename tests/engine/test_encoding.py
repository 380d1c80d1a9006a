"""Modules are encoded on demand, once, and kept, dropped and freed as their holders come and go."""

import copy
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.request import RequestStatus

from tests.engine.oracle import Oracle
from tests.engine.plans import cached, new, plan, random_tokens, simple, travel, unit
from tests.engine.support import (
    Engine,
    composed,
    greedy,
    largest_error,
    report_of,
    tokens_of,
    tokens_of_modules,
)
from vllm_promptcache.blocks.wire import plan_to_wire, prompt_token_ids, units_to_wire
from vllm_promptcache.contract.plan import Plan


def residencies(engine: Engine, of: Plan) -> list[str]:
    placements = [u.placement for u in of.units]
    return [u["residency"] for u in engine.call("status", units=placements)["units"]]


def test_everything_at_once_agrees_with_the_oracle(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompt = travel()
    tokens, logprobs = oracle(tiny_model, prompt, 32)
    (cold,) = engine.ask([prompt], greedy(32, logprobs=5))
    (warm,) = engine.ask([prompt], greedy(32, logprobs=5))
    for output, reused in ((cold, 0), (warm, prompt.num_cached_tokens)):
        assert tokens_of(output) == tokens
        assert largest_error(output, logprobs) < 1e-3
        report = report_of(output)
        assert output.num_cached_tokens == report["tokens_reused"] + report["tokens_found"]
        assert report["tokens_reused"] == reused
    assert report_of(cold) == {
        "modules_resident": 0,
        "modules_encoded": 5,
        "modules_loaded": 0,
        "tokens_reused": 0,
        "tokens_encoded": prompt.num_cached_tokens,
        "tokens_found": 0,
        "tokens_new": prompt.num_new_tokens,
        "tokens_repaired": 0,
    }
    assert report_of(warm)["modules_resident"] == 5


def test_a_cold_request_takes_one_forward_pass(engine: Engine) -> None:
    """What is encoded and who waits for it are in the same step."""
    name = engine.add(travel("one pass"), greedy(1))
    assert [output.request_id for output in engine.step()] == [name]


def test_fifty_requests_at_once_encode_each_unit_once(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    prompt = travel("fifty")
    tokens, _ = oracle(tiny_model, prompt, 32)
    outputs = engine.ask([prompt] * 50, greedy(8))
    assert len(engine.encoded) == len(set(engine.encoded)) == len(prompt.units)
    assert all(tokens_of(output) == tokens[:8] for output in outputs)
    engine.ask([prompt] * 3, greedy(8))
    assert len(engine.encoded) == len(prompt.units)


def test_modules_shared_by_different_prompts_are_encoded_once(engine: Engine) -> None:
    a, b, c = unit("a", (0, 90)), unit("b", (90, 130)), unit("c", (200, 300))
    prompts = [plan(a, b, new(300, 5)), plan(b, c, new(300, 5)), plan(a, c, new(300, 5))]
    together = [tokens_of(o) for o in engine.ask(prompts)]
    assert len(engine.encoded) == 3
    engine.forget_everything()
    assert [tokens_of(engine.ask([p])[0]) for p in prompts] == together


def test_only_what_is_included_is_encoded(engine: Engine) -> None:
    root = unit("root", (0, 40))
    a, b = unit("a", (40, 100), context=[root]), unit("b", (100, 150), context=[root])
    engine.ask([plan(b, new(150, 3))])
    assert {key[0] for key in engine.encoded} == {root.digest, b.digest}
    engine.ask([plan(a, b, new(150, 3))])
    assert {key[0] for key in engine.encoded[2:]} == {a.digest}


def test_text_is_told_once_when_units_are_defined(engine: Engine) -> None:
    prompt = travel("defined")
    engine.call("define", texts=units_to_wire(prompt.units))
    params = greedy()
    params.extra_args = {"prompt_cache": plan_to_wire(prompt, with_texts=False)}
    (named,) = engine.ask([prompt_token_ids(prompt)], params)
    assert tokens_of_modules(named) == prompt.num_cached_tokens
    assert tokens_of(named) == tokens_of(engine.ask([prompt])[0])
    engine.call("forget", units=[u.placement for u in prompt.units])


# -- tenants ---------------------------------------------------------------------------------------


def test_tenants_have_states_of_their_own(engine: Engine) -> None:
    prompt = simple("tenants")
    engine.ask([prompt], cache_salt="one")
    engine.ask([prompt], cache_salt="two")
    engine.ask([prompt])
    engine.ask([prompt], cache_salt="one")
    assert len(engine.encoded) == len(set(engine.encoded)) == 3
    blocks = [{b.block_id for b in u.blocks} for u in engine.store.known.by_key.values() if u.blocks]
    assert len(blocks) == 3
    assert not blocks[0] & blocks[1] | blocks[0] & blocks[2] | blocks[1] & blocks[2]


def test_a_client_may_name_its_request_like_an_encoding_one(engine: Engine) -> None:
    """Names are the clients': who encodes is not told by them."""
    plain = random_tokens(40, "named").tolist()
    (expected,) = engine.ask([plain])
    composed = engine.add(travel("named"))
    names = [engine.add(plain, name=f"prompt-cache-encoding-{name}") for name in ("x", "000000000000")]
    engine.finish()
    assert all(tokens_of(engine.outputs[name]) == tokens_of(expected) for name in names)
    assert engine.outputs[composed].outputs[0].finish_reason == "length"


def test_rows_of_an_encoding_that_is_given_up_are_dropped(engine: Engine) -> None:
    """As when the server is paused."""
    engine.ask([random_tokens(40, "before").tolist()])
    name = engine.add(simple("given up", 2500))
    engine.step()
    (key,) = engine.encoded
    assert key in engine.kept_rows
    engine.abort(name)
    engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    engine.ask([random_tokens(40, "after").tolist()])
    assert key not in engine.kept_rows


# -- pins ------------------------------------------------------------------------------------------


def test_pinned_units_are_encoded_ahead_and_survive_pressure(engine: Engine) -> None:
    prompt = travel("pinned")
    placements = [u.placement for u in prompt.units]
    engine.call("define", texts=units_to_wire(prompt.units))
    assert engine.call("pin", units=placements)["pinned"]
    engine.drain()
    assert residencies(engine, prompt) == ["resident"] * 5
    assert report_of(engine.ask([prompt])[0])["modules_encoded"] == 0
    engine.reclaim_all()
    assert residencies(engine, prompt) == ["resident"] * 5
    engine.call("unpin", units=placements)
    assert next(engine.store.resident.reclaim(set()), None)
    engine.call("forget", units=placements)


def test_pins_beyond_the_limit_are_refused_and_change_nothing(engine: Engine) -> None:
    limit = engine.store.pins.limit
    fits = unit("fits", (0, 32 * 8))
    others = [unit(f"other {i}", (0, 32 * 250)) for i in range(limit // 250 + 1)]
    everything = [fits, *others]
    engine.call("define", texts=units_to_wire(everything))
    before = engine.call("stats")
    answer = engine.call("pin", units=[u.placement for u in others])
    assert not answer["pinned"]
    after = engine.call("stats")
    assert after == before
    assert engine.call("pin", units=[fits.placement])["pinned"]
    assert engine.call("stats")["blocks_pinned"] == 8
    engine.drain()
    engine.call("unpin", units=[fits.placement])
    engine.call("forget", units=[u.placement for u in everything])
    assert engine.call("stats")["units_known"] == 0


def test_warming_encodes_without_a_pin(engine: Engine) -> None:
    prompt = simple("warm")
    engine.call("define", texts=units_to_wire(prompt.units))
    engine.call("warm", units=[u.placement for u in prompt.units])
    engine.drain()
    assert residencies(engine, prompt) == ["resident"]
    assert report_of(engine.ask([prompt])[0])["modules_encoded"] == 0
    engine.call("forget", units=[u.placement for u in prompt.units])


# -- forgetting ------------------------------------------------------------------------------------


def test_forgotten_units_leave_when_their_last_request_ends(engine: Engine) -> None:
    prompt = simple("forgotten")
    placements = [u.placement for u in prompt.units]
    engine.call("define", texts=units_to_wire(prompt.units))
    (expected,) = engine.ask([prompt], greedy(20))
    name = engine.add(prompt, greedy(20))
    for _ in range(5):
        engine.step()
    engine.call("forget", units=placements)
    assert residencies(engine, prompt) == ["resident"]
    engine.check()
    engine.finish()
    assert tokens_of(engine.outputs[name]) == tokens_of(expected)
    assert engine.call("stats")["units_known"] == 0
    assert engine.call("stats")["blocks_free"] == engine.call("stats")["blocks_total"]


def test_units_forgotten_while_they_are_encoded_are_encoded_for_who_waits(engine: Engine) -> None:
    prompt = simple("forgotten early", num_tokens=3000)
    (expected,) = engine.ask([prompt])
    engine.forget_everything()
    engine.call("define", texts=units_to_wire(prompt.units))
    name = engine.add(prompt)
    engine.step()
    engine.call("forget", units=[u.placement for u in prompt.units])
    engine.finish()
    assert tokens_of(engine.outputs[name]) == tokens_of(expected)
    assert engine.call("stats")["units_known"] == 0


def test_a_unit_of_two_schemas_stays_until_both_are_gone(engine: Engine) -> None:
    prompt = simple("two schemas")
    placements = [u.placement for u in prompt.units]
    for _ in range(2):
        engine.call("define", texts=units_to_wire(prompt.units))
    engine.ask([prompt])
    engine.call("forget", units=placements)
    assert residencies(engine, prompt) == ["resident"]
    engine.call("forget", units=placements)
    assert engine.call("stats")["units_known"] == 0


def test_a_unit_that_is_defined_again_stays(engine: Engine) -> None:
    prompt = simple("defined again")
    placements = [u.placement for u in prompt.units]
    engine.call("define", texts=units_to_wire(prompt.units))
    name = engine.add(prompt, greedy(20))
    for _ in range(5):
        engine.step()
    engine.call("forget", units=placements)
    engine.call("define", texts=units_to_wire(prompt.units))
    engine.finish()
    assert name in engine.outputs
    assert residencies(engine, prompt) == ["resident"]
    engine.call("forget", units=placements)
    assert engine.call("stats")["units_known"] == 0


def test_a_context_stays_known_as_long_as_units_stand_in_it(engine: Engine) -> None:
    root = unit("root", (0, 100))
    child = unit("child", (100, 200), context=[root])
    engine.ask([plan(child, new(200, 4))])
    assert next(engine.store.resident.reclaim(set()), None)  # the least recently used: the context
    assert engine.call("stats")["units_known"] == 2
    assert next(engine.store.resident.reclaim(set()), None)
    assert engine.call("stats")["units_known"] == 0


# -- reclaiming and resetting ----------------------------------------------------------------------


def test_reclaimed_units_come_back_with_the_same_states(engine: Engine) -> None:
    prompt = travel("reclaimed")
    (before,) = engine.ask([prompt], greedy(8, logprobs=2))
    engine.reclaim_all()
    assert engine.call("stats")["units_resident"] == len([u for u in prompt.units if u.num_tokens < 32])
    (after,) = engine.ask([prompt], greedy(8, logprobs=2))
    assert tokens_of(after) == tokens_of(before)
    assert len(engine.encoded) > len(prompt.units)


def test_resetting_the_prefix_cache_drops_modules_until_they_are_wanted(engine: Engine) -> None:
    prompt = travel("reset")
    (before,) = engine.ask([prompt])
    assert engine.llm_engine.reset_prefix_cache()
    assert engine.call("stats")["blocks_modules"] == 0
    (after,) = engine.ask([prompt])
    assert tokens_of(after) == tokens_of(before)
    assert report_of(after)["modules_encoded"] == 5


def test_pinned_units_come_back_after_a_reset(engine: Engine) -> None:
    prompt = travel("reset pinned")
    placements = [u.placement for u in prompt.units]
    engine.call("define", texts=units_to_wire(prompt.units))
    engine.call("pin", units=placements)
    (before,) = engine.ask([prompt])
    assert engine.llm_engine.reset_prefix_cache()
    (after,) = engine.ask([prompt])
    assert tokens_of(after) == tokens_of(before)
    assert residencies(engine, prompt) == ["resident"] * 5
    engine.call("unpin", units=placements)
    engine.call("forget", units=placements)


@pytest.mark.parametrize("num_steps", range(8))
def test_resetting_with_running_requests_computes_everything_again(engine: Engine, num_steps: int) -> None:
    """Also while units are being encoded: prefills are cut in chunks, so both are under way."""
    prompts = [simple("running", 2500, question="a"), simple("running", 2500, question="b"), travel("now")]
    expected = [tokens_of(o) for o in engine.ask(prompts, greedy(6))]
    engine.forget_everything()
    names = [engine.add(p, greedy(6)) for p in prompts]
    for _ in range(num_steps):
        engine.step()
    assert engine.llm_engine.reset_prefix_cache(reset_running_requests=True)
    engine.check()
    engine.finish()
    assert [tokens_of(engine.outputs[name]) for name in names] == expected


# -- errors ----------------------------------------------------------------------------------------

FINE = simple("fine")


def broken(change: Any) -> dict[str, Any]:
    wire = copy.deepcopy(plan_to_wire(FINE, with_texts=True))
    change(wire)
    return wire


BROKEN: dict[str, Any] = {
    "unknown unit": broken(lambda w: w.pop("texts")),
    "no units": broken(lambda w: w.pop("units")),
    "not a mapping": "units",
    "units by number": broken(lambda w: w.update(units=[1])),
    "units without a position": broken(lambda w: w.update(units=[w["units"][0][:1]])),
    "units at no position": broken(lambda w: w["units"][0].__setitem__(1, "0")),
    "units before the first position": broken(lambda w: w["units"][0].__setitem__(1, -1)),
    "units behind the last position": broken(lambda w: w["units"][0].__setitem__(1, 8100)),
    "no such unit index": broken(lambda w: w["items"].__setitem__(0, 7)),
    "half an item": broken(lambda w: w["items"].pop()),
    "items of text": broken(lambda w: w.update(items=["a"] * 6)),
    "not all of the prompt": broken(lambda w: w["items"].__setitem__(5, 9)),
    "nothing new": broken(lambda w: w.update(items=[0, 0, 110])),
    "outside of the unit": broken(lambda w: w["items"].__setitem__(slice(1, 3), [50, 150])),
    "negative range": broken(lambda w: w["items"].__setitem__(slice(1, 3), [-100, 0])),
    "range reversed": broken(lambda w: w.update(items=[0, 100, 0, -1, 100, 210])),
    "no tokens": broken(lambda w: w.update(items=[0, 0, 100, -1, 100, 10, -1, 110, 0])),
    "cut in the middle": broken(lambda w: w.update(items=[0, 0, 40, -1, 100, 70])),
    "positions out of order": broken(lambda w: w["items"].__setitem__(4, 40)),
    "negative position": broken(lambda w: w.update(items=[-1, -5, 10, 0, 0, 100])),
    "position beyond the model": broken(lambda w: w["items"].__setitem__(4, 10_000_000)),
    "texts of text": broken(lambda w: w.update(texts={d: ["a", "b", "c", []] for d in w["texts"]})),
    "texts of unequal length": broken(lambda w: next(iter(w["texts"].values())).__setitem__(1, b"12345678")),
    "texts with odd bytes": broken(lambda w: next(iter(w["texts"].values())).__setitem__(0, b"123")),
}


@pytest.mark.parametrize("wire", BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_composed_is_an_error_of_the_request_alone(engine: Engine, wire: Any) -> None:
    other = engine.add(travel("neighbour"))
    params = greedy()
    params.extra_args = {"prompt_cache": wire}
    (output,) = engine.ask([prompt_token_ids(FINE)], params)
    assert output.outputs[0].finish_reason == "error"
    assert tokens_of(output) == []
    assert engine.outputs[other].outputs[0].finish_reason == "length"
    engine.forget_everything()
    assert engine.call("stats")["units_known"] == 0


def test_unknown_units_cannot_be_pinned(engine: Engine) -> None:
    with pytest.raises(KeyError):
        engine.call("pin", units=[("0" * 64, 0)])
    assert engine.call("stats")["units_known"] == 0


def test_an_unknown_operation_is_refused(engine: Engine) -> None:
    with pytest.raises(KeyError):
        engine.call("explode")


def test_parts_of_a_unit_are_reused_piece_by_piece(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    """A piece may be left out, or lose its last token."""
    root = unit("pieces", (0, 100), (150, 160), (200, 296))
    first, second, third = cached(root)
    question = new(300, 4)
    prompts = [plan(first, third, question), plan(second, question), plan(first, second, question)]
    tokens = [oracle(tiny_model, prompt, 8)[0] for prompt in prompts]
    assert [tokens_of(o) for o in engine.ask(prompts)] == tokens


def test_parameters_of_sampling_are_left_as_they_were() -> None:
    params = greedy()
    composed(params, FINE)
    assert params.extra_args is None
