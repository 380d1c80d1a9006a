"""Modules under LoRA adapters: states of their own, which are the adapter's."""

from pathlib import Path

from vllm.lora.request import LoRARequest

from tests.engine.lora import RANK, merge, write_adapter
from tests.engine.oracle import Oracle
from tests.engine.plans import members, placements_of, travel
from tests.engine.support import Engine, greedy, largest_error, report_of, serving, tokens_of
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.repairs.repaired import without_reuse

PROMPTS = [travel(), members(1, 2, 3), members(3, 1)]


def check(engine: Engine, model: Path, oracle: Oracle, lora: LoRARequest | None, prompts: list[Plan]) -> None:
    """Reused and computed in full, answers are those of a model with the adapter's weights in its own."""
    asked = [*prompts, *(without_reuse(prompt) for prompt in prompts)]
    outputs = engine.ask(asked, greedy(8, logprobs=2), lora_request=lora)
    for output, prompt in zip(outputs, asked, strict=True):
        tokens, logprobs = oracle(model, prompt, 8)
        assert largest_error(output, logprobs) < 1e-3
        assert tokens_of(output) == tokens


def test_states_are_the_adapters(tiny_model: Path, oracle: Oracle, tmp_path: Path) -> None:
    adapter, other = tmp_path / "adapter", tmp_path / "other"
    write_adapter(adapter, tiny_model, 1)
    write_adapter(other, tiny_model, 2)
    models = [tiny_model, *(merge(tiny_model, a, tmp_path / f"with {a.name}") for a in (adapter, other))]
    loras = [None, LoRARequest("first", 1, str(adapter)), LoRARequest("second", 2, str(other))]
    num_units = len({placement for prompt in PROMPTS for placement in placements_of(prompt)})
    settings = {"enable_lora": True, "max_loras": 2, "max_lora_rank": RANK}
    with serving(tiny_model, num_gpu_blocks_override=2000, **settings) as engine:
        for _ in range(2):  # cold and warm
            for model, lora in zip(models, loras, strict=True):
                check(engine, model, oracle, lora, PROMPTS)
            assert len(engine.encoded) == len(set(engine.encoded)) == 3 * num_units
        # Other weights come to the same place, under the same name and number.
        write_adapter(adapter, tiny_model, 3)
        check(engine, models[1], oracle, loras[1], PROMPTS)  # until they are loaded
        engine.llm_engine.add_lora(LoRARequest("first", 1, str(adapter), load_inplace=True))
        (output,) = engine.ask([travel()], greedy(8), lora_request=loras[1])
        assert report_of(output)["modules_resident"] == 0
        model = merge(tiny_model, adapter, tmp_path / "with new weights")
        check(engine, model, oracle, loras[1], PROMPTS)
        assert len(engine.encoded) == len(set(engine.encoded)) == 4 * num_units
