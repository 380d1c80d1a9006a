"""What ADR 0014 says of recurrent layers: a module acts on a gated delta rule's state by an affine map."""

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

HEADS, KEY, VALUE = 2, 8, 6


def inputs(num_tokens: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values, log decays and strengths of a module's tokens: ``(1, tokens, heads, …)``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(1, num_tokens, HEADS, *shape, generator=generator, dtype=torch.float32)

    return draw(KEY), draw(KEY), draw(VALUE), -draw().abs() / 10, draw().sigmoid()


def run(module: tuple[torch.Tensor, ...], state: torch.Tensor | None) -> torch.Tensor:
    """The state ``(1, heads, key, value)`` behind a module's tokens."""
    _, final = torch_recurrent_gated_delta_rule(
        *module, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    return final


def transition_and_offset(module: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A, ``(heads, key, key)``, and B, ``(heads, key, value)``, without knowing what stands before."""
    query, key, value, decay, strength = module
    nothing = torch.zeros(*value.shape[:-1], KEY)
    identity = torch.eye(KEY).expand(1, HEADS, KEY, KEY)
    return run((query, key, nothing, decay, strength), identity)[0], run(module, None)[0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2)])
def test_modules_in_any_order_are_one_map_after_the_other(order: tuple[int, ...]) -> None:
    modules = [inputs(num_tokens, seed) for seed, num_tokens in enumerate((5, 11, 7))]
    kept = [transition_and_offset(module) for module in modules]
    state = torch.randn(HEADS, KEY, VALUE, generator=torch.Generator().manual_seed(9))
    composed = state
    for index in order:
        transition, offset = kept[index]
        composed = transition @ composed + offset
    together = tuple(torch.cat([modules[i][part] for i in order], 1) for part in range(5))
    assert torch.allclose(composed, run(together, state[None])[0], atol=1e-5)
    assert not torch.allclose(composed, state, atol=0.1)
