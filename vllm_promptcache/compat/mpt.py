"""MPT as a model of vLLM's, which served it until 0.28: its layers, put together as MPT has them.

Imported by vLLM when a model of this kind is loaded: see `compat.register_mpt`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import (
    get_pp_group,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors


def alibi_slopes(num_heads: int, largest_bias: int) -> list[float]:
    """A slope for each head: powers of a half, evenly spread up to ``largest_bias``."""
    power_of_2 = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2 ** -(largest_bias * (head + 1) / power_of_2) for head in range(power_of_2)]
    return slopes if power_of_2 == num_heads else [*slopes[1::2], *slopes[::2]][:num_heads]


class MPTAttention(nn.Module):
    """Attention with ALiBi."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quantization = vllm_config.model_config.hf_config, vllm_config.quant_config
        attention = config.attn_config
        if not attention.alibi or attention.prefix_lm or attention.qk_ln:
            raise ValueError("MPT is served with ALiBi, without qk_ln and prefix_lm")
        heads, size = config.n_heads, config.d_model // config.n_heads
        self.clip = attention.clip_qkv
        has_bias = not config.no_bias
        self.Wqkv = QKVParallelLinear(
            config.d_model, size, heads, bias=has_bias, quant_config=quantization, prefix=f"{prefix}.Wqkv"
        )
        self.out_proj = RowParallelLinear(
            config.d_model,
            config.d_model,
            bias=has_bias,
            quant_config=quantization,
            prefix=f"{prefix}.out_proj",
        )
        own_heads = heads // get_tensor_model_parallel_world_size()
        first = get_tensor_model_parallel_rank() * own_heads
        self.attn = Attention(
            own_heads,
            size,
            attention.softmax_scale or size**-0.5,
            alibi_slopes=alibi_slopes(heads, attention.alibi_bias_max)[first : first + own_heads],
            cache_config=vllm_config.cache_config,
            quant_config=quantization,
            prefix=f"{prefix}.attn",
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """From ``(tokens, d_model)`` to the same."""
        qkv, _ = self.Wqkv(hidden_states)
        if self.clip is not None:
            qkv = qkv.clamp(-self.clip, self.clip)
        output: torch.Tensor = self.out_proj(self.attn(*qkv.chunk(3, dim=-1)))[0]
        return output


class MPTBlock(nn.Module):
    """Attention and two linear layers, each behind a norm and beside what goes past it."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quantization = vllm_config.model_config.hf_config, vllm_config.quant_config
        has_bias, inner = not config.no_bias, config.expansion_ratio * config.d_model
        self.norm_1, self.norm_2 = (_norm(config) for _ in range(2))
        self.attn = MPTAttention(vllm_config, f"{prefix}.attn")
        self.ffn = nn.ModuleDict(
            {
                "up_proj": ColumnParallelLinear(
                    config.d_model, inner, has_bias, quant_config=quantization, prefix=f"{prefix}.ffn.up_proj"
                ),
                "act": get_act_fn("gelu"),
                "down_proj": RowParallelLinear(
                    inner,
                    config.d_model,
                    has_bias,
                    quant_config=quantization,
                    prefix=f"{prefix}.ffn.down_proj",
                ),
            }
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """From ``(tokens, d_model)`` to the same."""
        hidden_states = hidden_states + self.attn(self.norm_1(hidden_states))
        inner, _ = self.ffn["up_proj"](self.norm_2(hidden_states))
        output: torch.Tensor = self.ffn["down_proj"](self.ffn["act"](inner))[0]
        return hidden_states + output


def _norm(config: Any) -> nn.LayerNorm:
    return nn.LayerNorm(config.d_model, config.layer_norm_epsilon, bias=not config.no_bias)


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class MPTModel(nn.Module):
    """Embeddings, blocks, and a norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.wte = VocabParallelEmbedding(config.vocab_size, config.d_model)
        self.start_layer, self.end_layer, self.blocks = make_layers(
            config.n_layers, lambda prefix: MPTBlock(vllm_config, prefix), prefix=f"{prefix}.blocks"
        )
        self.norm_f = _norm(config)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], config.d_model
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens."""
        embeddings: torch.Tensor = self.wte(input_ids)
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """The last layer's output, or what the next rank goes on with."""
        if get_pp_group().is_first_rank:
            hidden_states: torch.Tensor = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        else:
            assert intermediate_tensors is not None
            hidden_states = intermediate_tensors["hidden_states"]
        for block in islice(self.blocks, self.start_layer, self.end_layer):
            hidden_states = block(hidden_states)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        output: torch.Tensor = self.norm_f(hidden_states)
        return output


class MPTForCausalLM(nn.Module, SupportsPP):
    """MPT with its embeddings as the last layer."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config, self.quant_config = config, vllm_config.quant_config
        self.transformer = MPTModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        self.lm_head = self.transformer.wte
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.transformer.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens."""
        return self.transformer.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """See ``MPTModel``."""
        output: torch.Tensor = self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)
        return output

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits over the vocabulary."""
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint."""
        return AutoWeightsLoader(self).load_weights(weights)
