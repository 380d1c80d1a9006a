"""The scheduler's process: classes that vLLM constructs without a hook, and requests' private parts."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.compat.shims import carries, expect, wrap_once
from vllm_promptcache.compat.version import UnsupportedError

_MESSAGE = "prompt_cache_message"


@contextlib.contextmanager
def kv_cache_manager_class(manager: type) -> Iterator[None]:
    """Have ``Scheduler.__init__`` construct ``manager``.

    Target: the name KVCacheManager in vllm.v1.core.sched.scheduler. Why: the class is constructed
    there without a hook. Unnecessary once the class can be named (patches/: kv-cache-manager-class).
    """
    from vllm.v1.core.sched import scheduler as module

    original = module.KVCacheManager
    expect(original.allocate_slots, "num_new_tokens", "delay_cache_blocks", "reserved_blocks")
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
        self.scheduler.meet_workers(self.collective_rpc)
        return dict(self.scheduler.prompt_cache(operation, payload))

    EngineCore.prompt_cache = prompt_cache  # type: ignore[attr-defined]


def notice_adapters() -> None:
    """Tell the scheduler of every LoRA adapter that the workers load by a call: ``adapter_loaded``.

    Target: EngineCore.add_lora. Why: the scheduler hears nothing of it, and an adapter may be loaded again in
    place. Unnecessary once vLLM's own prefix cache tells such adapters apart.
    """
    from vllm.v1.engine.core import EngineCore

    def make(original: Any) -> Any:
        def add_lora(self: Any, lora_request: Any) -> Any:
            loaded = original(self, lora_request)
            notice = getattr(self.scheduler, "adapter_loaded", None)
            if notice is not None:
                notice(lora_request)
            return loaded

        return add_lora

    wrap_once(EngineCore, "add_lora", make, "self", "lora_request")


def introduce_workers() -> None:
    """Hand schedulers that have ``meet_workers`` a way to call all workers, with the first request.

    Target: EngineCore.add_request. Why: records that were read from disk are there only once workers say so,
    and a scheduler has no way to ask. Unnecessary once a scheduler is constructed with its executor.
    """
    from vllm.v1.engine.core import EngineCore

    def make(original: Any) -> Any:
        def add_request(self: Any, request: Any, request_wave: int = 0) -> Any:
            meet = getattr(self.scheduler, "meet_workers", None)
            if meet is not None:
                meet(self.collective_rpc)
            return original(self, request, request_wave)

        return add_request

    wrap_once(EngineCore, "add_request", make, "self", "request", "request_wave")


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
            if not carries(request.sampling_params, key):
                return original(cls, request, block_hasher)
            made = original(cls, request, None)
            made._later_block_hasher = block_hasher
            return made

        return from_engine_core_request

    wrap_once(Request, "from_engine_core_request", make, "cls", "request", "block_hasher")


def hash_blocks_now(request: Any) -> None:
    """Hash a request's blocks as vLLM would have, where `hash_blocks_later` holds: for an engine of the same
    process, say."""
    hasher = getattr(request, "_later_block_hasher", None)
    if hasher is not None:
        request._block_hasher = hasher
        request.update_block_hashes()


def plain_block_hash(vllm_config: Any) -> Any:
    """vLLM's own hash of a block: ``(request, parent, token IDs, index of the first)``.

    Target: hash_block_tokens and generate_block_hash_extra_keys. Why: the hasher that vLLM makes knows whole
    requests only. Unnecessary once a scheduler chooses the hasher.
    """
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils

    expect(kv_cache_utils.hash_block_tokens, "parent_block_hash", "curr_block_token_ids", "extra_keys")
    expect(kv_cache_utils.generate_block_hash_extra_keys, "start_token_idx", "end_token_idx")
    function = get_hash_fn_by_name(vllm_config.cache_config.prefix_caching_hash_algo)

    def plain_hash(request: Any, parent: Any, token_ids: Sequence[int], first: int) -> Any:
        extra, _ = kv_cache_utils.generate_block_hash_extra_keys(request, first, first + len(token_ids), 0)
        return kv_cache_utils.hash_block_tokens(function, parent, token_ids, extra)

    return plain_hash


def refuse(scheduler: Any, request_id: str, why: str) -> None:
    """End a request with an error instead of scheduling it, as one whose grammar cannot be compiled.

    Target: Scheduler.grammar_compile_error_reqs, which 0.33 keeps with what is said of each.
    """
    refused = scheduler.grammar_compile_error_reqs
    if isinstance(refused, set):
        refused.add(request_id)
    else:
        from vllm import outputs

        error = outputs.RequestError
        refused[request_id] = error(code="validation_error", message=why)


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


def reorder_queue(queue: Any, requests: Sequence[Any]) -> None:
    """Put the requests of a scheduler's queue, first come, first served, in another order."""
    queue.clear()
    queue.extend(requests)


@contextlib.contextmanager
def set_aside(scheduler: Any, requests: Sequence[Any]) -> Iterator[None]:
    """Schedule a step in which some requests come behind all others, or not at all if others wait.

    Target: Scheduler.running, waiting and max_num_active_reqs. Why: vLLM schedules who runs before who
    waits, in the order of arrival. Those set aside keep their place in the batch, and what they hold.
    """
    if not requests:
        yield
        return
    aside = {request.request_id for request in requests}
    running = [request for request in scheduler.running if request.request_id in aside]
    others = [request for request in scheduler.running if request.request_id not in aside]
    waiting = [request for request in requests if request not in running]
    if len(scheduler.waiting) == len(waiting):
        if running and others:
            scheduler.running = others + running  # the last is also the first to be preempted
        yield
        return
    scheduler.waiting.remove_requests(waiting)
    scheduler.running = others
    limit = scheduler.max_num_active_reqs
    scheduler.max_num_active_reqs = limit - len(running)
    try:
        yield
    finally:
        scheduler.max_num_active_reqs = limit
        scheduler.running = scheduler.running + running
        for request in waiting:
            scheduler.waiting.add_request(request)


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
