"""Adapters are told apart by their weights."""

import os
from pathlib import Path

from vllm.lora.request import LoRARequest

from vllm_promptcache.engine.adapters import Adapters


def test_adapters_are_told_apart_by_name_and_path() -> None:
    """vLLM keeps an adapter's number when it is loaded again in place."""
    adapters = Adapters()
    a, b, c = (LoRARequest(*parts) for parts in (("x", 1, "/a"), ("x", 1, "/b"), ("y", 2, "/a")))
    assert adapters.of(None) is None
    assert adapters.of(a) == adapters.of(a)
    assert len({adapters.of(a), adapters.of(b), adapters.of(c)}) == 3


def test_weights_that_were_replaced_and_loaded_again_are_others(tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"old")
    adapters, lora = Adapters(), LoRARequest("x", 1, str(tmp_path))
    adapters.loaded(lora)
    old = adapters.of(lora)
    weights.write_bytes(b"newer")
    assert adapters.of(lora) == old  # the workers have the old ones still
    adapters.loaded(lora)
    assert adapters.of(lora) != old
    longer = adapters.of(lora)
    os.utime(weights, ns=(1, 1))
    assert adapters.of(LoRARequest("x", 1, str(tmp_path), load_inplace=True)) != longer
