"""Attention layers: which are understood, the shape of their rows, and their cache updates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vllm_promptcache.compat.shims import expect
from vllm_promptcache.compat.version import UnsupportedError


def check_layers(layers: Sequence[Any], window: int, length: int) -> None:
    """Refuse attention by index distance that a model's configuration did not tell of, and layers whose
    cache updates cannot be observed.

    ``window`` is the most states that a window may count; one of the model's ``length`` or more counts all,
    and with ALiBi it has to be one.

    Raises:
        UnsupportedError: a layer has ALiBi slopes or another window, or writes its cache by itself.
    """
    for layer in layers:
        if not hasattr(getattr(layer, "impl", None), "do_kv_cache_update"):
            raise UnsupportedError(f"the prompt cache does not know how {layer} writes its KV cache")
        if is_latent(layer):
            expect(layer.impl.do_kv_cache_update, "kv_c_normed", "k_pe", "kv_cache", "slot_mapping")
        elif layer.attn_backend.forward_includes_kv_cache_update:
            raise UnsupportedError(
                f"the prompt cache does not work with the attention backend {layer.attn_backend.get_name()}: "
                "it writes the KV cache inside its forward pass"
            )
        if has_alibi(layer) and window < length:
            raise UnsupportedError(f"the prompt cache does not work with ALiBi: {layer.layer_name} has it")
        own = getattr(layer, "sliding_window", None) or getattr(layer, "attention_chunk_size", None)
        if own is not None and window < own < length:
            raise UnsupportedError(f"the prompt cache does not work with the window of {layer.layer_name}")


def has_alibi(layer: Any) -> bool:
    """Whether a layer adds to its scores what depends on distances between indices."""
    return getattr(layer.impl, "alibi_slopes", None) is not None


def is_latent(layer: Any) -> bool:
    """Whether a layer is one of multi-head latent attention: its rows are latents and rotary keys."""
    return hasattr(layer, "kv_lora_rank")


def shares_cache(layer: Any) -> bool:
    """Whether a layer reads another layer's KV cache instead of writing one."""
    return getattr(layer, "kv_sharing_target_layer_name", None) is not None


def shape_of_rows(layer: Any) -> tuple[int, ...]:
    """What a layer's key and value rows have the shape of: equal for layers with rows of one shape.

    Models with layers of different shape: Nemotron-NAS has other numbers of KV heads, Gemma 4 other sizes.
    """
    if is_latent(layer):
        return (layer.kv_lora_rank, layer.head_size)
    return (layer.num_kv_heads, layer.head_size, getattr(layer, "head_size_v", layer.head_size))


def update_cache(layer: Any, key: Any, value: Any, slots: Any) -> None:
    """Write rows, as they were observed, to slots of a layer's KV cache, through its backend.

    Target: AttentionImpl.do_kv_cache_update, and the one of MLAAttentionImpl, which has another signature.
    """
    update = layer.impl.do_kv_cache_update
    if is_latent(layer):
        update(key, value, layer.kv_cache, slots, layer.kv_cache_dtype, layer._k_scale)
    else:
        update(layer, key, value, layer.kv_cache, slots)


def as_full_attention(specs: Mapping[str, Any], block_size: int) -> dict[str, Any]:
    """KV cache specifications by layer with those of windows and chunks made ones of full attention.

    Only the KV cache manager takes them for that, as vLLM has it with its hybrid manager disabled; there
    models whose layers all slide stay out. Layers compute their windows as before.
    """
    from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, FullAttentionSpec, SlidingWindowSpec

    windows = {spec.sliding_window for spec in specs.values() if isinstance(spec, SlidingWindowSpec)}
    found: dict[str, Any] = {}
    for name, spec in specs.items():
        if type(spec) in (SlidingWindowSpec, ChunkedLocalAttentionSpec):
            shape = {f: getattr(spec, f) for f in ("num_kv_heads", "head_size", "dtype", "kv_quant_mode")}
            if hasattr(spec, "head_size_v"):
                shape["head_size_v"] = spec.head_size_v
            window = getattr(spec, "sliding_window", None) if len(windows) == 1 else None
            spec = FullAttentionSpec(block_size=block_size, sliding_window=window, **shape)
        found[name] = spec
    return found


@contextlib.contextmanager
def cache_updates_observed(layers: Sequence[Any], observe: Callable[..., None]) -> Iterator[None]:
    """Call ``observe(index, update, key, value)`` after each layer's cache update; ``update(key, value,
    slots)`` updates the same cache again. For latent attention, key and value are the latent and the rotary
    key.

    Target: as in `update_cache`. Why: there keys and values pass on their way to the cache, whatever its
    layout (patches/: kv-cache-update-hook).
    """
    for index, layer in enumerate(layers):
        make = _observed_latent if is_latent(layer) else _observed
        layer.impl.do_kv_cache_update = make(index, layer.impl.do_kv_cache_update, observe)
    try:
        yield
    finally:
        for layer in layers:
            del layer.impl.do_kv_cache_update


def _observed(index: int, update: Any, observe: Any) -> Any:
    def do_kv_cache_update(layer: Any, key: Any, value: Any, kv_cache: Any, slots: Any) -> None:
        def again(key: Any, value: Any, slots: Any) -> None:
            update(layer, key, value, kv_cache, slots)

        again(key, value, slots)
        observe(index, again, key, value)

    return do_kv_cache_update


def _observed_latent(index: int, update: Any, observe: Any) -> Any:
    def do_kv_cache_update(latent: Any, key: Any, kv_cache: Any, slots: Any, *scaling: Any) -> None:
        def again(latent: Any, key: Any, slots: Any) -> None:
            update(latent, key, kv_cache, slots, *scaling)

        again(latent, key, slots)
        observe(index, again, latent, key)

    return do_kv_cache_update
