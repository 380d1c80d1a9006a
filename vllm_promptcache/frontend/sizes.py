"""How much there is of something, counted for little work: what is held in memory, and text in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.layout.schema import SchemaLayout

# Bytes, on the safe side of what tests measure: token IDs as an array and as a list, positions, flags.
_TOKEN = 80
_UNIT = 2000
_MODULE = 2200
_PARAMETER = 1300
_PIECE = 500
_CONTEXT = 8


def layout_bytes(layout: SchemaLayout) -> int:
    """What a layout holds in memory, with all that is kept for prompts over it, or more."""
    modules = sum(_MODULE + 4 * len(module.path) + _PIECE * len(module.pieces) for module in layout.modules)
    parameters = _PARAMETER * sum(len(module.parameters) for module in layout.modules)
    scaffolds = _PIECE * sum(len(scaffold.pieces) for scaffold in layout.scaffolds)
    return modules + parameters + scaffolds + sum(map(_unit_bytes, layout.units))


def _unit_bytes(unit: Unit) -> int:
    return _UNIT + _TOKEN * unit.num_tokens + _CONTEXT * len(unit.context) + len(unit.id)


def has_more_text(value: Any, num_characters: int) -> bool:
    """Whether a value in JSON's types, or one that is nearly so, has more text, or as many parts."""
    left = num_characters
    pending: list[Any] = [value]
    while pending:
        part = pending.pop()
        left -= 1
        if isinstance(part, str):
            left -= len(part)
        elif isinstance(part, dict):
            pending.append(part.keys())
            pending.append(part.values())
        elif isinstance(part, Iterable):
            for inner in part:
                pending.append(inner)
                left -= 1
        elif hasattr(part, "model_dump"):
            pending.append(vars(part))
        if left < 0:
            return True
    return False
