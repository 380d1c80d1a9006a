"""What ADR 0019 says of recurrent layers: a module acts on their state by an affine map."""

import pytest
import torch
from transformers import DynamicCache, Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
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


class Mixer:
    """Transformers' Mamba-2 layer, random, as a map from one state to the next."""

    def __init__(self) -> None:
        sizes = {"num_heads": 4, "head_dim": 8, "hidden_size": 16, "state_size": 6, "n_groups": 2}
        self.config = Mamba2Config(**sizes, expand=2, num_hidden_layers=1, chunk_size=8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layer = Mamba2Mixer(self.config, layer_idx=0).eval()

    def text(self, num_tokens: int, seed: int) -> torch.Tensor:
        """What the layer is given of a module: ``(1, tokens, hidden size)``."""
        return torch.randn(1, num_tokens, 16, generator=torch.Generator().manual_seed(seed))

    @torch.inference_mode()
    def run(self, text: torch.Tensor, before: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """The state ``(heads, head size, state size)`` behind a text, whose convolution sees the last tokens
        of what is ``before``; from another ``state`` than that leaves, if one is given."""
        cache = DynamicCache(config=self.config)
        self.layer(before, cache_params=cache)
        if state is not None:
            cache.layers[0].recurrent_states[0].copy_(state[None])
        self.layer(text, cache_params=cache)
        return cache.layers[0].recurrent_states[0][0].clone()


@pytest.mark.parametrize("num_tokens", [2, 9, 24])
def test_a_module_scales_the_state_of_a_mamba_2_layer_and_adds_to_it(num_tokens: int) -> None:
    mixer = Mixer()
    before, module = mixer.text(11, 1), mixer.text(num_tokens, 2)
    nothing, ones = torch.zeros(4, 8, 6), torch.ones(4, 8, 6)
    offset = mixer.run(module, before, nothing)
    scales = mixer.run(module, before, ones) - offset
    transition = scales[:, :1, :1]
    assert torch.allclose(scales, transition.expand_as(scales), atol=1e-5)  # a number for each head
    assert (transition > 0).all() and (transition < 1).all()
    found = transition * mixer.run(before, mixer.text(3, 4), None) + offset
    # The state before the module is that of `before` behind three other tokens, as is its convolution.
    wanted = mixer.run(torch.cat((before, module), 1), mixer.text(3, 4), None)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(offset, wanted, atol=1e-3)


def test_a_module_alone_lacks_what_its_convolution_sees() -> None:
    """Only through its first tokens: those of the convolution's width less one."""
    mixer = Mixer()
    module, nothing = mixer.text(20, 2), torch.zeros(4, 8, 6)
    one, other = (mixer.run(module, mixer.text(11, seed), nothing) for seed in (1, 5))
    assert not torch.allclose(one, other, atol=1e-4)
    width = mixer.config.conv_kernel - 1
    same = torch.cat((mixer.text(11, 5)[:, :-width], mixer.text(11, 1)[:, -width:]), 1)
    assert torch.allclose(one, mixer.run(module, same, nothing), atol=1e-6)
