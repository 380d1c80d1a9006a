"""The workers' processes: model runners, attention metadata, cache updates, graphs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vllm_promptcache.compat.shims import expect
from vllm_promptcache.compat.version import UnsupportedError


@contextlib.contextmanager
def model_runner_class(runner: type, base: type, module: Any) -> Iterator[None]:
    """Have a worker construct ``runner`` where it names ``base`` in ``module``.

    Target: CPUWorker.init_device and Worker._make_model_runner. Why: the runner's class is written in
    both. Unnecessary once it can be named (patches/: model-runner-class).
    """
    name = base.__name__
    if getattr(module, name, None) is not base:
        raise UnsupportedError(f"{module.__name__} no longer constructs {name}")
    setattr(module, name, runner)
    try:
        yield
    finally:
        setattr(module, name, base)


def check_layers(layers: Sequence[Any]) -> None:
    """Refuse attention by index distance that a model's configuration did not tell of, and backends
    whose cache updates cannot be observed.

    Raises:
        UnsupportedError: a layer has ALiBi slopes or a sliding window, or writes its cache by itself.
    """
    for layer in layers:
        if layer.attn_backend.forward_includes_kv_cache_update:
            raise UnsupportedError(
                f"the prompt cache does not work with the attention backend {layer.attn_backend.get_name()}: "
                "it writes the KV cache inside its forward pass"
            )
        if getattr(layer.impl, "alibi_slopes", None) is not None:
            raise UnsupportedError(f"the prompt cache does not work with ALiBi: {layer.layer_name} has it")
        if getattr(layer, "sliding_window", None) is not None:
            raise UnsupportedError(f"the prompt cache does not work with the window of {layer.layer_name}")


def shape_of_rows(layer: Any) -> tuple[int, ...]:
    """What a layer's key and value rows have the shape of: equal for layers with rows of one shape.

    Models with layers of different shape: Nemotron-NAS has other numbers of KV heads, Gemma 4 other sizes.
    """
    return (layer.num_kv_heads, layer.head_size, getattr(layer, "head_size_v", layer.head_size))


@contextlib.contextmanager
def no_full_graphs(runner: Any) -> Iterator[None]:
    """Keep one step out of full CUDA graphs, which replay without calling Python."""
    from vllm.config import CUDAGraphMode

    dispatcher = runner.cudagraph_dispatcher
    original = dispatcher.dispatch
    if runner.compilation_config.splitting_ops_contain_kv_cache_update():

        def dispatch(*args: Any, **kwargs: Any) -> Any:
            kwargs["invalid_modes"] = {CUDAGraphMode.FULL, *(kwargs.get("invalid_modes") or ())}
            return original(*args, **kwargs)
    else:

        def dispatch(*args: Any, **kwargs: Any) -> Any:
            kwargs["valid_modes"] = {CUDAGraphMode.NONE}
            kwargs["invalid_modes"] = None
            return original(*args, **kwargs)

    dispatcher.dispatch = dispatch
    try:
        yield
    finally:
        del dispatcher.dispatch


@contextlib.contextmanager
def room_for_rows(vllm_config: Any) -> Iterator[None]:
    """Have attention backends size their buffers for one row a token.

    Target: SchedulerConfig.max_num_seqs, which some metadata builders take for the most rows there can
    be. Why: a composed request can present several rows in a step (patches/: rows).
    """
    scheduler = vllm_config.scheduler_config
    original = scheduler.max_num_seqs
    scheduler.max_num_seqs = max(original, scheduler.max_num_batched_tokens)
    try:
        yield
    finally:
        scheduler.max_num_seqs = original


@contextlib.contextmanager
def attention_metadata_seen_through(groups: Sequence[Any], view: Callable[[Any], Any]) -> Iterator[None]:
    """Have attention backends build their metadata from ``view(common metadata)`` meanwhile.

    Target: AttentionGroup.build_metadata. Why: rows and requests are one thing in the runner.
    """
    for group in groups:
        expect(group.build_metadata, "common_attn_metadata")
        original = group.build_metadata
        group.build_metadata = functools.partial(_build_from_view, original, view)
    try:
        yield
    finally:
        for group in groups:
            del group.build_metadata


def _build_from_view(original: Any, view: Any, common: Any, *args: Any, **kwargs: Any) -> Any:
    return original(view(common), *args, **kwargs)


@contextlib.contextmanager
def cache_updates_observed(layers: Sequence[Any], observe: Callable[..., None]) -> Iterator[None]:
    """Call ``observe(index, layer, update, key, value, kv_cache)`` after each layer's cache update.

    Target: AttentionImpl.do_kv_cache_update. Why: there keys and values pass on their way to the cache,
    whatever its layout.
    """

    def make(index: int, update: Any) -> Any:
        def do_kv_cache_update(layer: Any, key: Any, value: Any, kv_cache: Any, slots: Any) -> None:
            update(layer, key, value, kv_cache, slots)
            observe(index, layer, update, key, value, kv_cache)

        return do_kv_cache_update

    for index, layer in enumerate(layers):
        layer.impl.do_kv_cache_update = make(index, layer.impl.do_kv_cache_update)
    try:
        yield
    finally:
        for layer in layers:
            del layer.impl.do_kv_cache_update
