"""Sparing: idle modules give way before the prefix cache of plain requests does."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache import compat
from vllm_promptcache.engine.resident_units import ResidentUnits


class Sparing:
    """Looks at blocks before the pool gives them away, to whomever.

    The pool gives blocks that hold nothing first, then cached ones, those first that were not used for
    longest. Where the next are cached plain prefixes, idle units are dropped instead, as many as have so many
    blocks; when no unit is idle, prefixes go as they do without the plugin. What composed requests have
    left in the cache is not spared.
    """

    def __init__(self, pool: BlockPool, resident: ResidentUnits):
        self._pool = pool
        self._resident = resident
        # Blocks that composed requests have put into the prefix cache, and the hashes that they have there.
        self._composed: dict[int, Hashable] = {}
        compat.before_new_blocks(pool, self.spare)

    def note_composed(self, blocks: Sequence[KVCacheBlock]) -> None:
        """A composed request has put blocks into the prefix cache, under hashes of its own."""
        self._composed.update((block.block_id, block.block_hash) for block in blocks)

    def spare(self, num_blocks: int) -> None:
        """Before the pool gives so many blocks."""
        if not self._pool.enable_caching or not self._resident.has_idle_blocks:
            return
        wanted = sum(map(self._is_plain_prefix, compat.next_blocks(self._pool, num_blocks)))
        self._resident.give_way(wanted)

    def _is_plain_prefix(self, block: KVCacheBlock) -> bool:
        return block.block_hash is not None and self._composed.get(block.block_id) != block.block_hash
