"""Keys moved by their model's tables are those that the model makes at the other position."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from vllm_promptcache.records.rotation import RotaryTable, Rotation, check_positions

NUM_POSITIONS = 4096
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 512,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def model(kind: str, parameters: dict[str, Any]) -> tuple[Any, Any, bool]:
    """A rotary module of Transformers, the function that applies it, and whether it pairs neighbours."""
    modeling, name = {
        "llama": (modeling_llama, "LlamaRotaryEmbedding"),
        "gpt_neox": (modeling_gpt_neox, "GPTNeoXRotaryEmbedding"),
        "cohere": (modeling_cohere, "CohereRotaryEmbedding"),
    }[kind]
    config = AutoConfig.for_model(
        kind,
        hidden_size=128,
        num_attention_heads=2,
        max_position_embeddings=NUM_POSITIONS,
        rope_parameters=parameters,
    )
    return getattr(modeling, name)(config), modeling.apply_rotary_pos_emb, kind == "cohere"


def table_of(rotary: Any, interleaved: bool, dtype: torch.dtype) -> RotaryTable:
    cos, sin = (t[0] for t in rotary(torch.empty(1, dtype=dtype), torch.arange(NUM_POSITIONS)[None]))
    pairs = cos.shape[-1] // 2
    cut = (slice(None), slice(None, None, 2)) if interleaved else (slice(None), slice(pairs))
    return RotaryTable(cos[cut], sin[cut], interleaved)


def rotated(rotary: Any, apply: Any, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Keys ``(tokens, heads, dimensions)`` as the model rotates them."""
    cos, sin = rotary(keys, positions[None])
    turned: torch.Tensor = apply(keys[None].transpose(1, 2), keys[None].transpose(1, 2), cos, sin)[1]
    return turned[0].transpose(0, 1)


CASES = [
    ("llama", PLAIN),
    ("llama", LLAMA3),
    ("llama", YARN),
    ("gpt_neox", {**PLAIN, "partial_rotary_factor": 0.25}),
    ("gpt_neox", {**PLAIN, "partial_rotary_factor": 1.0}),
    ("cohere", PLAIN),
]


@pytest.mark.parametrize(("kind", "parameters"), CASES)
@pytest.mark.parametrize("move", [1, 700, 4000, -1, -95, 0])
def test_moved_keys_are_the_models_own(kind: str, parameters: dict[str, Any], move: int) -> None:
    rotary, apply, interleaved = model(kind, parameters)
    table = table_of(rotary, interleaved, torch.float32)
    keys = torch.randn(37, 2, 64, generator=torch.Generator().manual_seed(0))
    here = torch.arange(37) * 2 + max(-move, 0)
    there = here + min(move, NUM_POSITIONS - 1 - int(here.max()))
    turn = table.between(here, there)
    moved = turn.apply(rotated(rotary, apply, keys, here))
    assert torch.allclose(moved, rotated(rotary, apply, keys, there), atol=2e-5)


def test_rounding_of_tables_and_of_keys_is_that_of_one_key() -> None:
    rotary, apply, interleaved = model("llama", PLAIN)
    table = table_of(rotary, interleaved, torch.bfloat16)
    keys = torch.randn(500, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    here, there = torch.arange(500), torch.arange(500) + 3000
    moved = table.between(here, there).apply(rotated(rotary, apply, keys, here))
    exact = rotated(rotary, apply, keys, there)
    assert moved.dtype == torch.bfloat16
    # Both have the key rounded in three places, and the table's own rounding in common.
    error = (moved.float() - exact.float()).square().mean().sqrt() / exact.float().square().mean().sqrt()
    assert error < 2**-7


def test_layers_share_tables_and_some_have_none() -> None:
    rotary, _, _ = model("llama", PLAIN)
    table = table_of(rotary, False, torch.float32)
    rotation = Rotation((table, None, table, table), (False, False, False, True))
    move = rotation.begin(torch.tensor([3, 4]), torch.tensor([13, 14]))
    assert move.turns[0] is move.turns[2]
    key, value = torch.randn(2, 2, 64), torch.randn(2, 2, 64)
    assert torch.equal(move.apply(1, key, value)[0], key)
    assert not torch.equal(move.apply(0, key, value)[0], key)
    assert torch.equal(move.apply(0, key, value)[1], value)
    latent = move.apply(3, key, value)
    assert torch.equal(latent[0], key)
    assert torch.equal(latent[1], move.apply(0, value, key)[0])


@pytest.mark.parametrize("layers", [[0, 2], [0, 1], [1, 4], [3], [0, 3, 2]])
def test_layers_are_moved_at_once_as_one_by_one(layers: list[int]) -> None:
    rotary, _, _ = model("llama", PLAIN)
    table = table_of(rotary, False, torch.float32)
    rotation = Rotation((table, None, table, table, None), (False, False, False, True, False))
    move = rotation.begin(torch.tensor([3, 4, 9]), torch.tensor([13, 14, 19]))
    key, value = torch.randn(len(layers), 3, 2, 64), torch.randn(len(layers), 3, 2, 64)
    keys, values = move.apply_to_all(layers, key, value)
    for index, layer in enumerate(layers):
        one = move.apply(layer, key[index], value[index])
        assert torch.equal(keys[index], one[0]) and torch.equal(values[index], one[1])


def test_positions_past_the_tables_are_told() -> None:
    rotary, _, _ = model("llama", PLAIN)
    rotation = Rotation((table_of(rotary, False, torch.float32),), (False,))
    check_positions(rotation, [NUM_POSITIONS - 1])
    with pytest.raises(ValueError, match="4096"):
        check_positions(rotation, [NUM_POSITIONS])


@pytest.mark.parametrize("kind", ["llama", "cohere"])
def test_dimensions_before_the_rotated_ones_stay(kind: str) -> None:
    """Latent attention that keeps whole keys rotates the last of their dimensions."""
    rotary, apply, interleaved = model(kind, PLAIN)
    keys = torch.randn(5, 2, 24 + 64, generator=torch.Generator().manual_seed(0))
    origin, target = torch.arange(5), torch.arange(5) + 900
    at_home, away = (
        torch.cat((keys[..., :24], rotated(rotary, apply, keys[..., 24:], where)), -1)
        for where in (origin, target)
    )
    table = replace(table_of(rotary, interleaved, torch.float32), first=24)
    move = Rotation((table,), (False,)).begin(origin, target)
    assert torch.allclose(move.apply(0, at_home, at_home)[0], away, atol=1e-5)
