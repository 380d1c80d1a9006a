"""One model family against Transformers: ``python -m tests.family NAME…`` prints the worst deviations."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.engine.plans import plan, random_tokens, travel
from tests.families import FAMILIES, Family
from tests.reference import greedy as reference_greedy
from tests.reference import load_reference_model
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import NewSegment, Plan
from vllm_promptcache.repairs.repaired import without_reuse

NUM_TOKENS = 8
MAX_MODEL_LEN = 4096


def deviations(family: Family) -> dict[str, float]:
    """The largest difference of a log-probability from the reference's: asked cold, warm, with reuse off, and
    of a plain prompt, which is vLLM's own.

    Raises:
        AssertionError: modules gave another number of tokens than the plan says.
    """
    composed = travel()
    plain = random_tokens(600, "control").tolist()
    asked: dict[str, Plan | list[int]] = {"cold": composed, "warm": composed}
    asked |= {"reuse off": without_reuse(composed), "control": plain}
    model = family.model()
    loaded = load_reference_model(model)
    expected = {way: _reference(loaded, prompt) for way, prompt in asked.items() if way != "warm"}
    expected["warm"] = expected["cold"]
    del loaded
    from tests.engine.support import greedy, largest_error, serving, tokens_of_modules

    settings = {"max_model_len": MAX_MODEL_LEN, "max_num_batched_tokens": MAX_MODEL_LEN} | family.settings
    found: dict[str, float] = {}
    counts: dict[str, int] = {}
    with serving(model, **settings) as engine:
        for way, prompt in asked.items():
            (output,) = engine.ask([prompt], greedy(NUM_TOKENS, logprobs=5))
            found[way] = largest_error(output, expected[way])
            if isinstance(prompt, Plan):
                counts[way] = tokens_of_modules(output)
    num_tokens = composed.num_cached_tokens
    assert counts == {"cold": num_tokens, "warm": num_tokens, "reuse off": 0}, (counts, found)
    return found


def _reference(model: Any, prompt: Plan | list[int]) -> Any:
    as_plan = prompt if isinstance(prompt, Plan) else plan(NewSegment(tuple(prompt), 0, "control"))
    return reference_greedy(model, plan_to_json(as_plan), NUM_TOKENS)[1]


def main(names: list[str]) -> None:
    for name in names:
        try:
            found: dict[str, Any] = dict(deviations(FAMILIES[name]))
        except Exception as error:  # the next family is another model
            found = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"[:300]}
        print("FAMILY " + json.dumps([name, found]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
