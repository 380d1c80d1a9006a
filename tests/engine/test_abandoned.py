"""Work belongs to whoever asks for it: with the last of them it ends, and it keeps nobody waiting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.plans import new, plan, random_tokens, unit
from tests.engine.support import Engine, SharedEngine, close_all, greedy, report_of, tokens_of
from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.engine.scheduler import MAX_BACKGROUND_UNITS

BUDGET = 256


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def shared_engine(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[SharedEngine]:
    """An engine whose steps are small: what is encoded takes many of them."""
    yield SharedEngine(tiny_model, max_num_batched_tokens=BUDGET, force_async=request.param)
    close_all()


def seven_modules(seed: str) -> Plan:
    root = unit("root", (0, 50), seed=seed)
    modules = [unit(f"m{i}", (50 + 300 * i, 350 + 300 * i), context=[root], seed=seed) for i in range(7)]
    return plan(root, *modules, new(2150, 10, seed))


def scheduled(engine: Engine) -> dict[str, int]:
    """The tokens of one step by request; encodings are the scheduler's own."""
    seen: dict[str, int] = {}
    schedule = engine.scheduler.schedule

    def spied(*args: object, **kwargs: object) -> object:
        output = schedule(*args, **kwargs)
        seen.update(output.num_scheduled_tokens)
        return output

    engine.scheduler.schedule = spied
    engine.step()
    engine.scheduler.schedule = schedule
    return seen


def num_encoding_tokens(tokens: dict[str, int]) -> int:
    return sum(count for name, count in tokens.items() if name.startswith("prompt-cache-encoding"))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_abandoned_requests_take_their_encodings_with_them(engine: Engine, num_steps: int) -> None:
    """Also those that were never scheduled, and those of contexts."""
    names = [engine.add(seven_modules(f"abandoned {i}")) for i in range(10)]
    for _ in range(num_steps):
        engine.step()
    engine.abort(*names)
    plain = engine.add(random_tokens(200, "plain").tolist(), greedy(1))
    tokens = scheduled(engine)
    assert num_encoding_tokens(tokens) == 0
    assert sum(tokens.values()) == 200
    engine.finish()
    assert engine.outputs.pop(plain).finished
    assert engine.call("stats")["units_encoding"] == 0


def test_what_another_still_waits_for_goes_on(engine: Engine) -> None:
    (expected,) = engine.ask([seven_modules("shared")])
    engine.forget_everything()
    first, second = engine.add(seven_modules("shared")), engine.add(seven_modules("shared"))
    engine.step()
    num_begun = len(engine.encoded)
    engine.abort(first)
    engine.finish()
    assert len(engine.encoded) == num_begun == 8
    assert tokens_of(engine.outputs[second]) == tokens_of(expected)


def test_encoding_stops_with_its_schema(engine: Engine) -> None:
    prompt = seven_modules("deleted")
    placements = [u.placement for u in prompt.units]
    engine.call("define", texts=units_to_wire(prompt.units))
    assert engine.call("pin", units=placements)["pinned"]
    engine.step()
    engine.call("unpin", units=placements)
    engine.call("forget", units=placements)
    assert num_encoding_tokens(scheduled(engine)) == 0
    engine.drain()
    assert engine.call("stats")["units_known"] == 0


@pytest.mark.parametrize("operation", ["pin", "warm"])
def test_a_pin_takes_its_work_back(engine: Engine, operation: str) -> None:
    prompt = seven_modules("taken back")
    placements = [u.placement for u in prompt.units]
    engine.call("define", texts=units_to_wire(prompt.units))
    engine.call(operation, units=placements)
    engine.step()
    engine.call("unpin", units=placements)
    assert num_encoding_tokens(scheduled(engine)) == 0
    engine.drain()
    assert engine.call("stats")["units_encoding"] == 0
    engine.call("forget", units=placements)


def test_work_that_nobody_waits_for_lets_others_in(engine: Engine) -> None:
    """A plain request has a step's tokens at once, and a composed one has what it needs encoded first."""
    units = [unit(f"w{i}", (0, 150)) for i in range(80)]
    engine.call("define", texts=units_to_wire(units))
    engine.call("warm", units=[u.placement for u in units])
    assert engine.call("stats")["units_encoding"] == 80
    engine.step()
    assert len(engine.encoded) <= MAX_BACKGROUND_UNITS
    plain = engine.add(random_tokens(BUDGET, "plain").tolist(), greedy(1))
    tokens = scheduled(engine)
    assert (num_encoding_tokens(tokens), sum(tokens.values())) == (0, BUDGET)
    prompt = plan(units[-1], new(150, 10))
    composed = engine.add(prompt, greedy(1))
    for _ in range(3):
        engine.step()
    assert {plain, composed} <= engine.outputs.keys()
    assert report_of(engine.outputs[composed])["modules_encoded"] == 1
    assert engine.call("stats")["units_encoding"] > 60
    engine.drain()
    assert engine.call("stats")["units_encoding"] == 0
    assert len(engine.encoded) == 80
    engine.call("forget", units=[u.placement for u in units])


def test_what_is_needed_now_is_taken_from_the_background(engine: Engine) -> None:
    units = [unit(f"b{i}", (0, 600)) for i in range(12)]
    engine.call("define", texts=units_to_wire(units))
    engine.call("warm", units=[u.placement for u in units])
    engine.step()
    composed = engine.add(plan(units[9], new(600, 10)), greedy(1))
    for _ in range(5):
        engine.step()
    assert composed in engine.outputs
    assert report_of(engine.outputs[composed])["modules_encoded"] == 0
    engine.drain()
    assert len(engine.encoded) == 12
    engine.call("forget", units=[u.placement for u in units])


def test_who_needs_little_does_not_wait_for_who_needs_much(engine: Engine) -> None:
    """A step has room for 64 requests, and 200 encodings stand before the two that came later."""
    letters = [unit(f"l{i}", (i, i + 1), seed="much") for i in range(200)]
    much = engine.add(plan(*letters, new(200, 4)), greedy(1))
    plain = engine.add(random_tokens(BUDGET // 4, "little").tolist(), greedy(1))
    little = engine.add(plan(unit("little", (0, 40)), new(40, 4)), greedy(1))
    engine.step()
    engine.step()  # asynchronously, a step's outputs come one later
    assert {plain, little} <= engine.outputs.keys() and much not in engine.outputs
    assert len(engine.encoded) == 201
    for _ in range(8):
        engine.step()
    assert much in engine.outputs


def test_who_needs_much_gets_on_while_others_come(engine: Engine) -> None:
    units = [unit(f"u{i}", (60 * i, 60 * i + 60), seed="gets on") for i in range(20)]
    much = engine.add(plan(*units, new(1200, 4)), greedy(1))
    for i in range(40):  # what is left of a step's tokens by those who run is at first for who came first
        engine.add(random_tokens(BUDGET, f"on {i}").tolist(), greedy(1))
        engine.step()
    assert much in engine.outputs


def test_small_units_in_sequence_are_encoded_together(engine: Engine) -> None:
    """Each sees all before it: as many encodings as units, all in the first step."""
    units: list[Unit] = []
    for i in range(16):
        units.append(unit(f"s{i}", (i, i + 1), context=units, seed="small"))
    engine.add(plan(*units, new(16, 4)), greedy(1))
    engine.step()
    assert len(engine.encoded) == 16
    engine.finish()
    assert engine.call("stats")["units_encoding"] == 0
