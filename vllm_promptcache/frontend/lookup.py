"""What would be looked up for a prompt, and where: what `explain` says beside the plan."""

from __future__ import annotations

from typing import Any

from vllm_promptcache.contract.explain import placed_names
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.registry import SchemaRegistry


async def lookup_of(
    plan: Plan, capacity: Capacity, registry: SchemaRegistry, *, is_shared: bool = True
) -> dict[str, Any]:
    """In JSON's types: blocks and tokens that are looked up in the prefix cache, and, for a request that
    shares its units with others (``is_shared``), where each unit is: `resident`, in the KV cache; `encoding`;
    `record in memory` or `record on disk`, from which it is loaded; else `absent`."""
    looked_up: dict[str, Any] = {"block_size": capacity.block_size, **capacity.looked_up(plan)}
    if is_shared:
        placed = placed_names(plan)
        status = await registry.status_of(list(placed.values()))
        looked_up["units"] = {name: _where(status[placement]) for name, placement in placed.items()}
    return looked_up


def _where(status: Any) -> str:
    residency, record = status["residency"], status.get("record")
    if residency != "absent" or not record:
        return str(residency)
    return "record on disk" if record == "disk" else "record in memory"
