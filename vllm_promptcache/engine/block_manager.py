"""The block manager: vLLM's KV cache manager, with modules' shared blocks in requests' block tables."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache.blocks.composition import UnitKey
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.module_store import ModuleStore, Residency


class PromptCacheBlockManager(KVCacheManager):
    """Seats composed requests on modules' blocks; everything else is vLLM's.

    A composed request's table is built once, when it is admitted: shared blocks first, referenced as
    prefix-cache hits are (``BlockPool.touch``), then private blocks from ``allocate_slots``. Its blocks
    never enter the exact prefix cache.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.composed: dict[str, ComposedRequest] = {}
        self.newly_seated: list[str] = []
        self.store: ModuleStore

    def open_store(self, pin_fraction: float, head_tokens: int = 0) -> None:
        """Create the module store. A request of the model's full length always has room beside pins."""
        pool, size = self.block_pool, self.coordinator.single_type_managers[0].block_size
        usable = pool.num_gpu_blocks - 1
        one_request = -(-self.max_model_len // size)
        pin_limit = max(min(int(pin_fraction * usable), usable - one_request), 0)
        self.store = ModuleStore(pool, size, pin_limit, head_tokens)

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        """A composed request's cached tokens are computed; their blocks enter when it is admitted."""
        composed = self.composed.get(request.request_id)
        if composed is None:
            return super().get_computed_blocks(request)
        return self.empty_kv_cache_blocks, composed.seats.num_cached_tokens, 0

    def allocate_slots(
        self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """As vLLM's; when blocks are short, idle unpinned modules are dropped one by one."""
        composed = self.composed.get(request.request_id)
        while True:
            if composed is None:
                blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
            elif composed.seated:
                kwargs["delay_cache_blocks"] = True
                blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
            else:
                blocks = self._seat(request, composed, num_new_tokens, kwargs)
            if blocks is not None or not self.store.reclaim(self._protected_from(request)):
                return blocks

    def _seat(
        self, request: Request, composed: ComposedRequest, num_new_tokens: int, kwargs: dict[str, Any]
    ) -> KVCacheBlocks | None:
        """Give a composed request its table, or nothing at all."""
        seats, store = composed.seats, self.store
        manager = self.coordinator.single_type_managers[0]
        shared = store.shared_blocks(seats.shared)
        self.block_pool.touch(shared)
        manager.req_to_blocks[request.request_id].extend(shared)
        manager.num_cached_block[request.request_id] = len(shared)
        if len(seats.row_starts) > 1:  # edge rows and new tokens interleave: all slots at once
            num_new_tokens = request.num_tokens - seats.num_cached_tokens
        reserved = kwargs.get("reserved_blocks", 0)
        if composed.encodes is not None:
            reserved += store.units[composed.encodes].geometry.num_blocks
        blocks = super().allocate_slots(
            request,
            seats.num_cached_tokens + num_new_tokens,
            reserved_blocks=reserved,
            delay_cache_blocks=True,
            full_sequence_must_fit=kwargs.get("full_sequence_must_fit", False),
            has_scheduled_reqs=kwargs.get("has_scheduled_reqs", True),
        )
        if blocks is None:
            self.coordinator.free(request.request_id)
            return None
        store.use(composed.composition.unit_keys)
        if composed.encodes is not None:
            store.allocate(composed.encodes)
        composed.seated = True
        self.newly_seated.append(request.request_id)
        return blocks

    def free(self, request: Request) -> None:
        """Free a finished or preempted request's blocks and leave its modules' blocks to others."""
        super().free(request)
        composed = self.composed.get(request.request_id)
        if composed is None or not composed.seated:
            return
        composed.seated = False
        self.store.release(composed.composition.unit_keys)
        encodes = composed.encodes
        if encodes is not None and self.store.units[encodes].residency is Residency.ENCODING:
            self.store.interrupt_encoding(encodes, given_up=request.is_finished())

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Composed states never enter the exact prefix cache under plain hashes."""
        if request.request_id not in self.composed:
            super().cache_blocks(request, num_computed_tokens)

    def record_prefix_cache_stats(self, request: Request, num_hits: int) -> None:
        """The prefix cache's own statistics are about prefixes only."""
        if request.request_id not in self.composed:
            super().record_prefix_cache_stats(request, num_hits)

    def reset_prefix_cache(self) -> bool:
        """States may be stale (new weights, sleep): modules are dropped too and encoded on demand."""
        self.store.drop_all()
        return super().reset_prefix_cache()

    def check_integrity(self) -> None:
        """Check block accounting; see ``ModuleStore.check_integrity``."""
        tables = self.coordinator.single_type_managers[0].req_to_blocks.values()
        self.store.check_integrity(tables)

    def _protected_from(self, request: Request) -> set[UnitKey]:
        """Units that a request must not take the blocks of: wanted by itself or by an earlier one.

        Only requests that wait count: running ones hold their units. So the earliest waiting request
        always gets on, and two that need each other's blocks do not block each other.
        """
        if request.status == RequestStatus.RUNNING:
            return set()
        return {
            key
            for waiting in self.composed.values()
            if not waiting.seated and waiting.request.arrival_time <= request.arrival_time
            for key in waiting.composition.unit_keys
        }
