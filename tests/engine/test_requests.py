"""What a composed request can do, and that plain requests notice nothing of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.config import StructuredOutputsConfig
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.language import tokenizer_of
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
from vllm_promptcache.blocks.wire import prompt_token_ids
from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.contract.unit import Unit

PLAIN = [random_tokens(20 + 37 * i % 400, f"plain {i}").tolist() for i in range(50)]


@pytest.fixture(scope="module")
def shared_engine(tiny_model: Path) -> Iterator[SharedEngine]:
    """As everywhere; a random model would fill JSON with white space."""
    config = StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)
    yield SharedEngine(tiny_model, structured_outputs_config=config)
    close_all()


# -- sampling --------------------------------------------------------------------------------------


def test_logprobs_are_the_oracles(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    prompt = travel("logprobs")
    tokens, logprobs = oracle(tiny_model, prompt, 12)
    for count in (0, 1, 20):
        (output,) = engine.ask([prompt], greedy(12, logprobs=count))
        assert tokens_of(output) == tokens
        assert largest_error(output, logprobs) < 1e-3
        assert output.outputs[0].logprobs is not None
        assert all(len(by_token) in (count, count + 1, 1) for by_token in output.outputs[0].logprobs)


def test_units_that_stand_elsewhere_have_the_states_of_home_moved(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    """Two units in the other order, and one of them twice; each has seen the root as far before it."""
    root = unit("root", (0, 50))
    first, second = unit("first", (50, 150), context=[root]), unit("second", (50, 100), context=[root])
    moved = [CachedSegment(first, 0, 100, 150), CachedSegment(second, 0, 50, 260)]
    prompt = plan(root, second, *moved, new(110, 5), new(310, 9))
    tokens, logprobs = oracle(tiny_model, prompt, 8)
    (output,) = engine.ask([prompt], greedy(8, logprobs=20))
    assert tokens_of(output) == tokens
    assert largest_error(output, logprobs) < 1e-3
    assert tokens_of_modules(output) == 50 + 50 + 100 + 50


def test_several_samples_of_one_prompt(engine: Engine) -> None:
    prompt = travel("samples")
    params = SamplingParams(n=4, temperature=1.0, seed=3, max_tokens=8, ignore_eos=True, detokenize=False)
    (first,) = engine.ask([prompt], params)
    (second,) = engine.ask([prompt], params)
    samples = [tokens_of(first, i) for i in range(4)]
    assert len({tuple(s) for s in samples}) > 1
    assert samples == [tokens_of(second, i) for i in range(4)]
    assert len(engine.encoded) == len(prompt.units)


def test_seeds_give_what_the_same_seed_gives_in_another_batch(engine: Engine) -> None:
    prompt = travel("seeds")
    params = SamplingParams(temperature=0.9, top_p=0.9, seed=11, max_tokens=10, detokenize=False)
    (alone,) = engine.ask([prompt], params)
    among = engine.ask([prompt, *PLAIN[:3], travel("other")], params)
    assert tokens_of(among[0]) == tokens_of(alone)


def test_stop_strings_and_stop_tokens(engine: Engine, tiny_model: Path) -> None:
    prompt = travel("stop")
    (whole,) = engine.ask([prompt], SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))
    words = [tokenizer_of(tiny_model).decode([t]) for t in tokens_of(whole)]
    index = next(i for i in range(4, 16) if words[i].strip() and words[i] not in "".join(words[:i]))
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, stop=[words[index]])
    (stopped,) = engine.ask([prompt], params)
    assert stopped.outputs[0].finish_reason == "stop"
    assert stopped.outputs[0].text == whole.outputs[0].text.split(words[index])[0]
    (ended,) = engine.ask([prompt], greedy(16, stop_token_ids=[tokens_of(whole)[5]]))
    assert tokens_of(ended) == tokens_of(whole)[: tokens_of(whole).index(tokens_of(whole)[5]) + 1]


def test_penalties_and_bias_see_the_whole_prompt(engine: Engine) -> None:
    """They depend on which tokens a prompt holds, not on their order."""
    prompt = travel("penalties")
    params = greedy(8, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.3)
    (cold,) = engine.ask([prompt], params)
    (warm,) = engine.ask([prompt], params)
    assert tokens_of(cold) == tokens_of(warm)
    forced = tokens_of(engine.ask([prompt], greedy(3, allowed_token_ids=[700]))[0])
    assert forced == [700, 700, 700]


def test_structured_output(engine: Engine, tiny_model: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["ok", "kind"],
        "additionalProperties": False,
    }
    params = SamplingParams(
        temperature=0,
        max_tokens=60,
        structured_outputs=StructuredOutputsParams(json=schema),
    )
    outputs = engine.ask([travel("json"), PLAIN[0], travel("json")], params)
    for output in outputs:
        assert set(json.loads(output.outputs[0].text)) == {"ok", "kind"}
    assert tokens_of(outputs[0]) == tokens_of(outputs[2])


def test_the_prompt_is_shown_in_its_own_order(engine: Engine) -> None:
    prompt = travel("order")
    (output,) = engine.ask([prompt])
    assert output.prompt_token_ids == prompt_token_ids(prompt)


def test_prompt_logprobs_are_refused_with_reuse(engine: Engine) -> None:
    (output,) = engine.ask([travel("refused")], greedy(2, prompt_logprobs=1))
    assert output.outputs[0].finish_reason == "error"
    (plain,) = engine.ask([PLAIN[0]], greedy(2, prompt_logprobs=1))
    assert plain.prompt_logprobs is not None


# -- positions -------------------------------------------------------------------------------------


def test_positions_run_out_before_tokens_do(tiny_model: Path, oracle: Oracle) -> None:
    far = plan(unit("start", (0, 50)), unit("far", (480, 500)), new(500, 2))
    tokens, _ = oracle(tiny_model, far, 10)
    with serving(tiny_model, max_model_len=512, num_gpu_blocks_override=120) as engine:
        (output,) = engine.ask([far], greedy(100))
        assert tokens_of(output) == tokens
        assert output.outputs[0].finish_reason == "length"
        (last,) = engine.ask([plan(unit("last", (0, 510)), new(510, 1))], greedy(100))
        assert len(tokens_of(last)) == 1
        (beyond,) = engine.ask([plan(unit("start", (0, 50)), new(510, 2))], greedy(100))
        assert beyond.outputs[0].finish_reason == "error"


def test_positions_may_pass_the_number_of_tokens_that_fit(
    engine: Engine, tiny_model: Path, oracle: Oracle
) -> None:
    prompt = plan(unit("start", (0, 33)), new(33, 3), unit("far", (8000, 8100)), new(8150, 10))
    tokens, logprobs = oracle(tiny_model, prompt, 20)
    (output,) = engine.ask([prompt], greedy(20, logprobs=3))
    assert tokens_of(output) == tokens
    assert largest_error(output, logprobs) < 1e-3


# -- plain requests --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_answers(tiny_model: Path) -> list[list[int]]:
    """What a server without the plugin says."""
    with serving(tiny_model, plugin=False) as engine:
        return [tokens_of(o) for o in engine.ask(PLAIN, greedy(16))]


def test_plain_requests_say_the_same_with_the_plugin(engine: Engine, plain_answers: list[list[int]]) -> None:
    assert [tokens_of(o) for o in engine.ask(PLAIN, greedy(16))] == plain_answers


def test_plain_and_composed_requests_in_one_batch(
    engine: Engine, plain_answers: list[list[int]], tiny_model: Path, oracle: Oracle
) -> None:
    prompts = [travel(f"mixed {i}") for i in range(6)]
    names = []
    composed_names = []
    for index, tokens in enumerate(PLAIN):
        names.append(engine.add(tokens, greedy(16)))
        if index % 8 == 0:
            composed_names.append(engine.add(prompts[index // 8 % 6], greedy(16)))
            engine.step()
    engine.finish()
    assert [tokens_of(engine.outputs[n]) for n in names] == plain_answers
    for index, name in enumerate(composed_names):
        assert tokens_of(engine.outputs[name]) == oracle(tiny_model, prompts[index % 6], 16)[0]


def test_a_plain_prompt_with_a_modules_text_does_not_hit_its_blocks(engine: Engine, tiny_model: Path) -> None:
    module = unit("module", (0, 320))
    question = new(320, 20)
    prompt = plan(module, question)
    token_ids = prompt_token_ids(prompt)
    (composed,) = engine.ask([prompt])
    (plain,) = engine.ask([token_ids])
    assert plain.num_cached_tokens == 0
    assert tokens_of(plain) == tokens_of(composed)  # one module at the start: the same by definition
    (again,) = engine.ask([token_ids])
    assert again.num_cached_tokens == 320
    (composed_again,) = engine.ask([prompt])
    assert composed_again.num_cached_tokens == 320
    engine.forget_everything()
    (first,) = engine.ask([token_ids])
    (then,) = engine.ask([prompt])
    assert first.num_cached_tokens == 0
    assert then.num_cached_tokens == 0 and tokens_of_modules(then) == 320
    assert len(engine.encoded) == 1  # nor does a module take a plain request's blocks


def test_a_plain_prompt_does_not_hit_a_composed_requests_own_blocks(engine: Engine) -> None:
    """Neither the plain form of the whole prompt, nor its new text alone, nor what was generated."""
    text = new(40, 200)
    prompt = plan(unit("short", (0, 40)), text)
    (composed,) = engine.ask([prompt], greedy(64))
    for token_ids in (
        prompt_token_ids(prompt) + tokens_of(composed),
        list(text.token_ids),
        [*text.token_ids, *tokens_of(composed)],
    ):
        (plain,) = engine.ask([token_ids], greedy(1))
        assert plain.num_cached_tokens == 0
        engine.forget_everything()
        engine.ask([prompt], greedy(64))


def test_plain_requests_keep_their_prefix_cache(engine: Engine) -> None:
    token_ids = random_tokens(320, "prefix").tolist()
    engine.ask([token_ids], greedy(1))
    engine.ask([travel("between")])
    (output,) = engine.ask([[*token_ids, 5, 6, 7]], greedy(1))
    assert output.num_cached_tokens == 320


# -- many rows -------------------------------------------------------------------------------------


def test_more_rows_than_the_batch_has_requests(tiny_model: Path, oracle: Oracle) -> None:
    """Backends may size buffers for `max_num_seqs` rows."""
    units = [unit(f"u{i}", (100 * i, 100 * i + 32 + i)) for i in range(40)]
    texts = [new(100 * i + 80, 1 + i % 5) for i in range(40)]
    prompt = plan(*units, *texts)
    tokens, _ = oracle(tiny_model, prompt, 8)
    with serving(tiny_model, max_num_seqs=2) as engine:
        outputs = engine.ask([prompt] * 3, greedy(8))
    assert all(tokens_of(o) == tokens for o in outputs)


def test_text_around_a_module_without_states(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    """Nothing but placeholders before, nothing reused at all, one token reused."""
    placeholders = Unit("held", random_tokens(8, "h"), np.arange(8), np.arange(8) >= 7, ())
    prompts = [
        plan(placeholders, new(0, 5), new(20, 3)),
        plan(new(3, 7)),
        plan(unit("one", (9, 10)), new(10, 1)),
    ]
    for prompt in prompts:
        assert tokens_of(engine.ask([prompt], greedy(8))[0]) == oracle(tiny_model, prompt, 8)[0]


def test_one_module_and_one_token(engine: Engine, tiny_model: Path, oracle: Oracle) -> None:
    for num_tokens in (31, 32, 33, 64):
        prompt = simple(f"m{num_tokens}", num_tokens, 1)
        (output,) = engine.ask([prompt], greedy(8))
        assert tokens_of(output) == oracle(tiny_model, prompt, 8)[0]
        assert tokens_of_modules(output) == num_tokens


def test_a_seed_gives_the_same_tokens_however_its_prompt_is_cut(tiny_model: Path) -> None:
    """What is sampled behind a chunk is discarded, and the generator is wound back: on a CPU by its state."""
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=8)
    prompts = [simple("seeded", 150, 120), PLAIN[1], random_tokens(300, "seeded").tolist()]
    found = []
    for num_tokens in (2048, 64):
        with serving(tiny_model, max_num_batched_tokens=num_tokens, max_num_seqs=8) as engine:
            found.append([[tokens_of(output) for output in engine.ask([one], params)] for one in prompts])
    assert found[0] == found[1]
