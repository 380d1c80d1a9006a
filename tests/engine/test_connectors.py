"""KV connectors beside modules: plain prompts use them, nothing of modules gets under a plain key."""

from __future__ import annotations

import os
from pathlib import Path

from vllm.config import KVTransferConfig
from vllm.outputs import RequestOutput

from tests.engine import telling_connector
from tests.engine.oracle import Oracle
from tests.engine.plans import members, random_tokens, simple, travel
from tests.engine.support import Engine, greedy, largest_error, serving, tokens_of
from vllm_promptcache.blocks.wire import prompt_token_ids
from vllm_promptcache.contract.plan import Plan

PROMPTS = [travel(), simple("a"), members(1, 2), members(2, 1)]


def test_plain_prompts_use_a_connector_and_composed_ones_do_not(
    tiny_model: Path, oracle: Oracle, tmp_path: Path
) -> None:
    config = KVTransferConfig(
        kv_connector="TellingConnector",
        kv_connector_module_path="tests.engine.telling_connector",
        kv_role="kv_both",
        kv_connector_extra_config={"shared_storage_path": str(tmp_path)},
    )
    telling_connector.told.clear()
    telling_connector.loaded.clear()
    plain = random_tokens(200, "plain").tolist()
    # The very text of composed prompts, in position order and as vLLM has it.
    texts = [prompt_token_ids(prompt) for prompt in PROMPTS]
    with serving(tiny_model, kv_transfer_config=config, max_num_batched_tokens=8192) as engine:
        names = [engine.add(prompt, greedy(8, logprobs=2)) for prompt in PROMPTS]
        name = engine.add(plain)
        engine.finish()
        first = tokens_of(engine.outputs[name])
        assert {told.rsplit("-", 1)[0] for told in telling_connector.told} == {name}  # vLLM adds to it
        for composed, prompt in zip(names, PROMPTS, strict=True):
            tokens, logprobs = oracle(tiny_model, prompt, 8)
            assert largest_error(engine.outputs[composed], logprobs) < 1e-3
            assert tokens_of(engine.outputs[composed]) == tokens
        assert len(os.listdir(tmp_path)) == 1
        assert sum(telling_connector.loaded) == 0
        engine.forget_everything()
        answers = engine.ask([plain, *texts])
        assert sum(telling_connector.loaded) > 0
        assert tokens_of(answers[0]) == first
        engine.forget_everything()
        again = engine.ask(PROMPTS, greedy(8))
        for output, prompt in zip(again, PROMPTS, strict=True):
            assert tokens_of(output) == oracle(tiny_model, prompt, 8)[0]
    with serving(tiny_model) as engine:
        assert [tokens_of(o) for o in engine.ask(texts)] == [tokens_of(o) for o in answers[1:]]


def answer(engine: Engine, prompt: Plan | list[int]) -> RequestOutput:
    """Without waiting for what is never stored."""
    name = engine.add(prompt, greedy(8))
    for _ in range(100):
        if name in engine.outputs:
            break
        engine.step()
    return engine.outputs.pop(name)


def test_blocks_that_are_about_to_be_stored_are_not_written_over(tiny_model: Path, oracle: Oracle) -> None:
    """What a request left is stored after it has ended. A composed request, and a unit, that get its blocks
    have to wait for that, though the connector does not know of them."""
    config = KVTransferConfig(
        kv_connector="SchedulersOffloadingConnector",
        kv_connector_module_path="tests.engine.telling_connector",
        kv_role="kv_both",
        kv_connector_extra_config={"cpu_bytes_to_use": 1 << 26},
    )
    telling_connector.told.clear()
    telling_connector.stored.clear()
    telling_connector.flushed.clear()
    settings = {"num_gpu_blocks_override": 40, "max_model_len": 1024, "max_num_batched_tokens": 1024}
    with serving(tiny_model, kv_transfer_config=config, **settings) as engine:
        answer(engine, random_tokens(960, "plain").tolist())
        jobs = set().union(*telling_connector.stored)
        assert jobs and not set().union(*telling_connector.flushed)
        num_told = len(telling_connector.told)
        prompt = simple("module", 600, 300)
        assert tokens_of(answer(engine, prompt)) == oracle(tiny_model, prompt, 8)[0]
        assert len(telling_connector.told) == num_told  # of nothing
        assert jobs & set().union(*telling_connector.flushed)
