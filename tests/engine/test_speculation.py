"""Speculative decoding: answers stay what they are, and drafts for composed requests are as good as any."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.oracle import Oracle
from tests.engine.plans import members, new, plan, random_tokens, simple, travel, unit
from tests.engine.support import MAX_MODEL_LEN, Engine, greedy, largest_error, serving, tokens_of
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.repairs.repaired import without_reuse

ROOT = Path(__file__).parents[2]
NUM_DRAFTS = 3
LAST = MAX_MODEL_LEN - 1
PROMPTS = [
    travel(),
    simple("a"),
    plan(unit("a", (0, 130)), new(130, 3), unit("b", (200, 330)), new(400, 9)),
    plan(new(0, 40), unit("c", (300, 460)), new(600, 70), unit("d", (700, 701)), new(701, 1)),
    members(1, 2, 3),
    members(3, 1, 2),
]
# Positions run out long before tokens do, in the middle of drafts or just behind the prompt.
ENDS = [plan(unit("end", (0, 100)), new(LAST - 10 - left, 10)) for left in (0, 1, 2, 5, 13)]


class Drafts:
    """The drafts that an engine verifies, and how many of them are accepted."""

    def __init__(self, engine: Engine):
        self.verified: list[list[int]] = []
        self.num_accepted = 0
        update = engine.scheduler.update_from_output

        def update_from_output(scheduled: Any, output: Any) -> Any:
            for request_id, drafts in scheduled.scheduled_spec_decode_tokens.items():
                place = output.req_id_to_index.get(request_id)
                if place is not None and request_id in engine.scheduler.requests:
                    sampled = output.sampled_token_ids[place]
                    self.verified.append(list(drafts))
                    self.num_accepted += max(len(sampled) - 1, 0)
            return update(scheduled, output)

        engine.scheduler.update_from_output = update_from_output


def check(engine: Engine, model: Path, oracle: Oracle, prompts: Sequence[Plan], num_tokens: int) -> None:
    """Cold and warm, answers are the oracle's; positions may run out before ``num_tokens``."""
    for _ in range(2):
        outputs = engine.ask(prompts, greedy(num_tokens, logprobs=2))
        for output, prompt in zip(outputs, prompts, strict=True):
            tokens, logprobs = oracle(model, prompt, min(num_tokens, MAX_MODEL_LEN - prompt.next_position))
            assert tokens_of(output) == tokens
            assert largest_error(output, logprobs) < 1e-3


@pytest.mark.parametrize(
    "settings",
    [{}, {"force_async": True}, {"max_num_batched_tokens": 101, "max_num_seqs": 16}],
    ids=["at-once", "asynchronous", "chunks"],
)
def test_a_draft_model_that_is_the_model_itself(
    tiny_model: Path, oracle: Oracle, settings: dict[str, Any]
) -> None:
    """It drafts what the model says if, and only if, it sees what the model sees: states of modules, edges
    and new text in the middle, at their positions."""
    speculation = {"method": "draft_model", "model": str(tiny_model), "num_speculative_tokens": NUM_DRAFTS}
    with serving(tiny_model, speculative_config=speculation, **settings) as engine:
        drafts = Drafts(engine)
        check(engine, tiny_model, oracle, PROMPTS, 13)
        # A first token, then three rounds of three drafts and one token more.
        assert drafts.num_accepted == len(PROMPTS) * 2 * 3 * NUM_DRAFTS
        plain = random_tokens(300, "plain").tolist()
        engine.ask([plain], greedy(13))
        assert drafts.num_accepted == (len(PROMPTS) * 2 + 1) * 3 * NUM_DRAFTS
        check(engine, tiny_model, oracle, ENDS, 13)


@pytest.mark.timeout(300)
def test_n_grams() -> None:
    """In a process of its own: vLLM cannot start an engine where its n-gram proposer has loaded numba."""
    run = [sys.executable, "-m", "pytest", "-q", "tests/engine/ngram_suite.py"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def write_eagle(model: Path, folder: Path) -> Path:
    """An EAGLE head with the model's first layer and a random projection: its drafts are worth nothing."""
    folder.mkdir()
    weights = {"fc.weight": torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) / 11}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.startswith("model.layers.0.") and "input_layernorm" not in name:
            # What it attends to has to matter: else it would draft the same whatever it sees.
            weights[name.removeprefix("model.")] = weight * (30 if "o_proj" in name else 1)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((model / "config.json").read_text()) | {"num_hidden_layers": 1}
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_eagle(tiny_model: Path, oracle: Oracle, tmp_path: Path) -> None:
    """Behind a module that nothing stands before, drafts are those that full prefill gives: but for the state
    of the module's last token, which knows the token behind it."""
    speculation = {
        "method": "eagle",
        "model": str(write_eagle(tiny_model, tmp_path / "eagle")),
        "num_speculative_tokens": NUM_DRAFTS,
    }
    with serving(tiny_model, speculative_config=speculation) as engine:
        check(engine, tiny_model, oracle, [*PROMPTS, *ENDS], 13)
        for prompt in (simple("x", 500), plan(unit("y", (0, 500)), new(900, 9))):
            drafted = drafts_with_and_without_reuse(engine, prompt, 24)
            same = sum(a == b for a, b in zip(*drafted, strict=False))
            assert same >= 0.9 * min(map(len, drafted)), drafted


def drafts_with_and_without_reuse(engine: Engine, prompt: Plan, num_tokens: int) -> list[list[int]]:
    """All drafts that are verified in a prompt's answer, warm, and where all of it is computed."""
    heard = []
    engine.ask([prompt], greedy(1))
    for asked in (prompt, without_reuse(prompt)):
        drafts = Drafts(engine)
        engine.ask([asked], greedy(num_tokens))
        heard.append([draft for drafts in drafts.verified for draft in drafts])
    return heard
