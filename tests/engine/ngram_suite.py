"""Speculation by n-grams; run by test_speculation.py in a process of its own."""

from __future__ import annotations

from pathlib import Path

from tests.engine.oracle import Oracle
from tests.engine.plans import random_tokens
from tests.engine.support import MAX_MODEL_LEN, greedy, serving, tokens_of
from tests.engine.test_speculation import ENDS, NUM_DRAFTS, PROMPTS, Drafts, check


def test_n_grams(tiny_model: Path, oracle: Oracle) -> None:
    """Answers of few different tokens repeat themselves, so that drafts are right now and then."""
    speculation = {
        "method": "ngram",
        "num_speculative_tokens": NUM_DRAFTS,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 3,
    }
    params = greedy(24, allowed_token_ids=[500, 501, 502])
    asked = [*PROMPTS, random_tokens(300, "plain").tolist()]
    with serving(tiny_model) as engine:
        expected = [tokens_of(output) for output in engine.ask(asked, params)]
    with serving(tiny_model, speculative_config=speculation) as engine:
        for prompt, tokens in zip(asked, expected, strict=True):
            drafts = Drafts(engine)
            for _ in range(2):
                (output,) = engine.ask([prompt], params)
                assert tokens_of(output) == tokens
            assert drafts.num_accepted > 0
        assert [tokens_of(output) for output in engine.ask(asked, params)] == expected
        check(engine, tiny_model, oracle, [*PROMPTS, *ENDS], 13)
        outputs = engine.ask(ENDS, params)
        for output, prompt in zip(outputs, ENDS, strict=True):
            assert len(tokens_of(output)) == min(24, MAX_MODEL_LEN - prompt.next_position)
