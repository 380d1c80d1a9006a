"""A registered schema in JSON's types: what the API answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_promptcache.contract.unit import Placement, Unit
from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.frontend.members import PoolMembers
from vllm_promptcache.layout.parts import ModuleLayout

NO_MEMBERS = PoolMembers()
Status = Mapping[Placement, Mapping[str, Any]]


def summary(entry: SchemaEntry) -> dict[str, Any]:
    """A schema in short. ``tokens`` counts the cached text, ``positions`` is the schema's length."""
    layout = entry.layout
    return {
        "object": "prompt_cache.schema",
        "name": layout.name,
        "digest": layout.digest,
        "encode": layout.encode,
        "source": entry.source,
        "positions": layout.num_positions,
        "tokens": entry.num_tokens,
        "pinned": entry.is_pinned,
        "requests": entry.num_requests,
        "num_modules": len(layout.modules) - 1,
    }


def details(entry: SchemaEntry, status: Status) -> dict[str, Any]:
    """A schema with its modules, their spans ``[start, end)``, tokens and residency.

    The first module is the schema's own anonymous text.
    """
    layout = entry.layout
    return {
        **summary(entry),
        "modules": [_module(module, status, entry.members) for module in layout.modules],
        "scaffolds": [
            {"id": scaffold.unit.id, "tokens": int(scaffold.unit.kept.sum()), **_of(scaffold.unit, status)}
            for scaffold in layout.scaffolds
        ],
        **({"tools": {"positions": layout.tools.num_positions}} if layout.tools is not None else {}),
    }


def _module(module: ModuleLayout, status: Status, members: PoolMembers = NO_MEMBERS) -> dict[str, Any]:
    described: dict[str, Any] = {
        "path": module.path,
        "span": [module.start, module.end],
        "tokens": module.num_tokens,
        "cache": module.cache,
        **_of(module.unit, status),
    }
    if module.union is not None:
        described["union"] = module.union.name or f"#{module.union.index}"
    if module.pool is not None:
        described["pool"] = {
            "length": module.pool.num_positions,
            "modules": [_module(member, status) for member in module.pool.members.values()],
            "registered": len(members.of(module.path)),
        }
    if module.parameters:
        described["parameters"] = [
            {
                "name": parameter.name,
                "span": [parameter.start, parameter.start + parameter.num_positions],
                "required": parameter.required,
            }
            for parameter in module.parameters.values()
        ]
    return described


def _of(unit: Unit | None, status: Status) -> dict[str, Any]:
    """A unit's residency; None where a module has no cached text of its own."""
    if unit is None:
        return {"residency": None}
    found = status[unit.placement]
    return {name: found[name] for name in ("residency", "pinned", "blocks", "users")}
