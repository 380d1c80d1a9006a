"""A later turn of a conversation over the same modules finds the earlier turns' states."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.outputs import RequestOutput

from tests.engine.oracle import Oracle
from tests.engine.plans import cached, new, plan, random_tokens, unit
from tests.engine.support import Engine, SharedEngine, close_all, greedy, report_of, tokens_of
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


def ask(engine: Engine, prompt: Plan, num_tokens: int = 40, **more: object) -> RequestOutput:
    return engine.ask([prompt], greedy(num_tokens), **more)[0]


def num_found(output: RequestOutput) -> int:
    """New tokens whose states were in the prefix cache."""
    return report_of(output)["tokens_found"]


def test_turns_find_what_earlier_turns_computed(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompt = modules(new(333, 50))
    known = 0
    for turn in range(4):
        output = ask(engine, prompt)
        assert tokens_of(output) == oracle(tiny_model, prompt, 40)[0]
        # The last part of what is known is in no whole block.
        assert known - 3 * BLOCK < num_found(output) <= known
        known = prompt.num_new_tokens + 40
        prompt = longer(prompt, tokens_of(output) + random_tokens(25, f"turn {turn}").tolist())


def test_the_same_prompt_computes_no_more_than_a_block(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    """New text is found wherever it stands, first turn or not."""
    prompt = modules(new(333, 100))
    first, second = ask(engine, prompt), ask(engine, prompt)
    assert num_found(first) == 0
    assert num_found(second) == prompt.num_new_tokens - report_of(second)["tokens_new"]
    assert 1 <= report_of(second)["tokens_new"] <= BLOCK
    assert tokens_of(second) == tokens_of(first) == oracle(tiny_model, prompt, 40)[0]
    assert second.num_cached_tokens == len(prompt_token_ids(prompt)) - report_of(second)["tokens_new"]


def test_prompts_that_begin_alike_find_each_other_s_text(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    """What stands behind new text, and the module behind that, changes nothing of the text's states."""
    a, b, c = unit("a", (0, 45)), unit("b", (300, 400)), unit("c", (300, 380))
    text = new(45, 200)
    ask(engine, plan(a, text, b, new(400, 9)))
    for other in (
        plan(a, text, c, new(400, 9)),
        plan(a, text, new(500, 9)),
        plan(a, text, new(245, 50)),
    ):
        output = ask(engine, other)
        assert tokens_of(output) == oracle(tiny_model, other, 40)[0]
        assert 200 - BLOCK < num_found(output) < 200


def test_text_before_the_first_module_is_a_plain_prefix(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    """Tools, or a system text that is not the schema's: found by plain requests, and of them."""
    tools, a = new(0, 200, "tools"), unit("a", (200, 345))
    prompt = plan(tools, a, new(345, 20))
    plain = [*tools.token_ids, *random_tokens(50, "plain").tolist()]
    first = ask(engine, prompt)
    (behind,) = engine.ask([plain], greedy(4))
    assert behind.num_cached_tokens == 192 and num_found(first) == 0
    other = plan(new(0, 200, "tools"), unit("z", (210, 300)), new(300, 20))
    assert num_found(ask(engine, other)) == 192
    assert tokens_of(ask(engine, other)) == oracle(tiny_model, other, 40)[0]
    engine.forget_everything()
    engine.ask([plain], greedy(4))
    output = ask(engine, prompt)
    assert num_found(output) == 192
    assert tokens_of(output) == tokens_of(first) == oracle(tiny_model, prompt, 40)[0]
    assert num_found(ask(engine, prompt, cache_salt="another")) == 0


def test_without_reuse_a_prompt_is_a_plain_one(engine: Engine) -> None:
    """Also what is generated: a plain conversation goes on from a composed one."""
    everything = plan(new(0, 100, "all"))
    tokens = tokens_of(ask(engine, everything))
    (plain,) = engine.ask([[*prompt_token_ids(everything), *tokens, 7]], greedy(2))
    assert plain.num_cached_tokens == 128


@pytest.mark.parametrize("what", ["argument", "modules", "place", "tenant", "parts", "text"])
def test_other_conversations_find_nothing(
    engine: Engine, tiny_model: Path, oracle: Oracle, what: str
) -> None:
    """Anything that the states rest on makes it another conversation."""
    text = new(333, 100)
    first = modules(text)
    ask(engine, first)
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
    output = ask(engine, other, cache_salt=salt)
    assert tokens_of(output) == oracle(tiny_model, other, 40)[0]
    # What is new before it may be found: it rests on nothing that changed.
    before = {"text": 25, "modules": 25, "place": 25, "parts": 5}.get(what, 0)
    assert num_found(output) <= before


def test_many_conversations_at_once(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompts = [modules(new(333, 40 + 7 * i, f"{i}"), seed=str(i % 2)) for i in range(6)]
    for turn in range(2):
        names = [engine.add(prompt, greedy(20)) for prompt in prompts]
        engine.finish()
        for index, name in enumerate(names):
            tokens = tokens_of(engine.outputs[name])
            assert tokens == oracle(tiny_model, prompts[index], 20)[0]
            prompts[index] = longer(prompts[index], tokens + random_tokens(9, f"{turn}").tolist())


def test_found_blocks_survive_pressure_or_are_computed_again(engine: Engine) -> None:
    prompt = modules(new(333, 100))
    first = ask(engine, prompt)
    again = longer(prompt, [*tokens_of(first), 7, 8, 9])
    (expected,) = engine.ask([again], greedy(20))
    for index in range(30):
        engine.ask([random_tokens(2000, f"pressure {index}").tolist()], greedy(1))
    output = ask(engine, again, 20)
    assert tokens_of(output) == tokens_of(expected)
