"""Accounting: whether every block and row has the holders that it should, and counts for people."""

from __future__ import annotations

from collections.abc import Iterable

from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.module_store import ModuleStore, Residency, has_states


def check_integrity(store: ModuleStore, request_blocks: Iterable[Iterable[KVCacheBlock]]) -> None:
    """Check that free + module + request blocks + the null block are the whole pool.

    ``request_blocks`` are the block tables of all live requests. Raises AssertionError with the
    first block whose reference count its holders do not explain.
    """
    holders: dict[int, int] = {}
    owner: dict[int, UnitKey] = {}
    for unit in store.units.values():
        assert unit.users >= 0 and unit.names >= 0, unit
        assert unit.residency is not Residency.ABSENT or not unit.blocks, unit.key
        for block in unit.blocks:
            assert block.block_id not in owner, f"block {block.block_id} belongs to two units"
            owner[block.block_id] = unit.key
            holders[block.block_id] = 1
    for table in request_blocks:
        for block in table:
            if not block.is_null:
                holders[block.block_id] = holders.get(block.block_id, 0) + 1
    kept = sum(u.geometry.num_rows for u in store.units.values() if has_states(u))
    assert kept == store.num_kept_rows, f"{kept} rows are kept, {store.num_kept_rows} counted"
    pool = store.block_pool
    for block in pool.blocks:
        if block.is_null:
            continue
        expected = holders.get(block.block_id, 0)
        assert block.ref_cnt == expected, (
            f"block {block.block_id}: {block.ref_cnt} references, {expected} holders"
        )
        assert block.block_hash is None or block.block_id not in owner, (
            f"module block {block.block_id} is in the prefix cache"
        )
    free = pool.get_num_free_blocks()
    assert free + len(holders) + 1 == pool.num_gpu_blocks, (
        f"{free} free + {len(holders)} held + 1 null is not {pool.num_gpu_blocks}"
    )


def stats(store: ModuleStore) -> dict[str, int]:
    """Counts for people: units by state, blocks by use, limits."""
    units = list(store.units.values())
    return {
        "units_known": len(units),
        "units_resident": sum(u.residency is Residency.RESIDENT for u in units),
        "units_encoding": sum(u.residency is Residency.ENCODING for u in units),
        "units_pinned": sum(u.pinned for u in units),
        "blocks_total": store.block_pool.num_gpu_blocks - 1,
        "blocks_free": store.block_pool.get_num_free_blocks(),
        "blocks_modules": sum(len(u.blocks) for u in units),
        "blocks_pinned": store.num_pinned_blocks,
        "blocks_pin_limit": store.pin_limit,
        "rows_kept": store.num_kept_rows,
        "block_size": store.block_size,
        "evictions": store.num_evictions,
    }
