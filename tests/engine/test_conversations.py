"""A later turn of a conversation over the same modules finds the earlier turns' states."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.outputs import RequestOutput

from tests.engine.oracle import Oracle
from tests.engine.plans import cached, new, plan, random_tokens, unit
from tests.engine.support import Engine, SharedEngine, close_all, composed, greedy, tokens_of
from vllm_promptcache.blocks.wire import prompt_token_ids
from vllm_promptcache.contract.plan import NewSegment, Plan

BLOCK = 32


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def shared_engine(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[SharedEngine]:
    yield SharedEngine(tiny_model, force_async=request.param)
    close_all()


def modules(*more: NewSegment, seed: str = "") -> Plan:
    root = unit("root", (0, 45), seed=seed)
    a = unit("a", (45, 160), context=[root], holes=[(100, 110)], seed=seed)
    b = unit("b", (200, 333), context=[root], seed=seed)
    return plan(root, a, b, new(103, 5, f"argument{seed}"), new(165, 20), *more)


def longer(prompt: Plan, token_ids: list[int]) -> Plan:
    """The same prompt with more new tokens at its end."""
    *segments, last = prompt.segments
    assert isinstance(last, NewSegment)
    last = dataclasses.replace(last, token_ids=[*last.token_ids, *token_ids])
    return dataclasses.replace(prompt, segments=(*segments, last))


def ask(engine: Engine, prompt: Plan, history: int, num_tokens: int = 40, **more: object) -> RequestOutput:
    params = composed(greedy(num_tokens), prompt, num_history_tokens=history)
    name = engine.add(prompt_token_ids(prompt), params, **more)
    engine.finish()
    return engine.outputs.pop(name)


def test_turns_find_what_earlier_turns_computed(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompt = modules(new(333, 50))
    history = 0
    for turn in range(4):
        output = ask(engine, prompt, history)
        assert tokens_of(output) == oracle(tiny_model, prompt, 40)[0]
        found = output.num_cached_tokens - prompt.num_cached_tokens
        assert found >= 0
        if turn:
            assert history - found < 3 * BLOCK  # the last part of the history is in no whole block
        else:
            assert found == 0
        history = prompt.num_new_tokens + 40
        prompt = longer(prompt, tokens_of(output) + random_tokens(25, f"turn {turn}").tolist())
        history = min(history, prompt.num_new_tokens - 1)


def test_what_is_not_said_to_be_history_is_computed(engine: Engine) -> None:
    prompt = modules(new(333, 100))
    first = ask(engine, prompt, 0)
    second = ask(engine, prompt, 0)
    assert second.num_cached_tokens == prompt.num_cached_tokens
    assert tokens_of(second) == tokens_of(first)


def test_the_same_prompt_as_history(engine: Engine) -> None:
    prompt = modules(new(333, 100))
    first = ask(engine, prompt, 0)
    second = ask(engine, prompt, prompt.num_new_tokens)
    assert second.num_cached_tokens > prompt.num_cached_tokens + 64
    assert tokens_of(second) == tokens_of(first)


@pytest.mark.parametrize("what", ["argument", "modules", "place", "tenant", "parts", "text"])
def test_other_conversations_find_nothing(
    engine: Engine, tiny_model: Path, oracle: Oracle, what: str
) -> None:
    """Anything that the states rest on makes it another conversation."""
    text = new(333, 100)
    first = modules(text)
    ask(engine, first, 0)
    root, a, b = first.units
    argument, between = new(103, 5, "argument"), new(165, 20)
    other = {
        "argument": plan(root, a, b, new(103, 5, "else"), between, text),
        "modules": plan(root, a, argument, between, text),
        "place": plan(
            root, a, b, argument, between, dataclasses.replace(text, first_position=text.first_position + 1)
        ),
        "tenant": first,
        "parts": plan(root, cached(a)[0], b, argument, between, text),
        "text": plan(root, a, b, argument, between, new(333, 100, "else")),
    }[what]
    salt = "tenant" if what == "tenant" else None
    output = ask(engine, other, other.num_new_tokens, cache_salt=salt)
    assert tokens_of(output) == oracle(tiny_model, other, 40)[0]
    # Blocks before the changed text may be found: they rest on nothing that changed.
    before = {"text": 2 * BLOCK, "argument": BLOCK}.get(what, 0)
    assert output.num_cached_tokens - other.num_cached_tokens <= before


def test_many_conversations_at_once(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompts = [modules(new(333, 40 + 7 * i, f"{i}"), seed=str(i % 2)) for i in range(6)]
    history = [0] * 6
    for turn in range(2):
        names = [
            engine.add(prompt_token_ids(p), composed(greedy(20), p, num_history_tokens=h))
            for p, h in zip(prompts, history, strict=True)
        ]
        engine.finish()
        for index, name in enumerate(names):
            tokens = tokens_of(engine.outputs[name])
            assert tokens == oracle(tiny_model, prompts[index], 20)[0]
            history[index] = prompts[index].num_new_tokens + 20
            prompts[index] = longer(prompts[index], tokens + random_tokens(9, f"{turn}").tolist())


def test_found_blocks_survive_pressure_or_are_computed_again(engine: Engine) -> None:
    prompt = modules(new(333, 100))
    first = ask(engine, prompt, 0)
    again = longer(prompt, [*tokens_of(first), 7, 8, 9])
    (expected,) = engine.ask([again], greedy(20))
    for index in range(30):
        engine.ask([random_tokens(2000, f"pressure {index}").tolist()], greedy(1))
    output = ask(engine, again, prompt.num_new_tokens + 40, 20)
    assert tokens_of(output) == tokens_of(expected)
