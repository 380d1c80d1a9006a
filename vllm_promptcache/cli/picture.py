"""A plan to look at: a map of the positions and a line a segment."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from vllm_promptcache.contract.plan import CachedSegment, Plan, Segment
from vllm_promptcache.layout.schema import SchemaLayout

MAP_COLUMNS = 64
_NAME_COLUMNS = 32
_TEXT_COLUMNS = 44

# What a column of the map holds most of.
_UNICODE_CELLS = {"gap": "·", "cached": "█", "new": "▒", "repaired": "◆"}
_ASCII_CELLS = {"gap": ".", "cached": "#", "new": "+", "repaired": "*"}


def draw_plan(plan: Plan, layout: SchemaLayout, tokenizer: Any, unicode: bool = True) -> str:
    """Lines of text, without a line feed at the end. `tokenizer` is a Hugging Face tokenizer."""
    cells = _UNICODE_CELLS if unicode else _ASCII_CELLS
    end = plan.next_position
    computed, legend = f"{plan.num_new_tokens} computed", f"{cells['new']} computed"
    if plan.num_repaired_tokens:
        computed += f" ({plan.num_repaired_tokens} of them repaired)"
        legend += f"   {cells['repaired']} repaired"
    lines = [
        f"schema {plan.schema} (encode={layout.encode}, {layout.num_positions} positions),"
        f" digest {plan.digest[:12]}",
        f"{plan.num_cached_tokens} tokens reused, {computed},"
        f" {end - plan.num_cached_tokens - plan.num_new_tokens} positions left empty;"
        f" generation starts at position {end} of {layout.max_model_len}",
        "",
        f"{cells['cached']} reused   {legend}   {cells['gap']} empty",
        f"0 {_map(plan, cells)} {end}",
        "",
        f"{'positions':>15}  {'tokens':>6}  {'from':<{_NAME_COLUMNS + 2}}  text",
    ]
    position = 0
    for segment in plan.segments:
        ids, start = _tokens(segment)
        if start > position:
            lines.append(f"{_range(position, start)}  {start - position:>6}  {cells['gap']} empty")
        position = start + len(ids)
        name = segment.unit.id if isinstance(segment, CachedSegment) else segment.source
        mark = cells[_kind(segment)]
        text = _shorten(ascii_or_text(str(tokenizer.decode(ids)), unicode), _TEXT_COLUMNS)
        name = _shorten(name, _NAME_COLUMNS)
        lines.append(f"{_range(start, position)}  {len(ids):>6}  {mark} {name:<{_NAME_COLUMNS}}  {text}")
    lines += ["", *_unit_lines(plan)]
    if plan.notes:
        lines += ["", *(f"note: {note}" for note in plan.notes)]
    return "\n".join(lines)


def ascii_or_text(text: str, unicode: bool) -> str:
    """Text on one line, as a string literal shows it."""
    return repr(text) if unicode else ascii(text)


def _map(plan: Plan, cells: dict[str, str]) -> str:
    """One character for each of at most `MAP_COLUMNS` equal shares of the positions."""
    end = plan.next_position
    names = list(cells)
    kinds = np.zeros(end, np.int64)
    for segment in plan.segments:
        ids, start = _tokens(segment)
        kinds[start : start + len(ids)] = names.index(_kind(segment))
    columns = min(MAP_COLUMNS, end)
    edges = np.linspace(0, end, columns + 1).astype(np.int64)
    drawn = ""
    for first, last in pairwise(edges):
        counts = dict(zip(names, np.bincount(kinds[first:last], minlength=len(names)), strict=True))
        # A few computed tokens in a wide share are what one looks for, so they win.
        computed = [kind for kind in ("new", "repaired") if counts[kind]]
        kind = computed[0] if computed else "cached" if counts["cached"] >= counts["gap"] else "gap"
        drawn += cells[kind]
    return drawn


def _kind(segment: Segment) -> str:
    if isinstance(segment, CachedSegment):
        return "cached"
    return "repaired" if segment.is_repair else "new"


def _tokens(segment: Segment) -> tuple[list[int], int]:
    """A segment's token IDs and first position."""
    if isinstance(segment, CachedSegment):
        ids = segment.unit.token_ids[segment.start : segment.end]
        return ids.tolist(), segment.first_position
    return list(segment.token_ids), segment.first_position


def _unit_lines(plan: Plan) -> list[str]:
    lines = ["encoded once and kept:"] if plan.units else []
    for unit in plan.units:
        seen = ", ".join(context.id for context in unit.context)
        after = f" after {seen}" if seen else ""
        lines.append(f"  {unit.id}: {unit.num_tokens} tokens{after}")
    return lines


def _range(start: int, end: int) -> str:
    return f"{start:>6} .. {end:>5}"


def _shorten(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 3] + "..."
