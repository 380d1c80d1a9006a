"""Events about units' blocks, among vLLM's about its KV cache, so that routers outside know of modules."""

from __future__ import annotations

import json
from hashlib import sha256

from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, ExternalBlockHash, maybe_convert_block_hash

from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey
from vllm_promptcache.engine.stored_unit import StoredUnit

KIND = "prompt_cache"


class UnitEvents:
    """Tells of units' whole blocks when their states are there, and when these are gone.

    A unit's blocks are no prefix of anything: their parent is a hash that no block has, so that whoever
    follows the chains of plain prompts does not come to them. ``extra_keys`` say what they are; see
    docs/engines.md. Nothing is told where vLLM is not asked to.
    """

    def __init__(self, block_pool: BlockPool, block_size: int):
        self._pool = block_pool
        self._block_size = block_size
        self._told: dict[UnitKey, list[ExternalBlockHash]] = {}

    def stored(self, unit: StoredUnit) -> None:
        """A unit's states are there."""
        key, num_blocks = unit.key, unit.geometry.num_blocks
        if not self._pool.enable_kv_cache_events or not num_blocks or key.part != WHOLE:
            return
        parent, *hashes = block_hashes(key, num_blocks)
        self._told[key] = hashes
        tokens = [
            index for index in unit.geometry.slots.argsort(kind="stable") if unit.geometry.slots[index] >= 0
        ]
        adapter = key.adapter[0] if key.adapter else None
        self._pool.kv_event_queue.append(
            BlockStored(
                block_hashes=hashes,
                parent_block_hash=parent,
                token_ids=unit.text.token_ids[tokens].tolist(),
                block_size=self._block_size,
                lora_id=None,
                medium=self._pool.medium,
                lora_name=adapter,
                extra_keys=[extra_keys(key)] * num_blocks,
                group_idx=0,
            )
        )

    def removed(self, unit: StoredUnit) -> None:
        """A unit's states are gone."""
        hashes = self._told.pop(unit.key, None)
        if hashes:
            self._pool.kv_event_queue.append(BlockRemoved(hashes, self._pool.medium, group_idx=0))


def extra_keys(key: UnitKey) -> tuple[str | int, ...]:
    """What is said of each of a unit's blocks: which unit, where it stands, its adapter's name, its salt."""
    adapter = (key.adapter[0],) if key.adapter else ()
    tenant = (key.tenant,) if key.tenant is not None else ()
    return (KIND, key.digest, key.position, *adapter, *tenant)


def block_hashes(key: UnitKey, num_blocks: int) -> list[ExternalBlockHash]:
    """A hash that stands before a unit's blocks, and theirs; those of other states are others."""
    name = json.dumps([KIND, *key]).encode()
    numbers = range(num_blocks + 1)
    return [maybe_convert_block_hash(BlockHash(sha256(name + str(n).encode()).digest())) for n in numbers]
