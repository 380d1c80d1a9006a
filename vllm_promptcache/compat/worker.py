"""The workers' processes: model runners, attention metadata, cache updates, graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
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
def room_for_rows_in_v2() -> Iterator[None]:
    """As `room_for_rows`, for metadata builders that the V2 runner makes meanwhile, and nothing else.

    Target: init_attn_backend in vllm.v1.worker.gpu.model_runner. Why: the V2 runner makes builders in the
    midst of other things that read max_num_seqs.
    """
    from vllm.v1.worker.gpu import model_runner

    original = model_runner.init_attn_backend
    expect(original, "kv_cache_config", "vllm_config", "device")

    def init_attn_backend(kv_cache_config: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        with room_for_rows(vllm_config):
            return original(kv_cache_config, vllm_config, *args, **kwargs)

    model_runner.init_attn_backend = init_attn_backend
    try:
        yield
    finally:
        model_runner.init_attn_backend = original


def no_full_graphs_in_v2(runner: Any) -> contextlib.AbstractContextManager[None]:
    """Keep one step out of full CUDA graphs, as `no_full_graphs`; to be entered before one is chosen."""
    return no_full_graphs_by(runner.cudagraph_manager, runner.compilation_config)


@contextlib.contextmanager
def no_full_graphs_by(manager: Any, compilation_config: Any) -> Iterator[None]:
    """Have a V2 runner's graph manager choose no full CUDA graph meanwhile.

    Target: CudaGraphManager.dispatch of the V2 runner, which takes no modes to leave out.
    """
    from vllm.config import CUDAGraphMode

    original = manager.dispatch
    expect(original, "num_reqs", "num_tokens", "uniform_token_count", "num_active_loras")
    may_be_piecewise = compilation_config.splitting_ops_contain_kv_cache_update()

    def dispatch(num_reqs: int, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        chosen = original(num_reqs, num_tokens, *args, **kwargs)
        is_left_out = chosen.cg_mode == CUDAGraphMode.FULL
        if is_left_out or (chosen.cg_mode == CUDAGraphMode.PIECEWISE and not may_be_piecewise):
            return dataclasses.replace(
                chosen,
                cg_mode=CUDAGraphMode.NONE,
                num_tokens=num_tokens,
                num_reqs=num_reqs,
                uniform_token_count=None,
                max_query_len=None,
            )
        return chosen

    manager.dispatch = dispatch
    try:
        yield
    finally:
        del manager.dispatch


def replace_model_positions(
    model_state: Any, positions: Callable[[Any, Any], Any], dummy_positions: Callable[[int], Any]
) -> None:
    """Have a V2 runner's model take other positions than its batch has.

    ``positions(input_batch, given)`` are a step's, where ``given`` are those that the model's state has in
    mind, if any; ``dummy_positions(num_tokens)`` the same buffer when graphs are captured with it.
    Target: ModelState.prepare_inputs and prepare_dummy_inputs, instance by instance. Why: the model chooses
    its class.
    """
    prepare, prepare_dummy = model_state.prepare_inputs, model_state.prepare_dummy_inputs
    expect(prepare, "input_batch", "req_states")
    expect(prepare_dummy, "num_reqs", "num_tokens")

    def prepare_inputs(input_batch: Any, req_states: Any) -> dict[str, Any]:
        inputs = prepare(input_batch, req_states)
        return {**inputs, "positions": positions(input_batch, inputs.get("positions"))}

    def prepare_dummy_inputs(num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {"positions": dummy_positions(num_tokens), **prepare_dummy(num_reqs, num_tokens)}

    model_state.prepare_inputs = prepare_inputs
    model_state.prepare_dummy_inputs = prepare_dummy_inputs


@contextlib.contextmanager
def attention_metadata_seen_through(groups: Sequence[Any], view: Callable[[Any], Any]) -> Iterator[None]:
    """Have attention backends build their metadata from ``view(common metadata)`` meanwhile.

    Target: AttentionGroup.build_metadata and build_metadata_for_drafting. Why: rows and requests are one
    thing in the runner.
    """
    names = ("build_metadata", "build_metadata_for_drafting")
    for group, name in itertools.product(groups, names):
        original = getattr(group, name)
        expect(original, "common_attn_metadata")
        setattr(group, name, functools.partial(_build_from_view, original, view))
    try:
        yield
    finally:
        for group, name in itertools.product(groups, names):
            delattr(group, name)


def _build_from_view(original: Any, view: Any, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
    return original(view(common_attn_metadata), *args, **kwargs)
