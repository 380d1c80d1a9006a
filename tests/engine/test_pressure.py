"""Few blocks: preemption, reclaiming, waiting, aborts; nothing is lost, nothing stands still."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.oracle import Oracle
from tests.engine.plans import new, plan, random_tokens, simple, unit
from tests.engine.support import Engine, SharedEngine, close_all, greedy, report_of, serving, tokens_of
from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.engine.stored_unit import Residency
from vllm_promptcache.repairs.repaired import without_reuse

NUM_BLOCKS = 41  # one is vLLM's null block
MAX_MODEL_LEN = 1024  # 32 blocks


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def shared_engine(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[SharedEngine]:
    """An engine with hardly more blocks than one request of full length needs."""
    yield SharedEngine(
        tiny_model,
        max_model_len=MAX_MODEL_LEN,
        num_gpu_blocks_override=NUM_BLOCKS,
        max_num_batched_tokens=256,
        max_num_seqs=16,
        force_async=request.param,
    )
    close_all()


@pytest.fixture
def num_preemptions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that were preempted, as they are."""
    preempted: list[str] = []
    preempt: Callable[..., None] = engine.scheduler._preempt_request

    def counted(request: object, *args: object, **kwargs: object) -> None:
        preempted.append(request.request_id)  # type: ignore[attr-defined]
        preempt(request, *args, **kwargs)

    monkeypatch.setattr(engine.scheduler, "_preempt_request", counted)
    return preempted


def modules() -> list[Plan]:
    root = unit("root", (0, 50))
    a, b = unit("a", (50, 180), context=[root]), unit("b", (180, 300), context=[root], holes=[(200, 210)])
    c = unit("c", (300, 390), context=[root])
    return [
        plan(root, a, b, new(205, 4, "x"), new(400, 7)),
        plan(root, b, c, new(203, 7, "y"), new(390, 2)),
        plan(root, a, new(180, 30), c, new(395, 9)),
        plan(root, c, new(390, 60)),
        plan(root, new(50, 90)),
    ]


def test_preempted_requests_say_the_same(
    engine: Engine, tiny_model: Path, oracle: Oracle, num_preemptions: list[str]
) -> None:
    prompts: list[Plan | list[int]] = [*modules(), *(random_tokens(40, f"p{i}").tolist() for i in range(6))]
    alone = [tokens_of(engine.ask([prompt], greedy(120))[0]) for prompt in prompts]
    for prompt, tokens in zip(prompts, alone, strict=True):
        if isinstance(prompt, Plan):
            assert tokens == oracle(tiny_model, prompt, 120)[0]
    assert not num_preemptions
    engine.forget_everything()
    assert [tokens_of(o) for o in engine.ask(prompts, greedy(120))] == alone
    assert len(num_preemptions) > 3


def test_two_requests_that_each_need_more_than_half_of_the_pool(engine: Engine) -> None:
    prompts = [simple("left", 420, 100), simple("right", 500, 100)]
    alone = []
    for prompt in prompts:
        alone += engine.ask([prompt], greedy(50))
        engine.forget_everything()
    together = engine.ask(prompts, greedy(50))
    assert [tokens_of(o) for o in together] == [tokens_of(o) for o in alone]


def test_two_requests_of_several_large_modules_do_not_wait_for_each_other(engine: Engine) -> None:
    """Each has encoded one of its modules when neither can encode its second."""
    prompts = []
    for name in ("left", "right"):
        first, second = unit(f"{name} 1", (0, 320)), unit(f"{name} 2", (320, 640))
        prompts.append(plan(first, second, new(640, 20)))
    alone = []
    for prompt in prompts:
        alone += engine.ask([prompt])
        engine.forget_everything()
    for order in (prompts, prompts[::-1]):
        outputs = engine.ask([*order, *order])
        assert {tuple(tokens_of(o)) for o in outputs} == {tuple(tokens_of(o)) for o in alone}
        engine.forget_everything()


def test_many_requests_of_many_modules_get_on(engine: Engine) -> None:
    prompts = []
    for i in range(12):
        units = [unit(f"{i} {j}", (100 * j, 100 * j + 64 + i)) for j in range(4)]
        prompts.append(plan(*units, new(400, 10 + i)))
    alone = []
    for prompt in prompts:
        alone += [tokens_of(engine.ask([prompt])[0])]
        engine.forget_everything()
    assert [tokens_of(o) for o in engine.ask(prompts)] == alone
    assert engine.call("stats")["evictions"] > 0


def test_idle_modules_make_room_for_plain_requests(engine: Engine) -> None:
    for i in range(6):
        engine.ask([simple(f"idle {i}", 190)], greedy(1))
    prompts = [random_tokens(600, f"p{i}").tolist() for i in range(4)]
    outputs = engine.ask(prompts, greedy(100))
    assert all(len(tokens_of(o)) == 100 for o in outputs)


def test_modules_in_use_are_never_reclaimed(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompt = simple("used", 300, 10)
    tokens, _ = oracle(tiny_model, prompt, 150)
    name = engine.add(prompt, greedy(150))
    for index in range(20):
        engine.add(random_tokens(300, f"p{index}").tolist(), greedy(20))
    engine.finish()
    assert tokens_of(engine.outputs[name]) == tokens


def test_a_request_of_the_models_full_length_fits_beside_pins(engine: Engine) -> None:
    from vllm_promptcache.blocks.wire import units_to_wire

    limit = engine.store.pins.limit
    assert limit == NUM_BLOCKS - 1 - MAX_MODEL_LEN // 32
    pinned = unit("pinned", (0, 32 * limit))
    engine.call("define", texts=units_to_wire([pinned]))
    assert engine.call("pin", units=[pinned.placement])["pinned"]
    engine.drain()
    (output,) = engine.ask([random_tokens(1000, "full").tolist()], greedy(24))
    assert len(tokens_of(output)) == 24
    (composed,) = engine.ask([simple("half", 480, 500)], greedy(40))
    assert len(tokens_of(composed)) == 40
    engine.call("unpin", units=[pinned.placement])
    engine.call("forget", units=[pinned.placement])


def behind_a_root(num_tokens: int) -> Plan:
    """A module whose context leaves a row over: it cannot be encoded in the blocks that it keeps."""
    root = unit("root", (0, 5))
    return plan(root, unit("huge", (5, 5 + num_tokens), context=[root]), new(5 + num_tokens, 10))


def test_what_there_is_no_room_to_reuse_is_computed(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    """Encoding takes such a unit's blocks twice: it would wait for ever, and everyone behind it."""
    neighbour, huge = engine.add(simple("neighbour")), behind_a_root(900)
    output, again = engine.ask([huge])[0], engine.ask([huge])[0]
    assert tokens_of(output) == tokens_of(again) == oracle(tiny_model, without_reuse(huge), 8)[0]
    report = report_of(output)
    assert (report["no_room"], report["tokens_new"], report["tokens_encoded"]) == (1, 915, 0)
    assert report_of(again)["tokens_found"] == 896  # what vLLM itself would find
    assert engine.outputs[neighbour].outputs[0].finish_reason == "length"


def test_a_unit_is_encoded_in_the_blocks_that_it_keeps(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    """Where nothing of its context stands before it in a block; also when it is preempted on the way."""
    huge = simple("in place", 900, 10)
    (output,) = engine.ask([huge])
    assert report_of(output)["tokens_encoded"] == 900
    assert tokens_of(output) == oracle(tiny_model, huge, 8)[0]
    (again,) = engine.ask([huge])
    assert tokens_of(again) == tokens_of(output)
    engine.reclaim_all()
    names = [engine.add(prompt) for prompt in (huge, simple("another in place", 900, 10))]
    engine.step()
    assert engine.llm_engine.reset_prefix_cache(reset_running_requests=True)
    engine.finish()
    assert tokens_of(engine.outputs[names[0]]) == tokens_of(output)


def test_what_can_never_be_encoded_is_not_warmed(engine: Engine) -> None:
    huge = behind_a_root(900)
    placements = [u.placement for u in huge.units]
    engine.call("define", texts=units_to_wire(huge.units))
    answer = engine.call("warm", units=placements)
    assert "57 KV blocks are needed" in answer["refused"]
    (output,) = engine.ask([simple("neighbour")])
    assert output.outputs[0].finish_reason == "length"
    assert not engine.call("warm", units=[])["refused"]
    engine.call("forget", units=placements)


def test_rows_beside_the_cache_are_bounded(engine: Engine) -> None:
    """Modules shorter than a block are nothing but rows."""
    limit = NUM_BLOCKS * 32 // 4
    for i in range(40):
        engine.ask([simple(f"short {i}", 20)])
    stats = engine.call("stats")
    assert limit - 20 <= stats["rows_kept"] <= limit
    engine.ask([random_tokens(20, "a step").tolist()])
    assert len(engine.kept_rows) == stats["units_resident"] == stats["rows_kept"] // 20


def test_pinned_rows_beside_the_cache_are_bounded(engine: Engine) -> None:
    many = [simple(f"short {i}", 31).units[0] for i in range(NUM_BLOCKS)]
    engine.call("define", texts=units_to_wire(many))
    placements = [u.placement for u in many]
    assert not engine.call("pin", units=placements)["pinned"]
    assert engine.call("pin", units=placements[:20])["pinned"]
    engine.drain()
    engine.call("unpin", units=placements)
    engine.call("forget", units=placements)


def test_who_is_tried_first_may_take_what_later_ones_wait_with(engine: Engine) -> None:
    """Also from one that arrived earlier, at another door, and stands behind it."""
    composed = simple("idle", 390, 300)
    engine.ask([composed], greedy(4))
    running = engine.add(random_tokens(600, "running").tolist(), greedy(30))
    while not engine.scheduler.running or engine.scheduler.running[0].num_output_tokens == 0:
        engine.step()
    first = engine.add(random_tokens(920, "first").tolist(), greedy(4))
    second = engine.add(composed, greedy(4), arrival_time=1.0)
    engine.finish()
    for name in (running, first, second):
        assert engine.outputs[name].outputs[0].finish_reason == "length"


@pytest.mark.parametrize("num_steps", range(12))
def test_aborts_at_every_moment(engine: Engine, num_steps: int) -> None:
    """While waiting for modules, while they are encoded, in the middle of a prompt, while generating."""
    prompts = [simple("aborted", 390, 300), simple("aborted", 390, 280, "other"), simple("kept", 60, 20)]
    names = [engine.add(prompt, greedy(6)) for prompt in prompts]
    for _ in range(num_steps):
        engine.step()
    engine.abort(*names[:2])
    engine.check()
    engine.step()
    engine.check()
    engine.finish()
    kept = engine.outputs[names[2]]
    assert kept.outputs[0].finish_reason == "length"
    engine.forget_everything()
    assert tokens_of(engine.ask([prompts[2]], greedy(6))[0]) == tokens_of(kept)
    assert tokens_of(engine.ask([prompts[1]], greedy(6))[0]) == tokens_of(
        engine.ask([prompts[1]], greedy(6))[0]
    )


def test_aborted_requests_leave_their_modules_to_others(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    """The first asker is aborted while the unit is encoded for both."""
    prompts = [simple("shared", 390), simple("shared", 390, question="other")]
    names = [engine.add(prompt, greedy(6)) for prompt in prompts]
    engine.step()
    engine.abort(names[0])
    engine.finish()
    assert tokens_of(engine.outputs[names[1]]) == oracle(tiny_model, prompts[1], 6)[0]
    assert len(engine.encoded) == 1


def test_everything_is_aborted_at_random(engine: Engine) -> None:
    randomly = random.Random(5)
    for _ in range(15):
        names = [engine.add(prompt, greedy(30)) for prompt in randomly.sample(modules(), 4)]
        for name in names:
            for _ in range(randomly.randrange(6)):
                engine.step()
            engine.abort(name)
            engine.check()


def test_an_encoding_preempted_in_its_last_step_takes_the_unit_back(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only priorities preempt a request that the step has a place for already."""
    prompt = simple("taken back", 150)
    settings = {"scheduling_policy": "priority", "long_prefill_token_threshold": 32}
    with serving(tiny_model, **settings) as engine:
        (expected,) = engine.ask([prompt], greedy(8))
        engine.forget_everything()
        late = engine.add(prompt, greedy(8), priority=5)
        engine.step()
        engine.add(random_tokens(20, "urgent").tolist(), greedy(30), priority=0)
        (key,) = engine.encoded
        allocate, taken_back = engine.manager.allocate_slots, 0

        def short(request: Any, *args: Any, **kwargs: Any) -> Any:
            """No blocks for the urgent request in the step in which the unit has become resident."""
            nonlocal taken_back
            unit = engine.store.known.by_key[key]
            is_urgent = request.priority == 0 and request in engine.scheduler.running
            if not taken_back and is_urgent and unit.residency is Residency.RESIDENT:
                taken_back += 1
                return None
            return allocate(request, *args, **kwargs)

        monkeypatch.setattr(engine.manager, "allocate_slots", short)
        residencies = []
        while not taken_back:
            engine.step()
            residencies.append(engine.store.known.by_key[key].residency)
            engine.check()
        assert residencies[-1] is Residency.ENCODING
        engine.finish()
        assert tokens_of(engine.outputs[late]) == tokens_of(expected)
        assert engine.encoded == [key]
