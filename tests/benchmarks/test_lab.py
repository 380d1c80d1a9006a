"""The laboratory's masks, against the oracle: what the engine can do as well must come out the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.laboratory.bench import Bench
from benchmarks.laboratory.encodings import Company
from benchmarks.laboratory.states import Model, Modules
from benchmarks.quality.prompts import PromptMaker
from benchmarks.quality.questions import LEFT_OUT, Question, among_others
from benchmarks.quality.ways import Way
from tests.benchmarks.test_quality_engine import PASSAGES, QUESTIONS, expected_logprobs
from tests.reference import load_reference_model
from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.layout.encoder import TextEncoder

WAYS = (
    *("full", "isolated", "context", "scaffold", "sequence", "context+tail", "sequence+tail"),
    *("isolated+link:5", "context+link:8", "context+link:8+tail"),
)


@pytest.mark.parametrize("share", LEFT_OUT)
def test_ways_that_the_engine_has(tiny_model: Path, share: str) -> None:
    maker = PromptMaker(TextEncoder(AutoTokenizer.from_pretrained(tiny_model)), 4096)
    asked, other = QUESTIONS[0], Question("other", PASSAGES[::-1], "?", ("x",))
    other = Question("other", tuple(type(p)(f"{p.title}!", p.text) for p in other.passages), "?", ("x",))
    (question,) = among_others([asked], [asked, other], share)
    reference, model = load_reference_model(tiny_model), Model(str(tiny_model), torch.float32)
    bench = Bench(model, Modules.of_question(maker, question), Company(np.arange(5)))
    gold = maker.answer_token_ids(asked)
    new = [s for s in maker.plan(question, "context").segments if not isinstance(s, CachedSegment)]
    token_ids = np.concatenate([np.asarray(s.token_ids) for s in new])
    for name in WAYS:
        states, num_renewed = bench.states(name)
        logprobs, answers = model.ask([states], [new[0].first_position], token_ids, gold, 3)
        prompt = maker.make(question, Way.read(name))
        expected = expected_logprobs(reference, prompt.plan, gold)[: len(gold)]
        assert float((logprobs[0] - expected).abs().max()) < 1e-3, name
        assert num_renewed == (0 if name == "full" else prompt.num_recomputed), name
        assert answers[0][0] == int(expected[0].argmax()), name
