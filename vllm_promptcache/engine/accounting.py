"""Accounting: whether every block and row has the holders that it should, and counts for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit
from vllm_promptcache.engine.tally import Reason, TenantCounts
from vllm_promptcache.records.catalog import RecordCatalog
from vllm_promptcache.records.shares import tenant_name


def check_integrity(store: ModuleStore, request_blocks: Iterable[Iterable[KVCacheBlock]]) -> None:
    """Check that free + module + request blocks + the null block are the whole pool, and all counts.

    ``request_blocks`` are the block tables of all live requests. Raises AssertionError with the
    first block whose reference count its holders do not explain.
    """
    owner = _check_units(store)
    holders = dict.fromkeys(owner, 1)
    for table in request_blocks:
        for block in table:
            if not block.is_null:
                holders[block.block_id] = holders.get(block.block_id, 0) + 1
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


def _check_units(store: ModuleStore) -> dict[int, UnitKey]:
    """Check what is counted of units; the units that own blocks, by block."""
    owner: dict[int, UnitKey] = {}
    units = list(store.known.by_key.values())
    for unit in units:
        assert unit.users >= 0 and unit.holders >= 0, unit
        assert unit.has_states or not unit.blocks, unit.key
        for block in unit.blocks:
            assert block.block_id not in owner, f"block {block.block_id} belongs to two units"
            owner[block.block_id] = unit.key
    resident, pins = store.resident, store.pins
    kept = sum(unit.geometry.num_rows for unit in units if unit.has_states)
    assert kept == resident.num_kept_rows, f"{kept} rows are kept, {resident.num_kept_rows} counted"
    for residency, counted in (
        (Residency.RESIDENT, resident.num_resident),
        (Residency.ENCODING, resident.num_encoding),
    ):
        found = sum(unit.residency is residency for unit in units)
        assert found == counted, f"{found} units are {residency.value}, {counted} counted"
    owned = sum(len(unit.blocks) for unit in units)
    assert owned == resident.num_blocks, f"{owned} blocks are modules', {resident.num_blocks} counted"
    for tenant in {unit.key.tenant for unit in units} | set(resident.block_shares.amounts):
        of_tenant = sum(len(unit.blocks) for unit in units if unit.key.tenant == tenant)
        counted = resident.block_shares.amounts.get(tenant, 0)
        assert of_tenant == counted, f"{of_tenant} blocks are a tenant's, {counted} counted"
    pinned = sum(unit.geometry.num_blocks for unit in units if unit.pinned)
    assert pinned == pins.num_blocks, f"{pinned} blocks are pinned, {pins.num_blocks} counted"
    return owner


def stats(store: ModuleStore) -> dict[str, Any]:
    """Counts for people: units by state, blocks by use, limits, and what became of requests."""
    return {**_held(store), **_counted(store.resident.tally.total)}


def public_stats(store: ModuleStore) -> dict[str, Any]:
    """As `stats`, without what any tenant has: it is as free as what it can be dropped for.

    Where tenants have units at all, this looks through all that are known.
    """
    counts = {**_held(store), **_counted(store.resident.tally.seen(None))}
    if not store.known.num_of_tenants:
        return counts
    hidden = _held_by([unit for unit in store.known.by_key.values() if unit.key.tenant is not None])
    hidden["blocks_free"] = -hidden["blocks_modules"]
    return {name: count - hidden[name] if name in hidden else count for name, count in counts.items()}


def tenant_stats(store: ModuleStore, records: RecordCatalog, tenant: str) -> dict[str, Any]:
    """What one tenant, by its salt, has and had, and nothing else."""
    units = [unit for unit in store.known.by_key.values() if unit.key.tenant == tenant]
    counted = _counted(store.resident.tally.seen(tenant))
    return {**_held_by(units), **counted, **records.stats_of(tenant_name(tenant))}


def stats_of_tenants(store: ModuleStore, records: RecordCatalog) -> dict[str, dict[str, Any]]:
    """What each tenant has and had, by what it is called; the empty name is that of all without a salt."""
    units: dict[str, list[StoredUnit]] = {}
    for unit in store.known.by_key.values():
        units.setdefault(tenant_name(unit.key.tenant), []).append(unit)
    tally = store.resident.tally.named()
    names = sorted(units.keys() | tally.keys() | records.tenants)
    return {
        name: {
            **_held_by(units.get(name, [])),
            **_counted(tally.get(name, TenantCounts())),
            **records.stats_of(name),
        }
        for name in names
    }


def _held(store: ModuleStore) -> dict[str, int]:
    return {
        "units_known": len(store.known),
        "units_resident": store.resident.num_resident,
        "units_encoding": store.resident.num_encoding + len(store.backlog),
        "units_pinned": store.pins.num_units,
        "blocks_total": store.block_pool.num_gpu_blocks - 1,
        "blocks_free": store.block_pool.get_num_free_blocks(),
        "blocks_modules": store.resident.num_blocks,
        "blocks_pinned": store.pins.num_blocks,
        "blocks_pin_limit": store.pins.limit,
        "rows_kept": store.resident.num_kept_rows,
        "block_size": store.block_size,
        "window": store.window,
    }


def _held_by(units: list[StoredUnit]) -> dict[str, int]:
    return {
        "units_known": len(units),
        "units_resident": sum(unit.residency is Residency.RESIDENT for unit in units),
        "units_encoding": sum(unit.residency is Residency.ENCODING for unit in units),
        "units_pinned": sum(unit.pinned for unit in units),
        "blocks_modules": sum(len(unit.blocks) for unit in units),
        "blocks_pinned": sum(unit.geometry.num_blocks for unit in units if unit.pinned),
        "rows_kept": sum(unit.geometry.num_rows for unit in units if unit.has_states),
    }


def _counted(counts: TenantCounts) -> dict[str, Any]:
    """What became of requests and units. Its sums are named as they were before there were reasons."""
    reasons = dict(counts.evictions)
    wanted = sum(reasons[reason] for reason in (Reason.BLOCKS, Reason.PREFIX))
    return {
        **counts.to_plain(),
        "evictions": wanted,
        "expired": reasons[Reason.EXPIRED],
        "evicted_for": reasons,
    }
