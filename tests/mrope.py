"""A language model that takes M-RoPE's positions, as vision models do for text: vLLM's Qwen 2.

vLLM's vision models need torchvision. Of text all dimensions of a position are equal, so the model is what
Transformers makes of the same weights with one dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import ModelRegistry
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

NAME = "Qwen2WithMRoPE"


class Qwen2WithMRoPE(Qwen2ForCausalLM, SupportsMRoPE):
    """Qwen 2 with positions in three dimensions."""

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[torch.Tensor, int]:
        """Those of text: a token's index, three times."""
        return torch.arange(len(input_tokens)).expand(3, -1), 0


def register() -> None:
    """Let vLLM find the class by its name."""
    ModelRegistry.register_model(NAME, Qwen2WithMRoPE)
