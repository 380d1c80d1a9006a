"""Small units that see each other in a row are computed by one request: a row of a step, its context once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.oracle import Oracle
from tests.engine.plans import new, plan, random_tokens, unit
from tests.engine.support import (
    Engine,
    SharedEngine,
    close_all,
    greedy,
    largest_error,
    report_of,
    tokens_of,
)
from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.engine.encoding import MAX_TOKENS_TOGETHER

NUM_LETTERS = 150


@pytest.fixture(scope="module")
def shared_engine(tiny_model: Path) -> Iterator[SharedEngine]:
    """An engine that keeps records, and few blocks."""
    yield SharedEngine(tiny_model, prompt_cache={"host_gib": 0.1}, max_num_batched_tokens=600)
    close_all()


def in_sequence(first: int, lengths: list[int], seed: str) -> list[Unit]:
    """Units behind each other, each of which sees all before it."""
    units: list[Unit] = []
    for index, length in enumerate(lengths):
        units.append(unit(f"s{index}", (first, first + length), context=units, seed=seed))
        first += length
    return units


def letters(seed: str, number: int = NUM_LETTERS) -> list[Unit]:
    return in_sequence(0, [1] * number, seed)


def asked(units: list[Unit], seed: str) -> Plan:
    end = int(units[-1].position_ids[-1]) + 1
    return plan(*units, new(end, 4, seed))


def encodings_of_a_step(engine: Engine) -> dict[str, int]:
    """The tokens of the scheduler's own requests in the next step."""
    seen: dict[str, int] = {}
    schedule = engine.scheduler.schedule

    def spied(*args: object, **kwargs: object) -> object:
        output = schedule(*args, **kwargs)
        seen.update(output.num_scheduled_tokens)
        return output

    engine.scheduler.schedule = spied
    engine.step()
    engine.scheduler.schedule = schedule
    return {name: count for name, count in seen.items() if name.startswith("prompt-cache-encoding")}


def test_letters_take_one_row(engine: Engine) -> None:
    """And are each there then, for whoever wants some of them."""
    units = letters("one row")
    engine.add(asked(units, "one row"), greedy(1))
    assert list(encodings_of_a_step(engine).values()) == [NUM_LETTERS]
    engine.finish()
    (output,) = engine.ask([plan(units[3], units[77], new(NUM_LETTERS, 4))])
    assert report_of(output)["modules_resident"] == 2
    assert len(engine.encoded) == NUM_LETTERS


def test_many_letters_take_a_row_for_so_many_tokens(engine: Engine) -> None:
    """What was computed before is taken from where it is kept."""
    units = letters("many", 720)
    prompt = asked(units, "many")
    engine.add(prompt, greedy(1))
    assert sorted(encodings_of_a_step(engine).values()) == [600 - MAX_TOKENS_TOGETHER, MAX_TOKENS_TOGETHER]
    assert list(encodings_of_a_step(engine).values()) == [720 - 600]
    engine.finish()
    assert len(engine.encoded) == 720


@pytest.mark.parametrize("lengths", [[1] * 20, [31, 1, 31, 1, 31, 33, 1, 64, 2], [5, 40, 5, 5, 100, 3]])
def test_each_sees_what_it_is_to_see(
    engine: Engine, tiny_model: Path, oracle: Oracle, lengths: list[int]
) -> None:
    """At lengths around that of a block; what is left out was seen all the same."""
    units = in_sequence(0, lengths, f"exact {lengths}")
    for some in (units, units[::2], units[1::3], [units[-1]]):
        prompt = asked(some, "exact")
        tokens, logprobs = oracle(tiny_model, prompt, 4)
        (output,) = engine.ask([prompt], greedy(4, logprobs=5))
        assert tokens_of(output) == tokens
        assert largest_error(output, logprobs) < 1e-3


def test_what_stands_in_between_is_seen_by_those_behind_it(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    root = unit("root", (0, 10), (13, 50), (70, 75), seed="between")
    units = [unit("s0", (10, 13), context=[root], seed="between")]
    units.append(unit("s1", (50, 55), context=[root, *units], seed="between"))
    units.append(unit("s2", (55, 57), (75, 80), context=[root, *units], seed="between"))
    prompt = plan(root, *units, new(80, 4))
    tokens, logprobs = oracle(tiny_model, prompt, 4)
    engine.add(prompt, greedy(1))
    assert sorted(encodings_of_a_step(engine).values()) == [15, 52]
    engine.finish()
    (output,) = engine.ask([prompt], greedy(4, logprobs=5))
    assert tokens_of(output) == tokens
    assert largest_error(output, logprobs) < 1e-3


def test_what_would_see_too_much_is_computed_apart(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    """Behind a placeholder, behind one whose text ends behind it, and what does not see the one before."""
    seed = "apart"
    first = unit("first", (0, 4), holes=[(1, 2)], seed=seed)
    second = unit("second", (4, 6), (8, 10), context=[first], seed=seed)
    inside = unit("inside", (6, 8), context=[first, second], seed=seed)
    third = unit("third", (10, 11), context=[first], seed=seed)
    prompt = plan(first, second, inside, third, new(1, 1), new(11, 4))
    tokens, logprobs = oracle(tiny_model, prompt, 4)
    engine.add(prompt, greedy(1))
    assert sorted(encodings_of_a_step(engine).values()) == [1, 2, 4, 4]
    engine.finish()
    (output,) = engine.ask([prompt], greedy(4, logprobs=5))
    assert tokens_of(output) == tokens
    assert largest_error(output, logprobs) < 1e-3


def test_how_many_tokens_are_computed_together_is_bounded(engine: Engine) -> None:
    units = in_sequence(0, [20] * 40, "bounded")
    prompt = asked(units, "bounded")
    engine.add(prompt, greedy(1))
    tokens = encodings_of_a_step(engine)
    assert max(tokens.values()) <= MAX_TOKENS_TOGETHER
    engine.finish()
    assert len(engine.encoded) == 40


def test_a_preempted_row_is_computed_again(engine: Engine) -> None:
    units = in_sequence(0, [25] * 20, "preempted")
    prompt = asked(units, "preempted")
    (expected,) = engine.ask([prompt])
    engine.forget_everything()
    engine.scheduler.records.forget_all()
    name = engine.add(prompt)
    plain = engine.add(random_tokens(500, "beside").tolist(), greedy(1))
    engine.step()
    assert engine.llm_engine.has_unfinished_requests()
    assert engine.llm_engine.reset_prefix_cache(reset_running_requests=True)
    engine.finish()
    assert tokens_of(engine.outputs.pop(name)) == tokens_of(expected)
    assert engine.outputs.pop(plain).finished


def test_the_last_that_wants_any_of_them_ends_it(engine: Engine) -> None:
    """Who wants the first one has it, whoever asked for all; nobody, and nothing is computed."""
    units = letters("abandoned")
    engine.add(random_tokens(600, "before").tolist(), greedy(1))
    every, first = engine.add(asked(units, "a"), greedy(1)), engine.add(asked(units[:1], "b"), greedy(1))
    engine.step()
    engine.abort(every)
    engine.finish()
    assert engine.outputs.pop(first).finished
    units = letters("nobody")
    engine.add(random_tokens(600, "before it").tolist(), greedy(1))
    both = [engine.add(asked(units, "a"), greedy(1)), engine.add(asked(units[:1], "b"), greedy(1))]
    engine.step()
    engine.abort(*both)
    assert encodings_of_a_step(engine) == {}
    engine.finish()
    assert engine.call("stats")["units_encoding"] == 0


def test_pinned_letters_are_few_requests(engine: Engine) -> None:
    units = letters("pinned")
    engine.call("define", texts=units_to_wire(units))
    assert engine.call("pin", units=[u.placement for u in units])["pinned"]
    assert list(encodings_of_a_step(engine).values()) == [NUM_LETTERS]
    engine.drain()
    placements = [u.placement for u in units]
    assert {u["residency"] for u in engine.call("status", units=placements)["units"]} == {"resident"}
    engine.call("unpin", units=placements)
    engine.call("forget", units=placements)


def test_each_has_a_record_of_its_own(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    units = in_sequence(0, [1, 5, 31, 33, 2], "recorded")
    prompt = plan(units[1], units[3], new(72, 4))
    engine.ask([asked(units, "recorded")])
    for one in reversed(engine.store.known.by_key.copy().values()):
        engine.store.resident.discard(one.key)
    tokens, logprobs = oracle(tiny_model, prompt, 4)
    (output,) = engine.ask([prompt], greedy(4, logprobs=5))
    assert report_of(output)["modules_loaded"] == 2
    assert tokens_of(output) == tokens
    assert largest_error(output, logprobs) < 1e-3
