"""The block manager: vLLM's KV cache manager, with modules' shared blocks in requests' block tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache import compat
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.accounting import check_integrity
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.composed_requests import ComposedRequests
from vllm_promptcache.engine.encoding import Encodings
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.sparing import Sparing


class PromptCacheBlockManager(KVCacheManager):
    """SlotLayout composed requests on modules' blocks; everything else is vLLM's.

    A composed request's table is built once, when it is admitted: shared blocks first, referenced as
    prefix-cache hits are (``BlockPool.touch``), then private blocks from ``allocate_slots``. Private
    blocks enter the prefix cache under hashes seeded by the composition (``PrivateHasher``), shared ones
    never do.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.newly_admitted: list[str] = []
        # Composed requests that the scheduler has tried in this step, in order; some had to be skipped.
        self.tried: list[ComposedRequest] = []
        self.store: ModuleStore
        self.composed: ComposedRequests
        self.encodings: Encodings
        self.sparing: Sparing

    def open_store(self, pin_fraction: float, window: int, tenant_fraction: float = 1.0) -> None:
        """Create the module store. A request of the model's full length always has room beside pins.

        ``window`` is the most states that a layer's window counts, 0 without windows.
        """
        pool, size = self.block_pool, self.coordinator.single_type_managers[0].block_size
        usable = pool.num_gpu_blocks - 1
        one_request = -(-self.max_model_len // size)
        pin_limit = max(min(int(pin_fraction * usable), usable - one_request), 0)
        self.store = ModuleStore(
            pool, size, pin_limit, self.max_model_len, window, tenant_fraction=tenant_fraction
        )
        self.composed = ComposedRequests(self.store)
        self.sparing = Sparing(pool, self.store.resident)

    def get_computed_blocks(self, request: Request, *args: Any) -> tuple[KVCacheBlocks, int, int]:
        """A composed request's cached tokens are computed; their blocks enter when it is admitted."""
        composed = self.composed.by_id.get(request.request_id)
        if composed is None:
            return super().get_computed_blocks(request, *args)
        composed.found = self._find_private(request, composed)
        return self.empty_kv_cache_blocks, composed.num_found_tokens, 0

    def _find_private(self, request: Request, composed: ComposedRequest) -> list[KVCacheBlock]:
        """The private blocks that an earlier request left in the prefix cache, up to the last new token,
        which is always computed."""
        found: list[KVCacheBlock] = []
        if not self.enable_caching or request.skip_reading_prefix_cache:
            return found
        slot_layout = composed.slot_layout
        first, limit = slot_layout.num_shared_blocks, int(slot_layout.offsets[-1]) // slot_layout.block_size
        for block_hash in request.block_hashes[first : first + limit]:
            hit = self.block_pool.get_cached_block(block_hash, [0])
            if hit is None:
                break
            found += hit
        return found

    def allocate_slots(
        self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """As vLLM's; when blocks are short, idle unpinned modules are dropped one by one."""
        composed = self.composed.by_id.get(request.request_id)
        drops: Iterator[UnitKey] | None = None
        self.store.resident.asker = _asker(composed)
        while True:
            if composed is None:
                blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
            elif composed.admitted:
                kwargs["delay_cache_blocks"] = True
                blocks = super().allocate_slots(request, num_new_tokens, *args, **kwargs)
            else:
                blocks = self._admit(request, composed, num_new_tokens, kwargs)
            if blocks is not None:
                break
            drops = drops or self._drop_for(request, composed)
            if next(drops, None) is None:
                return None
        if composed is not None:
            computed = (request.num_computed_tokens or composed.num_found_tokens) + num_new_tokens
            self.cache_blocks(request, min(computed, request.num_tokens))
            if composed.encoding is not None and computed >= request.num_prompt_tokens:
                self.encodings.finish(composed.encoding)
        return blocks

    def _admit(
        self, request: Request, composed: ComposedRequest, num_new_tokens: int, kwargs: dict[str, Any]
    ) -> KVCacheBlocks | None:
        """Give a composed request its table, or nothing at all."""
        slot_layout, resident = composed.slot_layout, self.store.resident
        manager = self.coordinator.single_type_managers[0]
        held = resident.shared_blocks(slot_layout.shared) + composed.found
        self.block_pool.touch(held)
        manager.req_to_blocks[request.request_id].extend(held)
        manager.num_cached_block[request.request_id] = len(held)
        num_tokens = composed.num_found_tokens + num_new_tokens
        if len(slot_layout.row_starts) > 1:  # edge rows and new tokens interleave: all slots at once
            num_tokens = max(num_tokens, request.num_tokens)
        reserved = kwargs.get("reserved_blocks", 0)
        unit = composed.encoding.units[-1] if composed.encoding is not None else None
        if unit is not None and unit.footprint.is_in_place:
            num_tokens = max(num_tokens, request.num_tokens)
        elif unit is not None:
            reserved += unit.geometry.num_blocks
        blocks = super().allocate_slots(
            request,
            num_tokens,
            reserved_blocks=reserved,
            num_lookahead_tokens=kwargs.get("num_lookahead_tokens", 0),
            delay_cache_blocks=True,
            full_sequence_must_fit=kwargs.get("full_sequence_must_fit", False),
            has_scheduled_reqs=kwargs.get("has_scheduled_reqs", True),
        )
        if blocks is None:
            self.coordinator.free(request.request_id)
            return None
        resident.use(composed.composition.unit_keys)
        if composed.encoding is not None:
            own_blocks = manager.req_to_blocks[request.request_id][len(held) :]
            self.encodings.allocate(composed.encoding, own_blocks)
        composed.admitted = True
        self.newly_admitted.append(request.request_id)
        return blocks

    def free(self, request: Request) -> None:
        """Free a finished or preempted request's blocks and leave its modules' blocks to others."""
        super().free(request)
        composed = self.composed.by_id.get(request.request_id)
        if composed is None or not composed.admitted:
            return
        composed.admitted = False
        self.store.resident.end_use(composed.composition.unit_keys)
        if composed.encoding is not None:
            self.encodings.interrupt(composed.encoding)

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Composed states enter the prefix cache under hashes of their own, or not at all."""
        composed = self.composed.by_id.get(request.request_id)
        if composed is None:
            super().cache_blocks(request, num_computed_tokens)
        elif request.block_hashes and composed.is_filled(num_computed_tokens):
            manager, name = self.coordinator.single_type_managers[0], request.request_id
            first = max(manager.num_cached_block.get(name, 0), composed.num_plain_blocks)
            # Whoever hears of blocks takes their tokens for a prefix: of these nobody is told.
            with compat.no_block_events(self.block_pool):
                super().cache_blocks(request, num_computed_tokens)
            end = manager.num_cached_block.get(name, 0)
            self.sparing.note_composed(manager.req_to_blocks[name][first:end])

    def record_prefix_cache_stats(self, request: Request, num_hits: int) -> None:
        """The prefix cache's own statistics are about prefixes only."""
        if request.request_id not in self.composed.by_id:
            super().record_prefix_cache_stats(request, num_hits)

    def reset_prefix_cache(self) -> bool:
        """States may be stale (new weights, sleep): modules are dropped too and encoded on demand."""
        self.store.resident.drop_all()
        return super().reset_prefix_cache()

    def check_integrity(self) -> None:
        """Check block accounting; see ``accounting.check_integrity``."""
        check_integrity(self.store, self.tables.values())

    @property
    def tables(self) -> Mapping[str, Sequence[KVCacheBlock]]:
        """The blocks of requests, by their IDs."""
        return self.coordinator.single_type_managers[0].req_to_blocks

    def make_room(self, num_blocks: int, request: Request | None, composed: ComposedRequest | None) -> bool:
        """Drop idle units until so many blocks are free: whether they are. For none, as for a running one."""
        self.store.resident.asker = (None, 0) if request is None else (request.cache_salt, num_blocks)
        drops = self.store.resident.reclaim(set()) if request is None else self._drop_for(request, composed)
        while self.block_pool.get_num_free_blocks() < num_blocks:
            if next(drops, None) is None:
                return False
        return True

    def _drop_for(self, request: Request, composed: ComposedRequest | None) -> Iterator[UnitKey]:
        """Drop idle units, the least recently used first, one at each step.

        A request that waits must not take what those need that were tried before it and had to be
        skipped, nor a unit that is encoded what is there already for its requester. So two that need each
        other's blocks do not take them in turn. It may take what those wait for that come later.
        """
        if request.status == RequestStatus.RUNNING:
            yield from self.store.resident.reclaim(set())
            return
        wanting = [tried for tried in self.tried if not tried.admitted]
        if composed is not None and composed.requester_id in self.composed.by_id:
            wanting.append(self.composed.by_id[composed.requester_id])
        yield from self.store.resident.reclaim({key for one in wanting for key in one.composition.unit_keys})


def _asker(composed: ComposedRequest | None) -> tuple[str | None, int]:
    """Whose units a request wants blocks for, and how many: one that encodes a unit which has none yet."""
    unit = composed.encoding.units[-1] if composed is not None and composed.encoding is not None else None
    return (None, 0) if unit is None or unit.blocks else (unit.key.tenant, unit.geometry.num_blocks)
