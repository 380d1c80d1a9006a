"""Rotary modules: the cosines and sines by position that a model's layers turn their keys by."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from vllm_promptcache.compat.layers import has_alibi, is_latent
from vllm_promptcache.compat.version import UnsupportedError

# vLLM's modules whose tables depend on the position alone, by class: their subclasses differ in just that.
MOVABLE_CLASSES = {
    "RotaryEmbedding",
    "LinearScalingRotaryEmbedding",
    "NTKScalingRotaryEmbedding",
    "Llama3RotaryEmbedding",
    "YaRNScalingRotaryEmbedding",
    "DeepseekScalingRotaryEmbedding",
    "Gemma4RotaryEmbedding",
    "MRotaryEmbedding",  # for text, where all of a token's positions are equal
}
# Transformers' modules, by the kind of their frequencies.
MOVABLE_KINDS = {"default", "linear", "llama3", "yarn", "proportional"}
# Attention classes, by the beginning of their names, that scale each dimension of a rotated key by itself.
NORMS_BEHIND_ROTATION = "HunYuan"


class LayerRotary(NamedTuple):
    """Cosines and sines of a layer's rotary module, each ``(positions, pairs)``, which dimensions pair:
    neighbours (``interleaved``), or those of two halves, and the ``first`` one that is rotated."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool
    first: int = 0


def rotary_of_layers(model: Any, layers: Sequence[Any], num_positions: int) -> list[LayerRotary | None]:
    """The rotary module's table of each attention layer; None for layers without positions, and with ALiBi,
    which keys do not carry.

    Target: the attribute ``rotary_emb`` beside an attention layer, or above it where vLLM runs Transformers'
    classes, and flags by which models leave layers without positions. Why: states that are moved are
    turned by the model's own tables, and only the model knows them.

    Raises:
        UnsupportedError: states of this model cannot be moved; says why.
    """
    names = {id(module): name for name, module in model.named_modules()}
    modules = dict(model.named_modules())
    tables: dict[int, LayerRotary] = {}
    found: list[LayerRotary | None] = []
    for layer in layers:
        above = list(_above(names.get(id(layer), ""), modules))
        if has_alibi(layer) or any(_has_no_positions(module) for module in above[:1]):
            found.append(None)
            continue
        rotary = next((r for m in above if (r := getattr(m, "rotary_emb", None)) is not None), None)
        if rotary is None:
            if above and getattr(above[0], "rotary_emb", 0) is None:  # written down that there is none
                found.append(None)
                continue
            raise UnsupportedError(f"the positions of {layer.layer_name} are not rotary")
        if id(rotary) not in tables:
            if type(above[0]).__name__.startswith(NORMS_BEHIND_ROTATION):
                raise UnsupportedError(f"{type(above[0]).__name__} scales keys after it has rotated them")
            table = _table(rotary, above[0], num_positions)
            tables[id(rotary)] = table._replace(first=_first_rotated(layer, above[0]))
        found.append(tables[id(rotary)])
    if not (any(found) or all(map(has_alibi, layers))):
        raise UnsupportedError("the positions of this model are not rotary")
    return found


def _first_rotated(layer: Any, attention: Any) -> int:
    """The first rotated dimension of a layer's keys: latent attention that keeps whole keys has them last."""
    return 0 if is_latent(layer) else getattr(attention, "qk_nope_head_dim", None) or 0


def _above(name: str, modules: dict[str, Any]) -> Iterator[Any]:
    """The modules around one, the nearest first."""
    while name:
        name = name.rpartition(".")[0]
        yield modules[name]


def _has_no_positions(attention: Any) -> bool:
    # SmolLM3's flag is a number.
    if any(getattr(attention, flag, True) in (False, 0) for flag in ("use_rope", "_use_rope", "use_rotary")):
        return True
    if getattr(attention, "nope", False) is True:
        return True
    slides = getattr(attention, "sliding_window", None)
    # Cohere 2 and EXAONE 4 rotate in layers with a window only, but where all layers are alike.
    return not slides and any(
        getattr(attention, flag, True) is False for flag in ("v1", "force_rope", "apply_rope_all_layers")
    )


def _table(rotary: Any, attention: Any, num_positions: int) -> LayerRotary:
    kind = type(rotary).__name__
    cache = getattr(rotary, "cos_sin_cache", None)
    if kind in MOVABLE_CLASSES and isinstance(cache, torch.Tensor):
        if len(cache) < num_positions:
            raise UnsupportedError(f"{kind} has tables for {len(cache)} positions of {num_positions}")
        cos, sin = cache[:num_positions].chunk(2, dim=-1)
        return LayerRotary(cos, sin, not rotary.is_neox_style)
    if isinstance(getattr(rotary, "inv_freq", None), torch.Tensor):
        return _transformers_table(rotary, attention, num_positions)
    raise UnsupportedError(f"{kind}: what it rotates by is not known to depend on the position alone")


def _transformers_table(rotary: Any, attention: Any, num_positions: int) -> LayerRotary:
    kind = getattr(rotary, "rope_type", None)
    if kind not in MOVABLE_KINDS:
        raise UnsupportedError(f"rotary positions of kind {kind!r} depend on more than the position")
    parameters = next(attention.parameters(), rotary.inv_freq)
    like = torch.empty(1, dtype=parameters.dtype, device=rotary.inv_freq.device)
    positions = torch.arange(num_positions, device=like.device)[None]
    cos, sin = (table[0] for table in rotary(like, positions))
    pairs = rotary.inv_freq.numel()
    if cos.shape[-1] == 2 * pairs:  # each pair's twice: one behind the other, or half a head apart
        halves = torch.equal(cos[:, :pairs], cos[:, pairs:])
        cos, sin = (t[:, :pairs] if halves else t[:, ::2] for t in (cos, sin))
    return LayerRotary(cos.contiguous(), sin.contiguous(), _pairs_neighbours(attention))


def _pairs_neighbours(attention: Any) -> bool:
    """Which dimensions a Transformers model pairs, asked of the function with which it does."""
    rotate = getattr(sys.modules[type(attention).__module__], "rotate_half", None)
    if rotate is None:
        raise UnsupportedError(
            f"{type(attention).__name__} does not say which dimensions it rotates together"
        )
    answer = rotate(torch.arange(4.0)).tolist()
    if answer == [-1.0, 0.0, -3.0, 2.0]:
        return True
    if answer == [-2.0, -3.0, 0.0, 1.0]:
        return False
    raise UnsupportedError(f"{type(attention).__name__} rotates in a way of its own")
