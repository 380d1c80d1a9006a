"""A small table for terminals, logs and pipes: plain text, no colours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

GAP = "  "


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines with a rule under the head; the first column is set to the left, the others to the right.

    A heading may have several lines, parted by line feeds. All rows are as long as `head`.
    """
    headings = [cell.split("\n") for cell in head]
    num_lines = max(len(lines) for lines in headings)
    top = [[""] * (num_lines - len(lines)) + lines for lines in headings]
    table = [*zip(*top, strict=True), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [_line(row, widths) for row in table]
    rule = GAP.join("-" * width for width in widths)
    return "\n".join([*lines[:num_lines], rule, *lines[num_lines:]])


def render_legend(entries: Sequence[tuple[str, str]], columns: int) -> str:
    """An entry for each (name, meaning), the meanings below each other and wrapped to `columns`."""
    indent = max(len(name) for name, _ in entries) + len(GAP)
    return "\n".join(
        textwrap.fill(f"{name:<{indent}}{meaning}", columns, subsequent_indent=" " * indent)
        for name, meaning in entries
    )


def seconds(value: float) -> str:
    """A duration in seconds with a fitting unit: `85 ms`, `1.24 s`, `12.4 s`."""
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"


def times(value: float) -> str:
    """A ratio: `0.9x`, `5.2x`, `36x`."""
    return f"{value:.1f}x" if value < 9.95 else f"{value:.0f}x"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return GAP.join([f"{cells[0]:<{len(first)}}", *others]).rstrip()
