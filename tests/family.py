"""One model family against Transformers: ``python -m tests.family NAME…`` prints the worst deviations."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from tests.engine.plans import members, plan, random_tokens, travel, whole_blocks
from tests.families import FAMILIES, Family
from tests.reference import greedy as reference_greedy
from tests.reference import greedy_plain, load_reference_model
from vllm_promptcache.blocks.wire import prompt_token_ids
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import NewSegment, Plan
from vllm_promptcache.repairs.plain import plain_prompt
from vllm_promptcache.repairs.repaired import without_reuse

WAYS = ("cold", "warm", "moved", "reuse off")
NUM_TOKENS = 8
MAX_MODEL_LEN = 4096


def deviations(family: Family) -> dict[str, float]:
    """The largest difference of a log-probability from the reference's: asked cold, warm, with a module that
    stands elsewhere than it was encoded (``moved``), with reuse off, and of plain prompts (``control``),
    which is vLLM's own.

    Raises:
        AssertionError: modules gave another number of tokens than the plans say.
    """
    composed = [travel(), whole_blocks()]
    asked: dict[str, Sequence[Plan | list[int]]] = {"cold": composed, "warm": composed}
    asked |= {"moved": [members(1, 2)], "reuse off": [without_reuse(prompt) for prompt in composed]}
    plain = [prompt_token_ids(without_reuse(prompt)) for prompt in composed]
    asked["control"] = [random_tokens(600, "control").tolist(), *plain]
    if family.is_recurrent:
        asked = {way: [_as_asked(prompt) for prompt in prompts] for way, prompts in asked.items()}
    model = family.model()
    loaded = load_reference_model(model)
    _reference = _plain_reference if family.is_recurrent else _composed_reference
    expected = {
        way: [_reference(loaded, prompt) for prompt in prompts]
        for way, prompts in asked.items()
        if way != "warm"
    }
    expected["warm"] = expected["cold"]
    del loaded
    from tests.engine.support import greedy, largest_error, serving, tokens_of_modules

    settings = {"max_model_len": MAX_MODEL_LEN, "max_num_batched_tokens": MAX_MODEL_LEN} | family.settings
    found: dict[str, float] = {}
    counts: dict[str, int] = {}
    with serving(model, **settings) as engine:
        for way, prompts in asked.items():
            outputs = engine.ask(prompts, greedy(NUM_TOKENS, logprobs=5))
            found[way] = max(map(largest_error, outputs, expected[way]))
            if way in WAYS:
                counts[way] = sum(map(tokens_of_modules, outputs))
    wanted = {way: sum(p.num_cached_tokens for p in asked[way] if isinstance(p, Plan)) for way in WAYS}
    assert counts == wanted, (counts, wanted, found)
    return found


def _as_asked(prompt: Plan | list[int]) -> Plan | list[int]:
    """A prompt as the front end asks it of a model with recurrent layers."""
    return plain_prompt(prompt) if isinstance(prompt, Plan) else prompt


def _plain_reference(model: Any, prompt: Plan | list[int]) -> Any:
    token_ids = prompt_token_ids(prompt) if isinstance(prompt, Plan) else prompt
    return greedy_plain(model, token_ids, NUM_TOKENS)


def _composed_reference(model: Any, prompt: Plan | list[int]) -> Any:
    as_plan = prompt if isinstance(prompt, Plan) else plan(NewSegment(tuple(prompt), 0, "control"))
    return reference_greedy(model, plan_to_json(as_plan), NUM_TOKENS)[1]


def main(names: list[str]) -> None:
    for name in names:
        try:
            found: dict[str, Any] = dict(deviations(FAMILIES[name]))
        except Exception as error:  # the next family is another model
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"[:300]}
        print("FAMILY " + json.dumps([name, found]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
