"""Run by test_two_workers.py in a process of its own: serves plans on two workers, prints answers."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.engine.language import plan_named
from tests.engine.plans import members, travel
from vllm_promptcache.blocks.wire import plan_to_wire, prompt_token_ids
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.repair import Repair
from vllm_promptcache.repairs.repaired import repaired

NAMES = ("parameter-full", "scaffold-whole", "blocks-65", "text-fills-gap")
NUM_TOKENS = 16


def plans(model: Path) -> list[Plan]:
    linked = repaired(travel(), Repair.parse("link:5+tail"))
    moved = [members(1, 2, 3), members(3, 1, 2), members(2)]
    return [travel(), linked, *(plan_named(name, model) for name in NAMES), *moved]


def main(model: str, folder: str, kind: str) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model=model,
        **{f"{kind}_parallel_size": 2},
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=8192,
        num_gpu_blocks_override=400,
        kv_cache_memory_bytes=1 << 27,
        max_num_batched_tokens=101,
        max_num_seqs=16,
        additional_config={"prompt_cache": {"dir": folder}},
    )
    # vLLM's workers for CPUs have no room for what another one sends until a first batch has made it.
    llm.collective_rpc("execute_dummy_batch")
    prompts = [TokensPrompt(prompt_token_ids=prompt_token_ids(p)) for p in plans(Path(model))]
    params = [
        SamplingParams(
            max_tokens=NUM_TOKENS,
            temperature=0,
            logprobs=5,
            ignore_eos=True,
            extra_args={"prompt_cache": plan_to_wire(p, with_texts=True)},
        )
        for p in plans(Path(model))
    ]
    answers: list[Any] = []
    for _ in range(2):
        for output in llm.generate(prompts, params, use_tqdm=False):
            logprobs = output.outputs[0].logprobs or []
            report = (output.kv_transfer_params or {})["prompt_cache"]
            answers.append(
                {
                    "tokens": list(output.outputs[0].token_ids),
                    "logprobs": [[(t, found.logprob) for t, found in step.items()] for step in logprobs],
                    "of modules": report["tokens_reused"] + report["tokens_encoded"],
                }
            )
    call = llm.llm_engine.engine_core.call_utility  # type: ignore[attr-defined]
    call("prompt_cache", "check", {})
    print("STATS " + json.dumps(call("prompt_cache", "stats", {})), flush=True)
    print("ANSWERS " + json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
