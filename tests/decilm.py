"""Nemotron-NAS (DeciLM) for tests: a Llama whose layers differ in their number of KV heads.

Transformers has no class for it; this one is Llama's with other projections, registered with it, so that
vLLM reads its configuration and the reference runs it. vLLM has a model class of its own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

MODEL_TYPE = "nemotron-nas"


class DeciLMConfig(LlamaConfig):
    """A Llama's configuration; ``kv_heads`` has each layer's number of KV heads."""

    model_type = MODEL_TYPE

    def __init__(self, kv_heads: list[int] | None = None, **values: Any):
        self.kv_heads = kv_heads or []
        super().__init__(**values)

    @property
    def block_configs(self) -> list[SimpleNamespace]:
        """What vLLM's model reads of each layer."""
        ffn = SimpleNamespace(no_op=False, intermediate_size=self.intermediate_size)
        groups = [self.num_attention_heads // heads for heads in self.kv_heads]
        return [
            SimpleNamespace(attention=SimpleNamespace(no_op=False, n_heads_in_group=n), ffn=ffn)
            for n in groups
        ]


class DeciLMForCausalLM(LlamaForCausalLM):
    """Llama with ``kv_heads`` KV heads in its layers."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig):
        super().__init__(config)
        for layer, kv_heads in zip(self.model.layers, config.kv_heads, strict=True):
            attention = layer.self_attn
            width = kv_heads * attention.head_dim
            attention.k_proj = nn.Linear(config.hidden_size, width, bias=False)
            attention.v_proj = nn.Linear(config.hidden_size, width, bias=False)
            attention.num_key_value_groups = config.num_attention_heads // kv_heads


AutoConfig.register(MODEL_TYPE, DeciLMConfig, exist_ok=True)
AutoModelForCausalLM.register(DeciLMConfig, DeciLMForCausalLM, exist_ok=True)
